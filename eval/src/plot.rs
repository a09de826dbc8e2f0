//! Plots as SVG text: lines over the share that is kept, bars by task, heat maps. They know nothing
//! of an evaluation. They follow the reader's light or dark scheme, and series are told apart by
//! colour (after Okabe and Ito), mark and dash.

mod bars;
mod heat;
mod lines;
mod svg;

pub use bars::{Bar, Bars, Group, bars};
pub use heat::{Axis, HeatMap, heat};
pub use lines::{Panel, Point, Series, lines};
