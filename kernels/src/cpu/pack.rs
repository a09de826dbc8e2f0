//! Weight matrices in the layout of the kernels: panels of 8 output rows, input by input.
//!
//! Lane `r` of every vector belongs to output row `r` of the panel, so each output element has one
//! lane and is summed along the inputs in order; that is the determinism contract. In quantised
//! panels a 32-bit lane holds the codes of four consecutive inputs, the operand of a u8 x i8 dot
//! product. Rows beyond the matrix are zero.
//!
//! | form | of | bytes per 8 rows x 32 inputs |
//! |---|---|---|
//! | `U4` with f16 scales | Q4_0, Q4_1 | 160 |
//! | `U4` with f32 scales | Q4_K | 192 |
//! | `I8` | Q8_0 | 272 |
//! | `U6` | Q6_K | 320 |
//! | `[f32; 8]`, `Half`, `Brain` per input | F32, F16, BF16 | 1024, 512, 512 |

use half::f16;

use super::pool::Pool;
use super::quant::{GROUP, Group, group};
use super::simd::Simd;
use crate::backend::{WeightType, WeightView};
use crate::error::{Error, Result};

/// Output rows of a panel.
pub(crate) const PANEL: usize = 8;

/// One input of `P` panels as f32.
pub(crate) type Lines<const P: usize> = [[f32; PANEL]; P];

/// One step of a panel: [`Cell::INPUTS`] inputs of 8 rows.
pub(crate) trait Cell: Copy + Send + Sync {
    /// Inputs of a cell.
    const INPUTS: usize;
    /// All weights zero.
    const ZERO: Self;
    /// Writes the weights as f32: `out[k][p][r]` for input `k` and row `r`; `out.len() == INPUTS`.
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]);
}

/// Eight scales, one per row.
pub(crate) trait Scales: Copy + Send + Sync {
    const ZERO: Self;
    fn load<S: Simd>(&self, s: S) -> S::F;
    fn store(values: [f32; PANEL]) -> Self;
}

impl Scales for [f32; PANEL] {
    const ZERO: Self = [0.0; PANEL];
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F {
        s.load(self)
    }
    fn store(values: [f32; PANEL]) -> Self {
        values
    }
}

/// Eight IEEE halves.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Half(pub [u8; 16]);

impl Scales for Half {
    const ZERO: Self = Self([0; 16]);
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F {
        s.load_f16(&self.0)
    }
    fn store(values: [f32; PANEL]) -> Self {
        Self(std::array::from_fn(|i| {
            f16::from_f32(values[i / 2]).to_le_bytes()[i % 2]
        }))
    }
}

/// Eight bfloat16.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Brain(pub [u8; 16]);

/// 4-bit codes. Byte `4r + j` of `codes[i]` holds inputs `8i + j` (low nibble) and `8i + 4 + j` of
/// row `r`.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct U4<W> {
    pub scale: W,
    pub min: W,
    pub codes: [[u8; 32]; 4],
}

/// 8-bit codes plus 128. Byte `4r + j` of `codes[i]` is input `4i + j` of row `r`.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct I8 {
    pub scale: Half,
    pub codes: [[u8; 32]; 8],
}

/// 6-bit codes plus 32, laid out as in [`I8`]; a scale for each 16 inputs.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct U6 {
    pub scale: [[f32; PANEL]; 2],
    pub codes: [[u8; 32]; 8],
}

impl Cell for [f32; PANEL] {
    const INPUTS: usize = 1;
    const ZERO: Self = [0.0; PANEL];
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        s.store(s.load(self), &mut out[0][p]);
    }
}

impl Cell for Half {
    const INPUTS: usize = 1;
    const ZERO: Self = Self([0; 16]);
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        s.store(s.load_f16(&self.0), &mut out[0][p]);
    }
}

impl Cell for Brain {
    const INPUTS: usize = 1;
    const ZERO: Self = Self([0; 16]);
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        s.store(s.load_bf16(&self.0), &mut out[0][p]);
    }
}

impl<W: Scales> Cell for U4<W> {
    const INPUTS: usize = GROUP;
    const ZERO: Self = Self {
        scale: W::ZERO,
        min: W::ZERO,
        codes: [[0; 32]; 4],
    };
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        let (scale, min, mask) = (self.scale.load(s), self.min.load(s), s.splat_i32(15));
        let weight = |code| s.add(s.mul(s.to_f32(s.and(code, mask)), scale), min);
        for (codes, out) in self.codes.iter().zip(out.as_chunks_mut::<8>().0) {
            let v = s.load_i(codes);
            s.store(weight(v), &mut out[0][p]);
            s.store(weight(s.shr::<8>(v)), &mut out[1][p]);
            s.store(weight(s.shr::<16>(v)), &mut out[2][p]);
            s.store(weight(s.shr::<24>(v)), &mut out[3][p]);
            s.store(weight(s.shr::<4>(v)), &mut out[4][p]);
            s.store(weight(s.shr::<12>(v)), &mut out[5][p]);
            s.store(weight(s.shr::<20>(v)), &mut out[6][p]);
            s.store(weight(s.shr::<28>(v)), &mut out[7][p]);
        }
    }
}

/// Four inputs of byte codes as f32: `(code - offset) * scale`.
#[inline(always)]
fn unpack_bytes<S: Simd>(s: S, codes: &[u8; 32], offset: i32, scale: S::F) -> [S::F; 4] {
    let (v, mask, offset) = (s.load_i(codes), s.splat_i32(255), s.splat_i32(offset));
    let weight = |code| s.mul(s.to_f32(s.sub_i32(s.and(code, mask), offset)), scale);
    [
        weight(v),
        weight(s.shr::<8>(v)),
        weight(s.shr::<16>(v)),
        weight(s.shr::<24>(v)),
    ]
}

impl Cell for I8 {
    const INPUTS: usize = GROUP;
    const ZERO: Self = Self {
        scale: <Half as Scales>::ZERO,
        codes: [[128; 32]; 8],
    };
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        let scale = Scales::load(&self.scale, s);
        for (codes, out) in self.codes.iter().zip(out.as_chunks_mut::<4>().0) {
            for (k, weights) in unpack_bytes(s, codes, 128, scale).into_iter().enumerate() {
                s.store(weights, &mut out[k][p]);
            }
        }
    }
}

impl Cell for U6 {
    const INPUTS: usize = GROUP;
    const ZERO: Self = Self {
        scale: [[0.0; PANEL]; 2],
        codes: [[32; 32]; 8],
    };
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        for (i, (codes, out)) in self
            .codes
            .iter()
            .zip(out.as_chunks_mut::<4>().0)
            .enumerate()
        {
            for (k, weights) in unpack_bytes(s, codes, 32, s.load(&self.scale[i / 4]))
                .into_iter()
                .enumerate()
            {
                s.store(weights, &mut out[k][p]);
            }
        }
    }
}

/// Bytes of eight rows' codes: byte `4r + j` of vector `i` is `f(r, 4i + j)`.
fn interleave(i: usize, f: impl Fn(usize, usize) -> u8) -> [u8; 32] {
    std::array::from_fn(|b| f(b / 4, 4 * i + b % 4))
}

fn pack_u4<W: Scales>(rows: &[Group; PANEL]) -> U4<W> {
    let code = |r: usize, k: usize| rows[r].codes[k] as u8;
    U4 {
        scale: W::store(rows.map(|g| g.scale[0])),
        min: W::store(rows.map(|g| g.min)),
        codes: std::array::from_fn(|i| {
            let (low, high) = (interleave(2 * i, code), interleave(2 * i + 1, code));
            std::array::from_fn(|b| low[b] | high[b] << 4)
        }),
    }
}

fn pack_i8(rows: &[Group; PANEL]) -> I8 {
    I8 {
        scale: Half::store(rows.map(|g| g.scale[0])),
        codes: std::array::from_fn(|i| interleave(i, |r, k| (rows[r].codes[k] as u8) ^ 0x80)),
    }
}

fn pack_u6(rows: &[Group; PANEL]) -> U6 {
    U6 {
        scale: [rows.map(|g| g.scale[0]), rows.map(|g| g.scale[1])],
        codes: std::array::from_fn(|i| interleave(i, |r, k| (rows[r].codes[k] + 32) as u8)),
    }
}

/// The panels of one part, cells of one panel after the other.
pub(crate) enum Panels {
    F32(Vec<[f32; PANEL]>),
    F16(Vec<Half>),
    BF16(Vec<Brain>),
    U4(Vec<U4<Half>>),
    U4Wide(Vec<U4<[f32; PANEL]>>),
    I8(Vec<I8>),
    U6(Vec<U6>),
}

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
                Panels::F32(cells) => size_of_val(&cells[..]),
                Panels::F16(cells) => size_of_val(&cells[..]),
                Panels::BF16(cells) => size_of_val(&cells[..]),
                Panels::U4(cells) => size_of_val(&cells[..]),
                Panels::U4Wide(cells) => size_of_val(&cells[..]),
                Panels::I8(cells) => size_of_val(&cells[..]),
                Panels::U6(cells) => size_of_val(&cells[..]),
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
            let row_bytes = view.dtype.bytes(cols).ok_or(Error::Multiple {
                op: OP,
                what: "cols",
                got: cols,
                multiple: view.dtype.block().weights,
            })?;
            let want = row_bytes.saturating_mul(view.rows);
            if view.bytes.len() != want {
                return Err(Error::Shape {
                    op: OP,
                    what: "bytes",
                    got: view.bytes.len(),
                    want,
                });
            }
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
    Ok(match view.dtype {
        WeightType::F32 => Panels::F32(source.float(pool, |rows| rows.map(f32::from_le_bytes))?),
        WeightType::F16 => Panels::F16(source.float(pool, |rows| Half(flatten(rows)))?),
        WeightType::BF16 => Panels::BF16(source.float(pool, |rows| Brain(flatten(rows)))?),
        WeightType::Q4_0 | WeightType::Q4_1 if fits_half(view) => {
            Panels::U4(source.groups(pool, pack_u4)?)
        }
        WeightType::Q4_0 | WeightType::Q4_1 | WeightType::Q4K => {
            Panels::U4Wide(source.groups(pool, pack_u4)?)
        }
        WeightType::Q8_0 => Panels::I8(source.groups(pool, pack_i8)?),
        WeightType::Q6K => Panels::U6(source.groups(pool, pack_u6)?),
    })
}

fn flatten(rows: [[u8; 2]; PANEL]) -> [u8; 16] {
    std::array::from_fn(|i| rows[i / 2][i % 2])
}

struct Source<'a> {
    view: &'a WeightView<'a>,
    row_bytes: usize,
}

impl Source<'_> {
    fn row(&self, index: usize) -> Option<&[u8]> {
        (index < self.view.rows)
            .then(|| &self.view.bytes[index * self.row_bytes..][..self.row_bytes])
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
        self.panels(pool, |panel, index| {
            pack(&std::array::from_fn(|r| {
                self.row(panel * PANEL + r)
                    .and_then(|row| group(self.view.dtype, row, index))
                    .unwrap_or_default()
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
