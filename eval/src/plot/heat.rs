//! Heat maps.

use std::fmt::Write;

use super::svg::{label, open, text};

/// A value's box.
const CELL_WIDTH: f64 = 64.0;
const CELL_HEIGHT: f64 = 28.0;
/// Room for the names of rows.
const LEFT: f64 = 96.0;
/// Maps side by side.
const COLUMNS: usize = 3;

/// What stands along a side of a map.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What is counted.
    pub name: String,
    /// Names of the columns or rows.
    pub labels: Vec<String>,
}

/// A table of values from 0 to 1 as colours.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// Above it.
    pub title: String,
    /// Below it.
    pub columns: Axis,
    /// Left of it.
    pub rows: Axis,
    /// `values[row][column]`.
    pub values: Vec<Vec<Option<f64>>>,
}

/// Heat maps in rows of three.
pub fn heat(maps: &[HeatMap], heading: &str) -> String {
    let most = |of: fn(&HeatMap) -> usize| maps.iter().map(of).max().unwrap_or(0) as f64;
    let width = LEFT + most(|m| m.columns.labels.len()) * CELL_WIDTH + 24.0;
    let width = width.max(250.0);
    let height = 66.0 + most(|m| m.rows.labels.len()) * CELL_HEIGHT;

    let (across, down) = (maps.len().clamp(1, COLUMNS), maps.len().div_ceil(COLUMNS));
    let mut svg = open(across as f64 * width, 26.0 + down as f64 * height, heading);
    for (i, map) in maps.iter().enumerate() {
        let left = (i % COLUMNS) as f64 * width;
        let top = 26.0 + (i / COLUMNS) as f64 * height;
        draw(&mut svg, map, left, top);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, map: &HeatMap, left: f64, top: f64) {
    let at = (left + 12.0, top + 17.0);
    label(svg, at, "start", &map.title, " font-weight=\"600\"");
    for (r, row) in map.values.iter().enumerate() {
        let y = top + 28.0 + r as f64 * CELL_HEIGHT;
        let name = format!("{} {}", map.rows.name, map.rows.labels[r]);
        let at = (left + LEFT - 8.0, y + 18.0);
        label(svg, at, "end", &name, " class=\"soft\"");

        for (c, value) in row.iter().enumerate() {
            let Some(value) = value else { continue };
            let x = left + LEFT + c as f64 * CELL_WIDTH;
            let (colour, ink) = shade(*value);
            let _ = writeln!(
                svg,
                r#"<rect x="{x:.1}" y="{y:.1}" width="{}" height="{}" rx="2" fill="{colour}"/>"#,
                CELL_WIDTH - 2.0,
                CELL_HEIGHT - 2.0
            );
            let at = (x + CELL_WIDTH / 2.0 - 1.0, y + 17.0);
            let percent = format!("{:.0}", value * 100.0);
            label(
                svg,
                at,
                "middle",
                &percent,
                &format!(" style=\"fill:{ink}\""),
            );
        }
    }

    let y = top + 28.0 + map.rows.labels.len() as f64 * CELL_HEIGHT + 15.0;
    for (c, name) in map.columns.labels.iter().enumerate() {
        let x = left + LEFT + (c as f64 + 0.5) * CELL_WIDTH;
        text(svg, (x, y), "middle", name);
    }
    let at = (left + LEFT - 8.0, y);
    label(svg, at, "end", &map.columns.name, " class=\"soft\"");
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
        let axis = |name: &str, labels: &[&str]| Axis {
            name: name.into(),
            labels: labels.iter().map(ToString::to_string).collect(),
        };
        let map = HeatMap {
            title: "t & u".into(),
            columns: axis("tokens", &["512", "1024"]),
            rows: axis("depth", &["0 %"]),
            values: vec![vec![Some(1.0), None]],
        };
        let svg = heat(&[map.clone(), map], "accuracy");
        assert_eq!(svg.matches("rgb(0,100,165)").count(), 2);
        assert!(svg.contains("t &amp; u") && svg.contains("depth 0 %") && !svg.contains("NaN"));
        assert!(!heat(&[], "accuracy").contains("NaN"));
    }
}
