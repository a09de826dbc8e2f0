//! Bars by task: groups of caches side by side.

use std::fmt::Write;

use super::svg::{COLOURS, Entry, Ticks, entries, label, legend, legend_height, open};
use crate::stats::Estimate;

/// Width of a bar, and from one group's bars to the next one's.
const BAR: f64 = 11.0;
const GAP: f64 = 20.0;
/// Least width of a group: its name stands below it.
const GROUP: f64 = 74.0;
/// Height of a row.
const HEIGHT: f64 = 190.0;
/// Left, right, top, bottom.
const MARGIN: [f64; 4] = [46.0, 16.0, 26.0, 34.0];
/// Above the first row.
const HEADING: f64 = 26.0;

/// One bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Name of the cache.
    pub name: String,
    /// Height, from 0 to 1, and the ends of the error bar.
    pub value: Estimate,
}

/// The bars of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Below them.
    pub name: String,
    /// Bars, in any order; a name has one place in every group.
    pub bars: Vec<Bar>,
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
    let all = || rows.iter().flat_map(|row| &row.groups);
    let drawn = all().flat_map(|group| &group.bars).map(|bar| Entry {
        name: &bar.name,
        reference: false,
    });
    let mut names = entries(drawn);
    let places: Vec<&str> = names.iter().map(|entry| entry.name).collect();
    if all().any(|group| group.full.is_some()) {
        names.push(Entry {
            name: "full",
            reference: true,
        });
    }

    let group_width = (places.len().max(1) as f64 * BAR + GAP).max(GROUP);
    let most = rows.iter().map(|row| row.groups.len()).max().unwrap_or(0) as f64;
    let width = (MARGIN[0] + MARGIN[1] + most * group_width).max(430.0);
    let height = HEADING + rows.len() as f64 * HEIGHT;

    let mut svg = open(width, height + legend_height(names.len(), width), heading);
    for (index, row) in rows.iter().enumerate() {
        let frame = Frame {
            top: HEADING + index as f64 * HEIGHT,
            right: width - MARGIN[1],
            group_width,
            places: &places,
        };
        frame.grid(&mut svg, &row.title);
        for (index, group) in row.groups.iter().enumerate() {
            frame.group(&mut svg, index, group);
        }
        let _ = writeln!(
            svg,
            r#"<path d="M{} {:.1}H{:.1}" class="axis"/>"#,
            MARGIN[0],
            frame.y(0.0),
            frame.right
        );
    }
    legend(&mut svg, &names, height, width);
    svg.push_str("</svg>\n");
    svg
}

/// Where a row is drawn.
struct Frame<'a> {
    top: f64,
    right: f64,
    group_width: f64,
    /// Names of the bars by their place in a group.
    places: &'a [&'a str],
}

impl Frame<'_> {
    fn y(&self, value: f64) -> f64 {
        let [_, _, top, bottom] = MARGIN;
        self.top + HEIGHT - bottom - value.clamp(0.0, 1.0) * (HEIGHT - top - bottom)
    }

    /// The title, and a line with its label for every tick.
    fn grid(&self, svg: &mut String, title: &str) {
        let at = (MARGIN[0], self.top + 14.0);
        label(svg, at, "start", title, " font-weight=\"600\"");
        let ticks = Ticks::covering(0.0, 1.0);
        for &value in &ticks.values {
            let y = self.y(value);
            let _ = writeln!(
                svg,
                r#"<path d="M{} {y:.1}H{:.1}" class="grid"/>"#,
                MARGIN[0], self.right
            );
            let at = (MARGIN[0] - 6.0, y + 4.0);
            label(svg, at, "end", &ticks.label(value), " class=\"soft\"");
        }
    }

    /// The bars of group `index`, the full cache's line, and the name.
    fn group(&self, svg: &mut String, index: usize, group: &Group) {
        let wide = self.places.len() as f64 * BAR;
        let left = MARGIN[0] + (index as f64 + 0.5) * self.group_width - wide / 2.0;
        for bar in &group.bars {
            let place = self.places.iter().position(|name| *name == bar.name);
            self.bar(svg, left, place.unwrap_or(0), bar.value);
        }

        if let Some(full) = group.full {
            let (y, right) = (self.y(full), left + wide + 4.0);
            let _ = writeln!(
                svg,
                r#"<path d="M{:.1} {y:.1}H{right:.1}" class="full"/>"#,
                left - 4.0
            );
        }
        let at = (left + wide / 2.0, self.y(0.0) + 15.0);
        label(svg, at, "middle", &group.name, "");
    }

    /// A bar with its error bar.
    fn bar(&self, svg: &mut String, left: f64, place: usize, value: Estimate) {
        let x = left + place as f64 * BAR;
        let (colour, middle) = (place % COLOURS.len(), x + BAR / 2.0);
        let tall = (self.y(0.0) - self.y(value.value)).max(1.0);
        let (x, y, wide) = (x + 1.0, self.y(0.0) - tall, BAR - 2.0);
        let size = format!(r#"width="{wide:.1}" height="{tall:.1}""#);
        let _ = writeln!(
            svg,
            r#"<rect x="{x:.1}" y="{y:.1}" {size} class="f{colour}"/>"#
        );
        let (low, high) = (self.y(value.low), self.y(value.high));
        let _ = writeln!(
            svg,
            r#"<path d="M{middle:.1} {low:.1}V{high:.1}" class="axis"/>"#
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_high_as_their_values() {
        let bar = |name: &str, value, low, high| Bar {
            name: name.into(),
            value: Estimate { value, low, high },
        };
        let group = Group {
            name: "single_1".into(),
            bars: vec![bar("a", 1.0, 0.8, 1.0), bar("b", 0.5, 0.2, 0.8)],
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
