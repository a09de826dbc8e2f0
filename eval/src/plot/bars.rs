//! Bars by task: groups of caches side by side.

use std::fmt::Write;

use super::{COLOURS, label, legend, legend_height, names, open, ticks};

const BAR: f64 = 11.0;
const GAP: f64 = 20.0;
const HEIGHT: f64 = 190.0;
/// Left, right, top, bottom.
const MARGIN: [f64; 4] = [46.0, 16.0, 26.0, 34.0];
const HEADING: f64 = 26.0;

/// The bars of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Below them.
    pub name: String,
    /// Name of the cache, value, and the ends of its error bar.
    pub bars: Vec<(String, f64, f64, f64)>,
    /// What the full cache reaches, a line across the group.
    pub full: Option<f64>,
}

/// One row of groups.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    /// Above it.
    pub title: String,
    /// Groups, from left to right.
    pub groups: Vec<Group>,
}

/// Rows of groups one below the other, values from 0 to 1.
pub fn bars(rows: &[Bars], heading: &str) -> String {
    let all = || rows.iter().flat_map(|r| &r.groups);
    let mut names = names(all().flat_map(|g| &g.bars).map(|b| (&*b.0, false)));
    let each = names.len().max(1) as f64 * BAR + GAP;
    let most = rows.iter().map(|r| r.groups.len()).max().unwrap_or(0) as f64;
    let width = (MARGIN[0] + MARGIN[1] + most * each.max(74.0)).max(430.0);
    let height = HEADING + rows.len() as f64 * HEIGHT;
    let series = names.len();
    if all().any(|g| g.full.is_some()) {
        names.push(("full", true));
    }
    let mut svg = open(width, height + legend_height(names.len(), width), heading);
    let (y_ticks, decimals) = ticks(0.0, 1.0);
    for (r, row) in rows.iter().enumerate() {
        let top = HEADING + r as f64 * HEIGHT;
        let place = |y: f64| {
            top + HEIGHT - MARGIN[3] - y.clamp(0.0, 1.0) * (HEIGHT - MARGIN[2] - MARGIN[3])
        };
        label(
            &mut svg,
            (MARGIN[0], top + 14.0),
            "start",
            &row.title,
            " font-weight=\"600\"",
        );
        for y in &y_ticks {
            let py = place(*y);
            let _ = writeln!(
                svg,
                r#"<path d="M{} {py:.1}H{:.1}" class="grid"/>"#,
                MARGIN[0],
                width - MARGIN[1]
            );
            label(
                &mut svg,
                (MARGIN[0] - 6.0, py + 4.0),
                "end",
                &format!("{y:.decimals$}"),
                " class=\"soft\"",
            );
        }
        for (g, group) in row.groups.iter().enumerate() {
            let left = MARGIN[0] + (g as f64 + 0.5) * each.max(74.0) - series as f64 * BAR / 2.0;
            for (name, value, low, high) in &group.bars {
                let index = names.iter().position(|(n, _)| n == name).unwrap_or(0);
                let (x, y) = (left + index as f64 * BAR, place(*value));
                let (colour, middle) = (index % COLOURS.len(), x + BAR / 2.0);
                let tall = (place(0.0) - y).max(1.0);
                let _ = writeln!(
                    svg,
                    r#"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="{tall:.1}" class="f{colour}"/>"#,
                    x + 1.0,
                    place(0.0) - tall,
                    BAR - 2.0
                );
                let _ = writeln!(
                    svg,
                    r#"<path d="M{middle:.1} {:.1}V{:.1}" class="axis"/>"#,
                    place(*low),
                    place(*high)
                );
            }
            if let Some(full) = group.full {
                let (y, right) = (place(full), left + series as f64 * BAR + 4.0);
                let _ = writeln!(
                    svg,
                    r#"<path d="M{:.1} {y:.1}H{right:.1}" class="full"/>"#,
                    left - 4.0
                );
            }
            let middle = left + series as f64 * BAR / 2.0;
            label(
                &mut svg,
                (middle, place(0.0) + 15.0),
                "middle",
                &group.name,
                "",
            );
        }
        let y = place(0.0);
        let _ = writeln!(
            svg,
            r#"<path d="M{} {y:.1}H{:.1}" class="axis"/>"#,
            MARGIN[0],
            width - MARGIN[1]
        );
    }
    legend(&mut svg, &names, (height, width));
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_high_as_their_values() {
        let group = Group {
            name: "single_1".into(),
            bars: vec![("a".into(), 1.0, 0.8, 1.0), ("b".into(), 0.5, 0.2, 0.8)],
            full: Some(1.0),
        };
        let svg = bars(
            &[Bars {
                title: "25 %".into(),
                groups: vec![group],
            }],
            "accuracy",
        );
        let whole = HEIGHT - MARGIN[2] - MARGIN[3];
        assert!(
            svg.contains(&format!(r#"height="{whole:.1}" class="f0""#)),
            "{svg}"
        );
        assert!(svg.contains(&format!(r#"height="{:.1}" class="f1""#, whole / 2.0)));
        assert!(svg.contains("single_1") && svg.contains("25 %") && !svg.contains("NaN"));
        assert!(!bars(&[], "accuracy").contains("NaN"));
    }
}
