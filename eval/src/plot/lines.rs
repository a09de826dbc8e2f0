//! Lines over the share that is kept.

use std::fmt::Write;

use super::{label, legend, legend_height, mark, names, open, stroke, ticks};

const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 226.0;
/// Left, right, top, bottom.
const MARGIN: [f64; 4] = [46.0, 16.0, 42.0, 26.0];
/// Above the first row of panels.
const HEADING: f64 = 26.0;
/// Points of different series at one place stand this far apart.
const APART: f64 = 3.0;

/// A line of a panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name in the legend; lines of one name have one colour in all panels.
    pub name: String,
    /// Points `(x, y, low, high)`, increasing in x; `low` and `high` end the error bar.
    pub points: Vec<(f64, f64, f64, f64)>,
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
    let names = names(
        panels
            .iter()
            .flat_map(|p| &p.series)
            .map(|s| (&*s.name, s.reference)),
    );
    let points = || {
        panels
            .iter()
            .flat_map(|p| &p.series)
            .flat_map(|s| &s.points)
    };
    let x_max = points()
        .map(|p| p.0)
        .filter(|x| *x < 0.999)
        .fold(0.0, f64::max)
        .max(1e-3)
        * 1.04;
    let bounds = points().fold((f64::MAX, f64::MIN), |(l, h), p| (l.min(p.2), h.max(p.3)));
    let (low, high) = y_range.unwrap_or(if bounds.0 < bounds.1 {
        bounds
    } else {
        (bounds.0 - 1.0, bounds.0 + 1.0)
    });
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let columns = panels.len().clamp(1, 3);
    let rows = panels.len().div_ceil(columns);
    let (width, height) = (
        (columns as f64 * WIDTH).max(430.0),
        HEADING + rows as f64 * HEIGHT,
    );
    let mut svg = open(width, height + legend_height(names.len(), width), heading);
    let (y_ticks, x_ticks) = (ticks(low, high), ticks(0.0, x_max * 100.0));
    for (i, panel) in panels.iter().enumerate() {
        let at = (
            (i % columns) as f64 * WIDTH,
            HEADING + (i / columns) as f64 * HEIGHT,
        );
        let y = (y_ticks.0[0], y_ticks.0[y_ticks.0.len() - 1]);
        let frame = Frame {
            at,
            x: (0.0, x_max),
            y,
        };
        frame.axes(&mut svg, panel, &x_ticks, &y_ticks);
        let drawn = names.iter().filter(|(_, reference)| !reference).count() as f64;
        for series in &panel.series {
            let index = names
                .iter()
                .position(|(n, _)| *n == series.name)
                .unwrap_or(0);
            frame.line(
                &mut svg,
                series,
                index,
                (index as f64 - (drawn - 1.0) / 2.0) * APART,
            );
        }
    }
    legend(&mut svg, &names, (height, width));
    svg.push_str("</svg>\n");
    svg
}

struct Frame {
    at: (f64, f64),
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let [left, right, top, bottom] = MARGIN;
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = (y.clamp(self.y.0, self.y.1) - self.y.0) / (self.y.1 - self.y.0);
        (
            self.at.0 + left + across * (WIDTH - left - right),
            self.at.1 + HEIGHT - bottom - up * (HEIGHT - top - bottom),
        )
    }

    fn axes(
        &self,
        svg: &mut String,
        panel: &Panel,
        x_ticks: &(Vec<f64>, usize),
        y_ticks: &(Vec<f64>, usize),
    ) {
        let ((x0, y0), (x1, y1)) = (
            self.place(self.x.0, self.y.0),
            self.place(self.x.1, self.y.1),
        );
        for &y in &y_ticks.0 {
            let py = self.place(0.0, y).1;
            let _ = writeln!(svg, r#"<path d="M{x0:.1} {py:.1}H{x1:.1}" class="grid"/>"#);
            label(
                svg,
                (x0 - 6.0, py + 4.0),
                "end",
                &format!("{y:.*}", y_ticks.1),
                " class=\"soft\"",
            );
        }
        for &x in x_ticks.0.iter().filter(|x| **x <= self.x.1 * 100.0) {
            let px = self.place(x / 100.0, self.y.0).0;
            let _ = writeln!(svg, r#"<path d="M{px:.1} {y0:.1}v4" class="axis"/>"#);
            label(
                svg,
                (px, y0 + 16.0),
                "middle",
                &format!("{x:.*} %", x_ticks.1),
                " class=\"soft\"",
            );
        }
        let _ = writeln!(
            svg,
            r#"<path d="M{x0:.1} {y1:.1}V{y0:.1}H{x1:.1}" class="axis"/>"#
        );
        label(
            svg,
            (x0, y1 - 22.0),
            "start",
            &panel.title,
            " font-weight=\"600\"",
        );
        label(
            svg,
            (x0, y1 - 9.0),
            "start",
            &panel.subtitle,
            " class=\"soft\"",
        );
    }

    fn line(&self, svg: &mut String, series: &Series, index: usize, shift: f64) {
        let stroke = stroke(index);
        if series.reference {
            if let Some(point) = series.points.first() {
                let ((x0, y), (x1, _)) =
                    (self.place(self.x.0, point.1), self.place(self.x.1, point.1));
                let _ = writeln!(svg, r#"<path d="M{x0:.1} {y:.1}H{x1:.1}" class="full"/>"#);
            }
            return;
        }
        let mut path = String::new();
        for (i, &(x, y, low, high)) in series.points.iter().enumerate() {
            let (px, py) = self.place(x, y);
            let px = px + shift;
            let _ = write!(path, "{}{px:.1} {py:.1}", if i == 0 { 'M' } else { 'L' });
            let (top, bottom) = (self.place(x, high).1, self.place(x, low).1);
            let _ = writeln!(
                svg,
                r#"<path d="M{px:.1} {top:.1}V{bottom:.1}" {stroke} opacity="0.4"/>"#
            );
        }
        let _ = writeln!(svg, r#"<path d="{path}" {stroke}/>"#);
        for &(x, y, ..) in &series.points {
            let (px, py) = self.place(x, y);
            mark(svg, (px + shift, py), index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_stands_where_its_values_say() {
        let frame = Frame {
            at: (0.0, 0.0),
            x: (0.0, 0.5),
            y: (0.0, 1.0),
        };
        assert_eq!(frame.place(0.0, 0.0), (MARGIN[0], HEIGHT - MARGIN[3]));
        assert_eq!(frame.place(0.5, 1.0), (WIDTH - MARGIN[1], MARGIN[2]));
        assert_eq!(frame.place(0.0, -1.0), frame.place(0.0, 0.0));
    }

    #[test]
    fn names_are_escaped_and_tags_are_closed() {
        let points = vec![(0.1, 0.5, 0.2, 0.8), (0.2, 0.7, 0.6, 0.9)];
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
