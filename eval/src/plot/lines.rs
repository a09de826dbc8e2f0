//! Lines over the share that is kept.

use std::fmt::Write;

use super::svg::{Entry, Ticks, entries, label, legend, legend_height, mark, open, stroke};
use crate::stats::Estimate;

const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 226.0;
/// Left, right, top, bottom.
const MARGIN: [f64; 4] = [46.0, 16.0, 42.0, 26.0];
/// Above the first row of panels.
const HEADING: f64 = 26.0;
/// Points of different series at one place stand this far apart.
const APART: f64 = 3.0;

/// A point of a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Share that is kept, from 0 to 1.
    pub x: f64,
    /// Height, and the ends of the error bar.
    pub y: Estimate,
}

/// A line of a panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name in the legend; lines of one name have one colour in all panels.
    pub name: String,
    /// Points, increasing in x.
    pub points: Vec<Point>,
    /// Drawn across the panel at its only y.
    pub reference: bool,
}

/// One coordinate system.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// Below the title.
    pub subtitle: String,
    /// Lines.
    pub series: Vec<Series>,
}

/// Panels in rows of three with one legend under a heading that says what is drawn over what.
/// `y_range` fixes the vertical axis, else all panels share that of the data.
pub fn lines(panels: &[Panel], heading: &str, y_range: Option<(f64, f64)>) -> String {
    let names = entries(panels.iter().flat_map(|p| &p.series).map(|s| Entry {
        name: &s.name,
        reference: s.reference,
    }));
    let points = || {
        panels
            .iter()
            .flat_map(|p| &p.series)
            .flat_map(|s| &s.points)
    };
    let x_max = points()
        .map(|p| p.x)
        .filter(|x| *x < 0.999)
        .fold(0.0, f64::max)
        .max(1e-3)
        * 1.04;
    let (low, high) = y_range.unwrap_or_else(|| range(points()));
    let axes = Axes {
        x_max,
        x: Ticks::covering(0.0, x_max * 100.0),
        y: Ticks::covering(low, high),
    };

    let columns = panels.len().clamp(1, 3);
    let rows = panels.len().div_ceil(columns);
    let width = (columns as f64 * WIDTH).max(430.0);
    let height = HEADING + rows as f64 * HEIGHT;
    let mut svg = open(width, height + legend_height(names.len(), width), heading);
    let drawn = names.iter().filter(|entry| !entry.reference).count() as f64;
    for (i, panel) in panels.iter().enumerate() {
        let frame = Frame {
            left: (i % columns) as f64 * WIDTH,
            top: HEADING + (i / columns) as f64 * HEIGHT,
            axes: &axes,
        };
        frame.axes(&mut svg, panel);
        for series in &panel.series {
            let index = names.iter().position(|entry| entry.name == series.name);
            let index = index.unwrap_or(0);
            let shift = (index as f64 - (drawn - 1.0) / 2.0) * APART;
            frame.line(&mut svg, series, index, shift);
        }
    }
    legend(&mut svg, &names, height, width);
    svg.push_str("</svg>\n");
    svg
}

/// From the lowest end of an error bar to the highest; something around it where they are one.
fn range<'a>(points: impl Iterator<Item = &'a Point>) -> (f64, f64) {
    let (low, high) = points.fold((f64::MAX, f64::MIN), |(low, high), p| {
        (low.min(p.y.low), high.max(p.y.high))
    });
    let (low, high) = if low < high {
        (low, high)
    } else {
        (low - 1.0, high + 1.0)
    };
    // Without a point there is no range at all.
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// The axes that all panels share.
struct Axes {
    /// Right end, a share.
    x_max: f64,
    /// Percent.
    x: Ticks,
    y: Ticks,
}

/// Where a panel is drawn.
struct Frame<'a> {
    left: f64,
    top: f64,
    axes: &'a Axes,
}

impl Frame<'_> {
    fn x(&self, share: f64) -> f64 {
        let [left, right, ..] = MARGIN;
        self.left + left + share / self.axes.x_max * (WIDTH - left - right)
    }

    fn y(&self, value: f64) -> f64 {
        let [_, _, top, bottom] = MARGIN;
        let (low, high) = self.y_range();
        let up = (value.clamp(low, high) - low) / (high - low);
        self.top + HEIGHT - bottom - up * (HEIGHT - top - bottom)
    }

    fn y_range(&self) -> (f64, f64) {
        let values = &self.axes.y.values;
        (values[0], values[values.len() - 1])
    }

    fn axes(&self, svg: &mut String, panel: &Panel) {
        let Axes { x_max, x, y } = self.axes;
        let (low, high) = self.y_range();
        let (x0, x1) = (self.x(0.0), self.x(*x_max));
        let (y0, y1) = (self.y(low), self.y(high));

        for &value in &y.values {
            let py = self.y(value);
            let _ = writeln!(svg, r#"<path d="M{x0:.1} {py:.1}H{x1:.1}" class="grid"/>"#);
            let at = (x0 - 6.0, py + 4.0);
            label(svg, at, "end", &y.label(value), " class=\"soft\"");
        }
        for &percent in x.values.iter().filter(|x| **x <= x_max * 100.0) {
            let px = self.x(percent / 100.0);
            let _ = writeln!(svg, r#"<path d="M{px:.1} {y0:.1}v4" class="axis"/>"#);
            let name = format!("{} %", x.label(percent));
            label(svg, (px, y0 + 16.0), "middle", &name, " class=\"soft\"");
        }
        let _ = writeln!(
            svg,
            r#"<path d="M{x0:.1} {y1:.1}V{y0:.1}H{x1:.1}" class="axis"/>"#
        );

        let (title, subtitle) = ((x0, y1 - 22.0), (x0, y1 - 9.0));
        label(svg, title, "start", &panel.title, " font-weight=\"600\"");
        label(svg, subtitle, "start", &panel.subtitle, " class=\"soft\"");
    }

    /// `shift`: right of where it should be, so that points at one place can be told apart.
    fn line(&self, svg: &mut String, series: &Series, index: usize, shift: f64) {
        let stroke = stroke(index);
        if series.reference {
            if let Some(point) = series.points.first() {
                let (x0, x1) = (self.x(0.0), self.x(self.axes.x_max));
                let y = self.y(point.y.value);
                let _ = writeln!(svg, r#"<path d="M{x0:.1} {y:.1}H{x1:.1}" class="full"/>"#);
            }
            return;
        }

        let mut path = String::new();
        for (i, point) in series.points.iter().enumerate() {
            let (x, y) = (self.x(point.x) + shift, self.y(point.y.value));
            let _ = write!(path, "{}{x:.1} {y:.1}", if i == 0 { 'M' } else { 'L' });
            let (top, bottom) = (self.y(point.y.high), self.y(point.y.low));
            let _ = writeln!(
                svg,
                r#"<path d="M{x:.1} {top:.1}V{bottom:.1}" {stroke} opacity="0.4"/>"#
            );
        }
        let _ = writeln!(svg, r#"<path d="{path}" {stroke}/>"#);
        for point in &series.points {
            let at = (self.x(point.x) + shift, self.y(point.y.value));
            mark(svg, at, index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_stands_where_its_values_say() {
        let axes = Axes {
            x_max: 0.5,
            x: Ticks::covering(0.0, 50.0),
            y: Ticks::covering(0.0, 1.0),
        };
        let frame = Frame {
            left: 0.0,
            top: 0.0,
            axes: &axes,
        };
        assert_eq!(
            (frame.x(0.0), frame.y(0.0)),
            (MARGIN[0], HEIGHT - MARGIN[3])
        );
        assert_eq!((frame.x(0.5), frame.y(1.0)), (WIDTH - MARGIN[1], MARGIN[2]));
        assert_eq!(frame.y(-1.0), frame.y(0.0));
    }

    #[test]
    fn names_are_escaped_and_tags_are_closed() {
        let point = |x, value, low, high| Point {
            x,
            y: Estimate { value, low, high },
        };
        let points = vec![point(0.1, 0.5, 0.2, 0.8), point(0.2, 0.7, 0.6, 0.9)];
        let series = Series {
            name: "a<b&c".into(),
            points,
            reference: false,
        };
        let panel = Panel {
            title: "t".into(),
            subtitle: "s".into(),
            series: vec![series],
        };
        let svg = lines(&[panel], "y over x", Some((0.0, 1.0)));
        assert!(svg.contains("a&lt;b&amp;c") && !svg.contains("a<b"));
        // Two points and the legend's.
        assert_eq!(svg.matches("<circle").count(), 3);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(!svg.contains("NaN") && svg.ends_with("</svg>\n"));
        assert!(!lines(&[], "y over x", None).contains("NaN"));
    }
}
