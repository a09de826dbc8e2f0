//! Plots as SVG text: lines over the share that is kept, bars by task, heat maps. They follow the
//! reader's light or dark scheme, and series are told apart by colour (after Okabe and Ito), mark
//! and dash.

mod bars;
mod heat;
mod lines;

use std::fmt::Write;

pub use bars::{Bars, Group, bars};
pub use heat::{HeatMap, heat};
pub use lines::{Panel, Series, lines};

/// Colours on light and on dark paper.
const COLOURS: [(&str, &str); 8] = [
    ("#0072b2", "#4aa8e0"),
    ("#d55e00", "#ff8f45"),
    ("#009e73", "#35c79f"),
    ("#b8558f", "#e89cc8"),
    ("#6d4fc4", "#a690f0"),
    ("#a97700", "#f0b83c"),
    ("#2a9bb5", "#86d5e8"),
    ("#777777", "#b0b0b0"),
];
/// Height of a line of the legend.
const LEGEND_LINE: f64 = 18.0;
/// Least width of a legend's entry.
const LEGEND_ENTRY: f64 = 190.0;

/// Begins a plot of this size with a heading.
fn open(width: f64, height: f64, heading: &str) -> String {
    let mut style = String::from(
        "text{fill:#222}.soft{fill:#6b6b6b}.paper{fill:#fff}.grid{stroke:#e4e4e4}.axis{stroke:#\
         888;fill:none}.full{stroke:#222;stroke-dasharray:4 3;fill:none;stroke-width:1.5}",
    );
    let mut dark = String::from(
        "text{fill:#e8e8e8}.soft{fill:#a0a0a0}.paper{fill:#17181b}.grid{stroke:#303238}.\
         axis{stroke:#777}.full{stroke:#e8e8e8}",
    );
    for (i, (on_light, on_dark)) in COLOURS.iter().enumerate() {
        let rule = |colour: &str| format!(".s{i}{{stroke:{colour}}}.f{i}{{fill:{colour}}}");
        style += &rule(on_light);
        dark += &rule(on_dark);
    }
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"system-ui, 'DejaVu Sans', \
         sans-serif\" font-size=\"11\">\n<style>{style}@media \
         (prefers-color-scheme:dark){{{dark}}}</style>\n<rect width=\"100%\" height=\"100%\" \
         class=\"paper\"/>\n"
    );
    label(
        &mut svg,
        (12.0, 19.0),
        "start",
        heading,
        " font-weight=\"600\" font-size=\"12.5\"",
    );
    svg
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, what: &str) {
    label(svg, at, anchor, what, "");
}

fn label(svg: &mut String, (x, y): (f64, f64), anchor: &str, what: &str, more: &str) {
    let what = what
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(
        svg,
        r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}"{more}>{what}</text>"#
    );
}

/// Attributes of a series' lines.
fn stroke(index: usize) -> String {
    let dash = if index / COLOURS.len() % 2 == 1 {
        r#" stroke-dasharray="6 3""#
    } else {
        ""
    };
    format!(
        r#"class="s{}" fill="none" stroke-width="1.7"{dash}"#,
        index % COLOURS.len()
    )
}

/// A series' mark: a disc, a square, a diamond or a triangle.
fn mark(svg: &mut String, (x, y): (f64, f64), index: usize) {
    let shape = match index % 4 {
        0 => format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.2""#),
        1 => format!(r#"<path d="M{:.1} {:.1}h6v6h-6z""#, x - 3.0, y - 3.0),
        2 => format!(r#"<path d="M{x:.1} {:.1}l4 4l-4 4l-4 -4z""#, y - 4.0),
        _ => format!(r#"<path d="M{x:.1} {:.1}l4 7h-8z""#, y - 4.3),
    };
    let _ = writeln!(svg, r#"{shape} class="f{}"/>"#, index % COLOURS.len());
}

/// Height of a legend for these names in `width`.
fn legend_height(names: usize, width: f64) -> f64 {
    names.div_ceil(legend_columns(width)) as f64 * LEGEND_LINE + 12.0
}

fn legend_columns(width: f64) -> usize {
    ((width - 24.0) / LEGEND_ENTRY).floor().max(1.0) as usize
}

/// Names with their lines and marks. Of each: whether it is the full cache.
fn legend(svg: &mut String, names: &[(&str, bool)], (top, width): (f64, f64)) {
    let columns = legend_columns(width);
    for (i, (name, reference)) in names.iter().enumerate() {
        let x = 16.0 + (i % columns) as f64 * LEGEND_ENTRY;
        let y = top + (i / columns) as f64 * LEGEND_LINE + 8.0;
        let line = if *reference {
            r#"class="full""#.to_string()
        } else {
            stroke(i)
        };
        let _ = writeln!(svg, r#"<path d="M{x:.1} {y:.1}h26" {line}/>"#);
        if !reference {
            mark(svg, (x + 13.0, y), i);
        }
        text(svg, (x + 33.0, y + 4.0), "start", name);
    }
}

/// Round numbers from below `low` to above `high`, about four steps, and how many decimals they
/// take.
fn ticks(low: f64, high: f64) -> (Vec<f64>, usize) {
    let high = if high - low < 1e-9 { low + 1.0 } else { high };
    let span = high - low;
    let unit = 10f64.powf((span / 4.0).log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|m| m * unit)
        .find(|s| span / s <= 4.5)
        .unwrap_or(10.0 * unit);
    let (first, last) = ((low / step + 1e-6).floor(), (high / step - 1e-6).ceil());
    let decimals = (0..6)
        .find(|d| (step * 10f64.powi(*d)).fract().abs() < 1e-6)
        .unwrap_or(6) as usize;
    (
        (0..=(last - first) as i64)
            .map(|i| (first + i as f64) * step)
            .collect(),
        decimals,
    )
}

/// Different names in the order they come, each with whether it is the full cache. That stands
/// last, so that the others have the same colours and marks in every plot.
fn names<'a>(series: impl Iterator<Item = (&'a str, bool)>) -> Vec<(&'a str, bool)> {
    let mut found = crate::report::distinct(series);
    found.sort_by_key(|(_, reference)| *reference);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        assert_eq!(ticks(0.0, 1.0), (vec![0.0, 0.25, 0.5, 0.75, 1.0], 2));
        let (found, decimals) = ticks(-2.56, -0.03);
        assert_eq!(
            (found.first(), found.last(), decimals),
            (Some(&-3.0), Some(&0.0), 0)
        );
        for (low, high) in [(0.0, 0.27), (-0.01, 0.02), (3.0, 1000.0), (2.0, 2.0)] {
            let (found, _) = ticks(low, high);
            assert!(
                found[0] <= low + 1e-6 && found[found.len() - 1] >= high - 1e-6,
                "{low} {high}: {found:?}"
            );
            assert!((2..=7).contains(&found.len()), "{low} {high}: {found:?}");
        }
    }
}
