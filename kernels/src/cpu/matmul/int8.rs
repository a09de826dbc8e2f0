//! Products of quantised weights with activations rounded to 8 bits.
//!
//! An activation row is rounded per group of 32: scale `d = max|x| / 127`, code `round(x * 127 /
//! max|x|)`, as ggml's Q8_0 but with an f32 scale. A group's dot product is an exact integer,
//! whatever the order; the groups are then summed in order in f32: `acc = fma(dot, scale * d,
//! acc)`, `acc = fma(min, d * sum(codes), acc)`. What each type of weights makes of this is in
//! `cells`.

mod cells;

pub(crate) use cells::IntCell;

use super::super::cell::PANEL;
use super::super::pool::Pool;
use super::super::simd::{Kernel, Simd, SimdLevel};
use super::super::totals::{Form, Line};
use super::task::{Cut, Sink};
use super::tile::Tile;
use crate::quant::GROUP;

/// Token rows of a full tile.
const TILE: usize = 4;
/// Bytes of activations that stay in the second-level cache while a task's panels pass.
const BLOCK_BYTES: usize = 160 << 10;

/// 32-bit words of one group of one token row.
const WORDS: usize = size_of::<Tile<1>>() / 4;

/// Rounded activations: tiles of [`TILE`] rows (the last one of what remains), each its groups in
/// order.
pub(crate) struct Rounded<'a> {
    words: &'a [u32],
    rows: usize,
    groups: usize,
}

impl<'a> Rounded<'a> {
    /// Rounds `rows` rows of `x`; `words` is the memory that holds the result. Row length: a
    /// multiple of 32.
    pub fn new(
        pool: &Pool,
        simd: SimdLevel,
        x: &[f32],
        rows: usize,
        words: &'a mut Vec<u32>,
    ) -> Self {
        let groups = x.len() / rows.max(1) / GROUP;
        words.resize(rows * groups * WORDS, 0);
        let per_row = groups * WORDS;
        if per_row > 0 {
            let round = |tile: usize, words: &mut [u32]| {
                let count = words.len() / per_row;
                let x = &x[tile * TILE * groups * GROUP..][..count * groups * GROUP];
                simd.dispatch(Round {
                    x,
                    rows: count,
                    words,
                });
            };
            // A tile takes a microsecond or two: not worth another thread for a few.
            if rows > 4 * TILE {
                pool.chunks(words, TILE * per_row, &round);
            } else {
                words
                    .chunks_mut(TILE * per_row)
                    .enumerate()
                    .for_each(|(tile, words)| round(tile, words));
            }
        }
        Self {
            words,
            rows,
            groups,
        }
    }

    /// Rows of a block of tiles that fits [`BLOCK_BYTES`].
    fn block(&self) -> usize {
        (BLOCK_BYTES / (self.groups * WORDS * 4).max(1)).max(TILE) / TILE * TILE
    }

    #[inline(always)]
    fn tile<const T: usize>(&self, row: usize) -> &[Tile<T>] {
        let per_row = self.groups * WORDS;
        bytemuck::cast_slice(&self.words[row * per_row..][..T * per_row])
    }
}

/// Rounds the rows of one tile.
struct Round<'a> {
    x: &'a [f32],
    rows: usize,
    words: &'a mut [u32],
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.rows {
            1 => self.tile::<S, 1>(s),
            2 => self.tile::<S, 2>(s),
            3 => self.tile::<S, 3>(s),
            _ => self.tile::<S, TILE>(s),
        }
    }
}

impl Round<'_> {
    #[inline(always)]
    fn tile<S: Simd, const T: usize>(self, s: S) {
        let tiles: &mut [Tile<T>] = bytemuck::cast_slice_mut(self.words);
        for (t, x) in self.x.chunks_exact(self.x.len() / T).enumerate() {
            for (tile, x) in tiles.iter_mut().zip(x.as_chunks::<GROUP>().0) {
                round_group(s, x, t, tile);
            }
        }
    }
}

/// Rounds one group. A group with an infinity or NaN gets scale NaN, so that the product shows it.
#[inline(always)]
fn round_group<S: Simd, const T: usize>(s: S, x: &[f32; GROUP], t: usize, tile: &mut Tile<T>) {
    let lanes: [S::F; 4] = std::array::from_fn(|i| s.load(&x.as_chunks::<8>().0[i]));
    // Magnitudes compare as their bits, and NaN compares above infinity.
    let magnitude = lanes.map(|x| s.and(s.bits(x), s.splat_i32(i32::MAX)));
    let mut bits = [0; 8];
    s.store_i(
        s.max_i32(
            s.max_i32(magnitude[0], magnitude[1]),
            s.max_i32(magnitude[2], magnitude[3]),
        ),
        &mut bits,
    );
    let largest = f32::from_bits(bits.into_iter().fold(0, i32::max) as u32);
    let scale = if largest.is_finite() {
        largest / 127.0
    } else {
        f32::NAN
    };
    // Subnormal magnitudes have no finite inverse; they round to zero.
    let inverse = if scale > f32::MIN_POSITIVE {
        1.0 / scale
    } else {
        0.0
    };
    // Of each 16 codes, those of even and of odd pairs.
    let mut pairs = [[0; 2]; 2];
    for (i, x) in lanes.into_iter().enumerate() {
        let x = if largest.is_finite() { x } else { s.splat(0.0) };
        let mut codes = [0; 8];
        s.store_i(s.round(s.mul(x, s.splat(inverse))), &mut codes);
        for (half, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
            tile.quads[2 * i + half][t] = codes.map(|code| code as u8);
            pairs[i / 2][0] += codes[0] + codes[1];
            pairs[i / 2][1] += codes[2] + codes[3];
        }
    }
    let sums = pairs.map(|[even, odd]| even + odd);
    tile.scale[t] = scale;
    tile.sum[t] = scale * (sums[0] + sums[1]) as f32;
    tile.sums[t] = two_words(sums[0], sums[1]);
    let centre = [0, 1].map(|pair| -16 * (pairs[0][pair] + pairs[1][pair]));
    tile.centre[t] = two_words(centre[0], centre[1]);
}

/// Two numbers of 16 bits, the first one in the low word.
const fn two_words(low: i32, high: i32) -> i32 {
    low & 0xffff | high << 16
}

/// Products of some panels with all rows.
pub(crate) struct IntTask<'a, C, F: Form> {
    /// Cells of the part.
    pub cells: &'a [C],
    pub cut: Cut<'a>,
    pub x: &'a Rounded<'a>,
    pub sink: Sink<'a, F::Out>,
}

/// Units whose sums are kept until they are added up, all together.
const UNITS: usize = 16;
/// Sums of a unit for the rows of a tile.
type Sums = [Line; TILE];

impl<C: IntCell, F: Form> Kernel for IntTask<'_, C, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.tiles(s, &mut [[[0.0; PANEL]; TILE]; UNITS]);
    }
}

impl<C: IntCell, F: Form> IntTask<'_, C, F> {
    /// `sums` is where units wait to be added up.
    #[inline(always)]
    fn tiles<S: Simd>(&self, s: S, sums: &mut [Sums]) {
        let (rows, block) = (self.x.rows, self.x.block());
        for start in (0..rows).step_by(block) {
            let end = rows.min(start + block);
            for panel in self.cut.panels.clone() {
                for row in (start..end).step_by(TILE) {
                    match end - row {
                        1 => self.tile::<S, 1>(s, panel, row, sums),
                        2 => self.tile::<S, 2>(s, panel, row, sums),
                        3 => self.tile::<S, 3>(s, panel, row, sums),
                        _ => self.tile::<S, TILE>(s, panel, row, sums),
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const T: usize>(&self, s: S, panel: usize, row: usize, sums: &mut [Sums]) {
        let groups = self.x.groups;
        let (cells, x) = (
            &self.cells[panel * groups..][..groups],
            self.x.tile::<T>(row),
        );
        let ends = self.cut.ends.of(GROUP);
        let mut totals = [F::zero(ends.len()); T];
        let mut start = 0;
        for ends in ends.chunks(UNITS) {
            let sums = &mut sums[..ends.len()];
            start = s.call(Units {
                cells,
                x,
                start,
                ends,
                sums,
            });
            let add = AddUnits::<F> {
                totals: &mut totals,
                sums,
            };
            // One unit is only copied: not worth a call.
            if let [_] = ends {
                add.run(s);
            } else {
                s.call(add);
            }
        }
        for (t, total) in totals.iter().enumerate() {
            self.sink.write(panel, row + t, F::values(s, total));
        }
    }
}

/// The sums of some units for `T` token rows. A function of its own, so that it is compiled once
/// for a type of weights and not again for every form of result.
struct Units<'a, C, const T: usize> {
    cells: &'a [C],
    x: &'a [Tile<T>],
    /// The group that the first unit begins with.
    start: usize,
    /// Columns that units end at.
    ends: &'a [usize],
    sums: &'a mut [Sums],
}

impl<C: IntCell, const T: usize> Kernel for Units<'_, C, T> {
    /// The group behind the last unit.
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        let mut start = self.start;
        for (end, sums) in self.ends.iter().zip(self.sums) {
            let end = end / GROUP;
            let acc = unit::<S, C, T>(s, &self.cells[start..end], &self.x[start..end]);
            sums.iter_mut()
                .zip(acc)
                .for_each(|(sum, acc)| s.store(acc, sum));
            start = end;
        }
        start
    }
}

/// The sums of consecutive groups for `T` token rows.
#[inline(always)]
fn unit<S: Simd, C: IntCell, const T: usize>(s: S, cells: &[C], x: &[Tile<T>]) -> [S::F; T] {
    // Said once, so that the loop need not check: units are short.
    assert!(cells.len() <= x.len());
    let mut acc = [s.splat(0.0); T];
    for group in 0..cells.len() {
        cells[group].accumulate(s, &x[group], &mut acc);
    }
    acc
}

/// Adds the units of each row of a tile.
struct AddUnits<'a, F: Form> {
    totals: &'a mut [F::Total],
    sums: &'a [[Line; TILE]],
}

impl<F: Form> Kernel for AddUnits<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (t, total) in self.totals.iter_mut().enumerate() {
            F::add(s, total, self.sums.iter().map(|sums| &sums[t]));
        }
    }
}
