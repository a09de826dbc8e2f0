//! Plots as SVG text: lines over the share that is kept, and heat maps.

use std::fmt::Write;

/// Colours after Okabe and Ito, told apart with any colour vision; then reused with dashes.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999"];
const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 230.0;
/// Left, right, top, bottom.
const MARGIN: [f64; 4] = [52.0, 14.0, 26.0, 40.0];
const LEGEND_LINE: f64 = 17.0;

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
    /// Lines.
    pub series: Vec<Series>,
}

/// Panels in rows of three with one legend. `y_range` fixes the vertical axis, else all panels share that of the data.
pub fn lines(panels: &[Panel], x_label: &str, y_label: &str, y_range: Option<(f64, f64)>) -> String {
    let mut names: Vec<&str> = Vec::new();
    for series in panels.iter().flat_map(|p| &p.series) {
        if !names.contains(&&*series.name) {
            names.push(&series.name);
        }
    }
    let points = || panels.iter().flat_map(|p| &p.series).flat_map(|s| &s.points);
    let x_max = points().map(|p| p.0).filter(|x| *x < 0.999).fold(0.0, f64::max).max(1e-3) * 1.1;
    let bounds = points().fold((f64::MAX, f64::MIN), |(l, h), p| (l.min(p.2), h.max(p.3)));
    let (low, high) = y_range.unwrap_or(if bounds.0 < bounds.1 { bounds } else { (bounds.0 - 1.0, bounds.0 + 1.0) });
    let columns = panels.len().clamp(1, 3);
    let rows = panels.len().div_ceil(columns);
    let (width, height) = (columns as f64 * WIDTH, rows as f64 * HEIGHT);
    let mut svg = open(width, height + names.len().div_ceil(columns) as f64 * LEGEND_LINE + 10.0);
    for (i, panel) in panels.iter().enumerate() {
        let at = ((i % columns) as f64 * WIDTH, (i / columns) as f64 * HEIGHT);
        let frame = Frame { at, x: (0.0, x_max), y: (low, high) };
        frame.axes(&mut svg, &panel.title, x_label, y_label);
        for series in &panel.series {
            let index = names.iter().position(|n| *n == series.name).unwrap_or(0);
            frame.line(&mut svg, series, index);
        }
    }
    for (i, name) in names.iter().enumerate() {
        let x = (i % columns) as f64 * WIDTH + MARGIN[0];
        let y = height + (i / columns) as f64 * LEGEND_LINE + 8.0;
        let _ = writeln!(svg, r#"<path d="M{x} {y}h24" {}/>"#, stroke(i));
        text(&mut svg, (x + 30.0, y + 4.0), "start", name);
    }
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
        (self.at.0 + left + across * (WIDTH - left - right), self.at.1 + HEIGHT - bottom - up * (HEIGHT - top - bottom))
    }

    fn axes(&self, svg: &mut String, title: &str, x_label: &str, y_label: &str) {
        let (x0, y0) = self.place(self.x.0, self.y.0);
        let (x1, y1) = self.place(self.x.1, self.y.1);
        for step in 0..=4 {
            let part = f64::from(step) / 4.0;
            let y = self.y.0 + part * (self.y.1 - self.y.0);
            let x = self.x.0 + part * (self.x.1 - self.x.0);
            let (px, py) = self.place(x, y);
            let _ = writeln!(svg, r##"<path d="M{x0:.1} {py:.1}H{x1:.1}" stroke="#ddd"/>"##);
            text(svg, (x0 - 5.0, py + 4.0), "end", &format!("{y:.2}"));
            text(svg, (px, y0 + 15.0), "middle", &format!("{:.1} %", x * 100.0));
        }
        let _ = writeln!(svg, r##"<path d="M{x0:.1} {y1:.1}V{y0:.1}H{x1:.1}" fill="none" stroke="#444"/>"##);
        text(svg, (x0, y1 - 9.0), "start", &format!("{title}: {y_label}"));
        text(svg, ((x0 + x1) / 2.0, y0 + 30.0), "middle", x_label);
    }

    fn line(&self, svg: &mut String, series: &Series, index: usize) {
        let stroke = stroke(index);
        if series.reference {
            if let Some(point) = series.points.first() {
                let ((x0, y), (x1, _)) = (self.place(self.x.0, point.1), self.place(self.x.1, point.1));
                let _ = writeln!(svg, r#"<path d="M{x0:.1} {y:.1}H{x1:.1}" {stroke}/>"#);
            }
            return;
        }
        let mut path = String::new();
        for (i, &(x, y, low, high)) in series.points.iter().enumerate() {
            let (px, py) = self.place(x, y);
            let _ = write!(path, "{}{px:.1} {py:.1}", if i == 0 { 'M' } else { 'L' });
            let (top, bottom) = (self.place(x, high).1, self.place(x, low).1);
            let _ = writeln!(svg, r#"<path d="M{px:.1} {top:.1}V{bottom:.1}" {stroke} opacity="0.35"/>"#);
            let colour = COLOURS[index % COLOURS.len()];
            let _ = writeln!(svg, r#"<circle cx="{px:.1}" cy="{py:.1}" r="3" fill="{colour}"/>"#);
        }
        let _ = writeln!(svg, r#"<path d="{path}" {stroke}/>"#);
    }
}

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

/// Heat maps one below the other.
pub fn heat(maps: &[HeatMap]) -> String {
    const CELL: (f64, f64) = (62.0, 26.0);
    const LEFT: f64 = 110.0;
    let height = |m: &HeatMap| 66.0 + m.rows.0.len() as f64 * CELL.1;
    let columns = maps.iter().map(|m| m.columns.0.len()).max().unwrap_or(0);
    let mut svg = open(LEFT + columns as f64 * CELL.0 + 160.0, maps.iter().map(height).sum::<f64>() + 10.0);
    let mut top = 0.0;
    for map in maps {
        text(&mut svg, (10.0, top + 18.0), "start", &map.title);
        for (r, row) in map.values.iter().enumerate() {
            let y = top + 28.0 + r as f64 * CELL.1;
            text(&mut svg, (LEFT - 6.0, y + 17.0), "end", &format!("{} {}", map.rows.1, map.rows.0[r]));
            for (c, value) in row.iter().enumerate() {
                let Some(value) = value else { continue };
                let x = LEFT + c as f64 * CELL.0;
                // From orange to blue by way of white: apart with any colour vision.
                let part = |from: f64, to: f64| (from + (to - from) * (value - 0.5).abs() * 2.0).round();
                let [r, g, b] = if *value < 0.5 { [230.0, 159.0, 0.0] } else { [86.0, 180.0, 233.0] };
                let (r, g, b) = (part(255.0, r), part(255.0, g), part(255.0, b));
                let _ = writeln!(
                    svg,
                    r##"<rect x="{x}" y="{y}" width="{}" height="{}" fill="rgb({r},{g},{b})" stroke="#fff"/>"##,
                    CELL.0, CELL.1
                );
                text(&mut svg, (x + CELL.0 / 2.0, y + 17.0), "middle", &format!("{value:.2}"));
            }
        }
        let y = top + 28.0 + map.rows.0.len() as f64 * CELL.1 + 15.0;
        for (c, name) in map.columns.0.iter().enumerate() {
            text(&mut svg, (LEFT + (c as f64 + 0.5) * CELL.0, y), "middle", name);
        }
        text(&mut svg, (LEFT + map.columns.0.len() as f64 * CELL.0 + 8.0, y), "start", &map.columns.1);
        top += height(map);
    }
    svg.push_str("</svg>\n");
    svg
}

fn open(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    )
}

fn stroke(index: usize) -> String {
    let dash = if index / COLOURS.len() % 2 == 1 { r#" stroke-dasharray="5 3""# } else { "" };
    format!(r#"fill="none" stroke="{}" stroke-width="1.6"{dash}"#, COLOURS[index % COLOURS.len()])
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, what: &str) {
    let what = what.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{what}</text>"#);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_stands_where_its_values_say() {
        let frame = Frame { at: (0.0, 0.0), x: (0.0, 0.5), y: (0.0, 1.0) };
        assert_eq!(frame.place(0.0, 0.0), (MARGIN[0], HEIGHT - MARGIN[3]));
        assert_eq!(frame.place(0.5, 1.0), (WIDTH - MARGIN[1], MARGIN[2]));
        assert_eq!(frame.place(0.0, -1.0), frame.place(0.0, 0.0));
    }

    #[test]
    fn names_are_escaped_and_tags_are_closed() {
        let points = vec![(0.1, 0.5, 0.2, 0.8), (0.2, 0.7, 0.6, 0.9)];
        let series = Series { name: "a<b&c".into(), points, reference: false };
        let svg = lines(&[Panel { title: "t".into(), series: vec![series] }], "x", "y", Some((0.0, 1.0)));
        assert!(svg.contains("a&lt;b&amp;c") && !svg.contains("a<b"));
        assert_eq!(svg.matches("<circle").count(), 2);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(!svg.contains("NaN") && svg.ends_with("</svg>\n"));
        assert!(!lines(&[], "x", "y", None).contains("NaN"));
    }
}
