//! Weight matrices as panels of cells (`cell`).

use half::f16;

use super::cell::{
    Brain, Cell, Half, I8, Iq1And2, Iq3S, Iq3Xxs, Iq4, Mxfp4, PANEL, S5, Table, U2, U3, U4, U5, U6,
};
use super::pool::Pool;
use crate::backend::{WeightType, WeightView};
use crate::error::{Error, Result};
use crate::quant::{GROUP, Group, group};

/// Eight scales as f32.
type Wide = [f32; PANEL];

/// The panels of one part, cells of one panel after the other.
pub(crate) enum Panels {
    /// Weights in floating point, which meet f32 activations.
    Float(Floats),
    /// Quantised weights, which meet rounded activations.
    Codes(Codes),
}

/// Panels of weights in floating point.
pub(crate) enum Floats {
    F32(Vec<Wide>),
    F16(Vec<Half>),
    BF16(Vec<Brain>),
}

/// Panels of quantised weights.
pub(crate) enum Codes {
    U2(Vec<U2>),
    U3(Vec<U3>),
    U4(Vec<U4<Half>>),
    U4Wide(Vec<U4<Wide>>),
    S5(Vec<S5>),
    U5(Vec<U5<Half>>),
    U5Wide(Vec<U5<Wide>>),
    U6(Vec<U6>),
    I8(Vec<I8>),
    Iq4Nl(Vec<Table<Half, Iq4>>),
    Iq4Xs(Vec<Table<Wide, Iq4>>),
    Mxfp4(Vec<Table<Brain, Mxfp4>>),
    Iq3Xxs(Vec<Table<[Wide; 2], Iq3Xxs>>),
    Iq3S(Vec<Table<[Wide; 2], Iq3S>>),
    Iq1And2(Vec<Table<[Wide; 2], Iq1And2>>),
}

/// Evaluates an expression with the cells of [`Floats`], whatever their type.
macro_rules! with_floats {
    ($floats:expr, $cells:ident => $body:expr) => {
        match $floats {
            Floats::F32($cells) => $body,
            Floats::F16($cells) => $body,
            Floats::BF16($cells) => $body,
        }
    };
}

/// Evaluates an expression with the cells of [`Codes`], whatever their type.
macro_rules! with_codes {
    ($codes:expr, $cells:ident => $body:expr) => {
        match $codes {
            Codes::U2($cells) => $body,
            Codes::U3($cells) => $body,
            Codes::U4($cells) => $body,
            Codes::U4Wide($cells) => $body,
            Codes::S5($cells) => $body,
            Codes::U5($cells) => $body,
            Codes::U5Wide($cells) => $body,
            Codes::U6($cells) => $body,
            Codes::I8($cells) => $body,
            Codes::Iq4Nl($cells) => $body,
            Codes::Iq4Xs($cells) => $body,
            Codes::Mxfp4($cells) => $body,
            Codes::Iq3Xxs($cells) => $body,
            Codes::Iq3S($cells) => $body,
            Codes::Iq1And2($cells) => $body,
        }
    };
}

pub(crate) use {with_codes, with_floats};

/// One of the stacked weights of a matrix.
pub(crate) struct Part {
    /// Output rows of this part.
    pub rows: usize,
    /// Index of its first row in the matrix.
    pub first: usize,
    pub panels: Panels,
}

/// A packed weight matrix: parts stacked along the output axis.
pub struct CpuMatrix {
    pub(crate) parts: Vec<Part>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl CpuMatrix {
    /// Output features `N`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features `C`.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        self.parts
            .iter()
            .map(|part| match &part.panels {
                Panels::Float(floats) => with_floats!(floats, cells => size_of_val(&cells[..])),
                Panels::Codes(codes) => with_codes!(codes, cells => size_of_val(&cells[..])),
            })
            .sum()
    }

    /// Packs `views`, stacked in order.
    pub(crate) fn load(pool: &Pool, views: &[WeightView<'_>]) -> Result<Self> {
        const OP: &str = "load_matrix";
        let cols = views.first().map_or(0, |view| view.cols);
        let (mut parts, mut rows) = (Vec::with_capacity(views.len()), 0usize);
        for view in views {
            if view.cols != cols {
                return Err(Error::Shape {
                    op: OP,
                    what: "cols of a stacked part",
                    got: view.cols,
                    want: cols,
                });
            }
            let row_bytes = view.row_bytes(OP)?;
            parts.push(Part {
                rows: view.rows,
                first: rows,
                panels: pack(pool, view, row_bytes)?,
            });
            rows = rows.saturating_add(view.rows);
        }
        Ok(Self { parts, rows, cols })
    }
}

/// Whether halves hold the scales and minima of every group exactly enough: -8 d of Q4_0 may
/// overflow.
fn fits_half(view: &WeightView<'_>) -> bool {
    view.dtype != WeightType::Q4_0
        || view
            .bytes
            .chunks_exact(18)
            .all(|b| f16::from_le_bytes([b[0], b[1]]).to_f32().abs() < 8000.0)
}

fn pack(pool: &Pool, view: &WeightView<'_>, row_bytes: usize) -> Result<Panels> {
    let source = Source { view, row_bytes };
    let floats = match view.dtype {
        WeightType::F32 => Floats::F32(source.float(pool, |rows| rows.map(f32::from_le_bytes))?),
        WeightType::F16 => Floats::F16(source.float(pool, |rows| Half(flatten(rows)))?),
        WeightType::BF16 => Floats::BF16(source.float(pool, |rows| Brain(flatten(rows)))?),
        _ => return Ok(Panels::Codes(source.codes(pool)?)),
    };
    Ok(Panels::Float(floats))
}

fn flatten(rows: [[u8; 2]; PANEL]) -> [u8; 16] {
    std::array::from_fn(|i| rows[i / 2][i % 2])
}

/// What panels are made of.
struct Source<'a> {
    view: &'a WeightView<'a>,
    row_bytes: usize,
}

impl Source<'_> {
    fn row(&self, index: usize) -> Option<&[u8]> {
        (index < self.view.rows)
            .then(|| &self.view.bytes[index * self.row_bytes..][..self.row_bytes])
    }

    /// The panels of quantised weights.
    fn codes(&self, pool: &Pool) -> Result<Codes> {
        Ok(match self.view.dtype {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
                unreachable!("weights in floating point have no codes")
            }
            WeightType::Q4_0 if fits_half(self.view) => {
                Codes::U4(self.groups(pool, U4::pack_signed)?)
            }
            WeightType::Q4_0 => Codes::U4Wide(self.groups(pool, U4::pack_signed)?),
            WeightType::Q4_1 => Codes::U4(self.groups(pool, U4::pack)?),
            WeightType::Q4K => Codes::U4Wide(self.groups(pool, U4::pack)?),
            WeightType::Q5_0 => Codes::S5(self.groups(pool, S5::pack)?),
            WeightType::Q5_1 => Codes::U5(self.groups(pool, U5::pack)?),
            WeightType::Q5K => Codes::U5Wide(self.groups(pool, U5::pack)?),
            WeightType::Q8_0 => Codes::I8(self.groups(pool, I8::pack)?),
            WeightType::Q2K => Codes::U2(self.groups(pool, U2::pack)?),
            WeightType::Tq1_0 | WeightType::Tq2_0 => {
                Codes::U2(self.groups(pool, U2::pack_ternary)?)
            }
            WeightType::Q3K => Codes::U3(self.groups(pool, U3::pack)?),
            WeightType::Q6K => Codes::U6(self.groups(pool, U6::pack)?),
            WeightType::Iq4Nl => Codes::Iq4Nl(self.groups(pool, Table::pack)?),
            WeightType::Iq4Xs => Codes::Iq4Xs(self.groups(pool, Table::pack)?),
            WeightType::Mxfp4 => Codes::Mxfp4(self.groups(pool, Table::pack)?),
            WeightType::Iq3Xxs => Codes::Iq3Xxs(self.groups(pool, Table::pack)?),
            WeightType::Iq3S => Codes::Iq3S(self.groups(pool, Table::pack)?),
            WeightType::Iq1S
            | WeightType::Iq1M
            | WeightType::Iq2Xxs
            | WeightType::Iq2Xs
            | WeightType::Iq2S => Codes::Iq1And2(self.groups(pool, Table::pack)?),
        })
    }

    /// Packs panels in parallel; `cell(panel, index)` makes one cell.
    fn panels<C: Cell>(
        &self,
        pool: &Pool,
        cell: impl Fn(usize, usize) -> C + Sync,
    ) -> Result<Vec<C>> {
        let per_panel = self.view.cols / C::INPUTS;
        let count = self.view.rows.div_ceil(PANEL).saturating_mul(per_panel);
        let mut cells = Vec::new();
        cells
            .try_reserve_exact(count)
            .map_err(|_| Error::OutOfMemory {
                what: "packed weights",
                bytes: count.saturating_mul(size_of::<C>()),
            })?;
        cells.resize(count, C::ZERO);
        if per_panel > 0 {
            pool.chunks(&mut cells, per_panel, &|panel, cells| {
                for (index, out) in cells.iter_mut().enumerate() {
                    *out = cell(panel, index);
                }
            });
        }
        Ok(cells)
    }

    fn groups<C: Cell>(
        &self,
        pool: &Pool,
        pack: impl Fn(&[Group; PANEL]) -> C + Sync,
    ) -> Result<Vec<C>> {
        let first = self.view.skip / GROUP;
        self.panels(pool, |panel, index| {
            pack(&std::array::from_fn(|r| {
                self.row(panel * PANEL + r)
                    .and_then(|row| group(self.view.dtype, row, first + index))
                    .unwrap_or(Group::ZERO)
            }))
        })
    }

    fn float<C: Cell, const N: usize>(
        &self,
        pool: &Pool,
        pack: impl Fn([[u8; N]; PANEL]) -> C + Sync,
    ) -> Result<Vec<C>> {
        self.panels(pool, |panel, index| {
            pack(std::array::from_fn(|r| {
                self.row(panel * PANEL + r)
                    .map_or([0; N], |row| row.as_chunks::<N>().0[index])
            }))
        })
    }
}
