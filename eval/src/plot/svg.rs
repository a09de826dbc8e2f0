//! What all plots are drawn with: paper, labels, marks, a legend, ticks.

use std::fmt::Write;

use crate::stats::distinct;

/// Colours on light and on dark paper.
pub(super) const COLOURS: [(&str, &str); 8] = [
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
pub(super) fn open(width: f64, height: f64, heading: &str) -> String {
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

pub(super) fn text(svg: &mut String, at: (f64, f64), anchor: &str, what: &str) {
    label(svg, at, anchor, what, "");
}

pub(super) fn label(svg: &mut String, (x, y): (f64, f64), anchor: &str, what: &str, more: &str) {
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
pub(super) fn stroke(index: usize) -> String {
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
pub(super) fn mark(svg: &mut String, (x, y): (f64, f64), index: usize) {
    let shape = match index % 4 {
        0 => format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.2""#),
        1 => format!(r#"<path d="M{:.1} {:.1}h6v6h-6z""#, x - 3.0, y - 3.0),
        2 => format!(r#"<path d="M{x:.1} {:.1}l4 4l-4 4l-4 -4z""#, y - 4.0),
        _ => format!(r#"<path d="M{x:.1} {:.1}l4 7h-8z""#, y - 4.3),
    };
    let _ = writeln!(svg, r#"{shape} class="f{}"/>"#, index % COLOURS.len());
}

/// Height of a legend for these names in `width`.
pub(super) fn legend_height(names: usize, width: f64) -> f64 {
    names.div_ceil(legend_columns(width)) as f64 * LEGEND_LINE + 12.0
}

fn legend_columns(width: f64) -> usize {
    ((width - 24.0) / LEGEND_ENTRY).floor().max(1.0) as usize
}

/// A line of the legend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Entry<'a> {
    /// Its text.
    pub name: &'a str,
    /// Whether it is the full cache, which is drawn dashed and without marks.
    pub reference: bool,
}

/// Draws the entries with their lines and marks, from `top` on in columns within `width`.
pub(super) fn legend(svg: &mut String, entries: &[Entry<'_>], top: f64, width: f64) {
    let columns = legend_columns(width);
    for (i, entry) in entries.iter().enumerate() {
        let x = 16.0 + (i % columns) as f64 * LEGEND_ENTRY;
        let y = top + (i / columns) as f64 * LEGEND_LINE + 8.0;
        let line = if entry.reference {
            r#"class="full""#.to_string()
        } else {
            stroke(i)
        };
        let _ = writeln!(svg, r#"<path d="M{x:.1} {y:.1}h26" {line}/>"#);
        if !entry.reference {
            mark(svg, (x + 13.0, y), i);
        }
        text(svg, (x + 33.0, y + 4.0), "start", entry.name);
    }
}

/// Where an axis has its labels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ticks {
    /// Round numbers, evenly spaced.
    pub values: Vec<f64>,
    /// Decimals that they take.
    pub decimals: usize,
}

impl Ticks {
    /// From below `low` to above `high`, about four steps.
    pub fn covering(low: f64, high: f64) -> Self {
        let high = if high - low < 1e-9 { low + 1.0 } else { high };
        let span = high - low;
        let unit = 10f64.powf((span / 4.0).log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .into_iter()
            .map(|m| m * unit)
            .find(|s| span / s <= 4.5)
            .unwrap_or(10.0 * unit);

        let (first, last) = ((low / step + 1e-6).floor(), (high / step - 1e-6).ceil());
        let values = (0..=(last - first) as i64).map(|i| (first + i as f64) * step);
        let decimals = (0..6)
            .find(|d| (step * 10f64.powi(*d)).fract().abs() < 1e-6)
            .unwrap_or(6) as usize;
        Self {
            values: values.collect(),
            decimals,
        }
    }

    /// A label.
    pub fn label(&self, value: f64) -> String {
        format!("{value:.*}", self.decimals)
    }
}

/// Different entries in the order they come. The full cache stands last, so that the others have
/// the same colours and marks in every plot.
pub(super) fn entries<'a>(series: impl Iterator<Item = Entry<'a>>) -> Vec<Entry<'a>> {
    let mut found = distinct(series);
    found.sort_by_key(|entry| entry.reference);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        let unit = Ticks::covering(0.0, 1.0);
        assert_eq!(unit.values, [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(unit.label(0.5), "0.50");

        let nats = Ticks::covering(-2.56, -0.03);
        assert_eq!(
            (nats.values.first(), nats.values.last(), nats.decimals),
            (Some(&-3.0), Some(&0.0), 0)
        );

        for (low, high) in [(0.0, 0.27), (-0.01, 0.02), (3.0, 1000.0), (2.0, 2.0)] {
            let found = Ticks::covering(low, high).values;
            assert!(
                found[0] <= low + 1e-6 && found[found.len() - 1] >= high - 1e-6,
                "{low} {high}: {found:?}"
            );
            assert!((2..=7).contains(&found.len()), "{low} {high}: {found:?}");
        }
    }
}
