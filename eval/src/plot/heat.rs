//! Heat maps.

use std::fmt::Write;

use super::{label, open, text};

const CELL: (f64, f64) = (64.0, 28.0);
const LEFT: f64 = 96.0;
/// Maps side by side.
const COLUMNS: usize = 3;

/// A table of values from 0 to 1 as colours.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// Above it.
    pub title: String,
    /// Names of the columns, and of the axis.
    pub columns: (Vec<String>, String),
    /// Names of the rows, and of the axis.
    pub rows: (Vec<String>, String),
    /// `values[row][column]`.
    pub values: Vec<Vec<Option<f64>>>,
}

/// Heat maps in rows of three.
pub fn heat(maps: &[HeatMap], heading: &str) -> String {
    let size = |of: fn(&HeatMap) -> usize| maps.iter().map(of).max().unwrap_or(0) as f64;
    let (wide, tall) = (size(|m| m.columns.0.len()), size(|m| m.rows.0.len()));
    let each = (
        (LEFT + wide * CELL.0 + 24.0).max(250.0),
        66.0 + tall * CELL.1,
    );
    let (across, down) = (maps.len().clamp(1, COLUMNS), maps.len().div_ceil(COLUMNS));
    let mut svg = open(across as f64 * each.0, 26.0 + down as f64 * each.1, heading);
    for (i, map) in maps.iter().enumerate() {
        draw(
            &mut svg,
            map,
            (
                (i % COLUMNS) as f64 * each.0,
                26.0 + (i / COLUMNS) as f64 * each.1,
            ),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, map: &HeatMap, (left, top): (f64, f64)) {
    label(
        svg,
        (left + 12.0, top + 17.0),
        "start",
        &map.title,
        " font-weight=\"600\"",
    );
    for (r, row) in map.values.iter().enumerate() {
        let y = top + 28.0 + r as f64 * CELL.1;
        let name = format!("{} {}", map.rows.1, map.rows.0[r]);
        label(
            svg,
            (left + LEFT - 8.0, y + 18.0),
            "end",
            &name,
            " class=\"soft\"",
        );
        for (c, value) in row.iter().enumerate() {
            let Some(value) = value else { continue };
            let x = left + LEFT + c as f64 * CELL.0;
            let (colour, ink) = shade(*value);
            let _ = writeln!(
                svg,
                r#"<rect x="{x:.1}" y="{y:.1}" width="{}" height="{}" rx="2" fill="{colour}"/>"#,
                CELL.0 - 2.0,
                CELL.1 - 2.0
            );
            let at = (x + CELL.0 / 2.0 - 1.0, y + 17.0);
            label(
                svg,
                at,
                "middle",
                &format!("{:.0}", value * 100.0),
                &format!(" style=\"fill:{ink}\""),
            );
        }
    }
    let y = top + 28.0 + map.rows.0.len() as f64 * CELL.1 + 15.0;
    for (c, name) in map.columns.0.iter().enumerate() {
        text(
            svg,
            (left + LEFT + (c as f64 + 0.5) * CELL.0, y),
            "middle",
            name,
        );
    }
    label(
        svg,
        (left + LEFT - 8.0, y),
        "end",
        &map.columns.1,
        " class=\"soft\"",
    );
}

/// From orange to blue by way of a pale grey, apart with any colour vision, and the ink that is
/// read on it.
fn shade(value: f64) -> (String, &'static str) {
    let end = if value < 0.5 {
        [200.0, 90.0, 10.0]
    } else {
        [0.0, 100.0, 165.0]
    };
    let far = (value - 0.5).abs() * 2.0;
    let [r, g, b] = end.map(|end| (236.0 + (end - 236.0) * far).round());
    (
        format!("rgb({r},{g},{b})"),
        if far > 0.55 { "#fff" } else { "#222" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_cell() {
        let map = HeatMap {
            title: "t & u".into(),
            columns: (vec!["512".into(), "1024".into()], "tokens".into()),
            rows: (vec!["0 %".into()], "depth".into()),
            values: vec![vec![Some(1.0), None]],
        };
        let svg = heat(&[map.clone(), map], "accuracy");
        assert_eq!(svg.matches("rgb(0,100,165)").count(), 2);
        assert!(svg.contains("t &amp; u") && svg.contains("depth 0 %") && !svg.contains("NaN"));
        assert!(!heat(&[], "accuracy").contains("NaN"));
    }
}
