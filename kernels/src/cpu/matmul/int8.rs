//! Products of quantised weights with activations rounded to 8 bits.
//!
//! An activation row is rounded per group of 32: scale `d = max|x| / 127`, code `round(x * 127 /
//! max|x|)`, as ggml's Q8_0 but with an f32 scale. A group's dot product is an exact integer,
//! whatever the order; the groups are then summed in order in f32: `acc = fma(dot, scale * d,
//! acc)`, `acc = fma(min, d * sum(codes), acc)`.

use super::super::pack::{Cell, I8, PANEL, Scales, U4, U6};
use super::super::pool::Pool;
use super::super::quant::GROUP;
use super::super::simd::{Kernel, Simd, SimdLevel};
use super::super::totals::{Form, Line};
use super::task::{Cut, Sink};

/// Token rows of a full tile.
const TILE: usize = 4;
/// Bytes of activations that stay in the second-level cache while a task's panels pass.
const BLOCK_BYTES: usize = 160 << 10;

/// One group of `T` token rows.
#[derive(Clone, Copy)]
#[repr(C)]
struct Tile<const T: usize> {
    /// Codes (i8) of four inputs of each row.
    quads: [[[u8; 4]; T]; 8],
    /// `d`.
    scale: [f32; T],
    /// `d` times the sum of the codes.
    sum: [f32; T],
    /// Sums of the first and the last 16 codes.
    sums: [[i32; T]; 2],
}

// SAFETY: 4-byte fields and bytes in multiples of 4, so no padding; zero bytes are valid.
unsafe impl<const T: usize> bytemuck::Zeroable for Tile<T> {}
// SAFETY: as above; every bit pattern is valid, and there is no interior mutability or pointer.
unsafe impl<const T: usize> bytemuck::Pod for Tile<T> {}

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
    let mut sums = [0; 2];
    for (i, x) in lanes.into_iter().enumerate() {
        let x = if largest.is_finite() { x } else { s.splat(0.0) };
        let mut codes = [0; 8];
        s.store_i(s.round(s.mul(x, s.splat(inverse))), &mut codes);
        for (half, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
            tile.quads[2 * i + half][t] = codes.map(|code| code as u8);
            sums[i / 2] += codes.iter().sum::<i32>();
        }
    }
    tile.scale[t] = scale;
    tile.sum[t] = scale * (sums[0] + sums[1]) as f32;
    (tile.sums[0][t], tile.sums[1][t]) = (sums[0], sums[1]);
}

/// A cell that multiplies rounded activations.
pub(crate) trait IntCell: Cell {
    /// Adds the products of one group to the accumulators of 8 rows for each of `T` token rows.
    #[expect(private_interfaces, reason = "tiles are this module's own layout")]
    fn accumulate<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]);
}

impl<W: Scales> IntCell for U4<W> {
    #[expect(private_interfaces, reason = "tiles are this module's own layout")]
    #[inline(always)]
    fn accumulate<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]) {
        let mask = s.splat_bytes(&[15; 4]);
        let mut dots = [s.splat_i32(0); T];
        for i in 0..4 {
            let codes = s.load_i(&self.codes[i]);
            let (low, high) = (s.and(codes, mask), s.and(s.shr::<4>(codes), mask));
            // 8 sums of 2 products: 8 * 2 * 15 * 127 = 30480 fits i16.
            for (t, dot) in dots.iter_mut().enumerate() {
                *dot = s.add_i16(*dot, s.dot_u8_i8(low, s.splat_bytes(&x.quads[2 * i][t])));
                *dot = s.add_i16(
                    *dot,
                    s.dot_u8_i8(high, s.splat_bytes(&x.quads[2 * i + 1][t])),
                );
            }
        }
        let (scale, min) = (self.scale.load(s), self.min.load(s));
        for t in 0..T {
            let dot = s.to_f32(s.dot_i16(dots[t], s.splat_i16(1)));
            acc[t] = s.fma(dot, s.mul(scale, s.splat(x.scale[t])), acc[t]);
            acc[t] = s.fma(min, s.splat(x.sum[t]), acc[t]);
        }
    }
}

impl IntCell for I8 {
    #[expect(private_interfaces, reason = "tiles are this module's own layout")]
    #[inline(always)]
    fn accumulate<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]) {
        let mask = s.splat_bytes(&[15; 4]);
        let (mut lows, mut highs) = ([s.splat_i32(0); T], [s.splat_i32(0); T]);
        for i in 0..8 {
            // A u8 x i8 product of full bytes would not fit i16: two nibbles, 8 * 2 * 15 * 127 =
            // 30480 each.
            let codes = s.load_i(&self.codes[i]);
            let (low, high) = (s.and(codes, mask), s.and(s.shr::<4>(codes), mask));
            for t in 0..T {
                let x = s.splat_bytes(&x.quads[i][t]);
                lows[t] = s.add_i16(lows[t], s.dot_u8_i8(low, x));
                highs[t] = s.add_i16(highs[t], s.dot_u8_i8(high, x));
            }
        }
        let scale = Scales::load(&self.scale, s);
        for t in 0..T {
            let dot = s.add_i32(
                s.dot_i16(lows[t], s.splat_i16(1)),
                s.dot_i16(highs[t], s.splat_i16(16)),
            );
            let dot = s.sub_i32(dot, s.splat_i32(128 * (x.sums[0][t] + x.sums[1][t])));
            acc[t] = s.fma(s.to_f32(dot), s.mul(scale, s.splat(x.scale[t])), acc[t]);
        }
    }
}

impl IntCell for U6 {
    #[expect(private_interfaces, reason = "tiles are this module's own layout")]
    #[inline(always)]
    fn accumulate<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]) {
        for half in 0..2 {
            let mut dots = [s.splat_i32(0); T];
            for i in [4 * half, 4 * half + 2] {
                // 2 sums of 2 products: 2 * 2 * 63 * 127 = 32004 fits i16.
                let codes = [s.load_i(&self.codes[i]), s.load_i(&self.codes[i + 1])];
                for (t, dot) in dots.iter_mut().enumerate() {
                    let pair = s.add_i16(
                        s.dot_u8_i8(codes[0], s.splat_bytes(&x.quads[i][t])),
                        s.dot_u8_i8(codes[1], s.splat_bytes(&x.quads[i + 1][t])),
                    );
                    *dot = s.add_i32(*dot, s.dot_i16(pair, s.splat_i16(1)));
                }
            }
            let scale = s.load(&self.scale[half]);
            for t in 0..T {
                let dot = s.sub_i32(dots[t], s.splat_i32(32 * x.sums[half][t]));
                acc[t] = s.fma(s.to_f32(dot), s.mul(scale, s.splat(x.scale[t])), acc[t]);
            }
        }
    }
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
        if F::IS_SINGLE {
            self.tiles(s, &mut []);
        } else {
            self.tiles(s, &mut [[[0.0; PANEL]; TILE]; UNITS]);
        }
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
        if F::IS_SINGLE {
            let acc = unit::<S, C, T>(s, cells, x);
            for (total, acc) in totals.iter_mut().zip(acc) {
                let mut sum = [0.0; PANEL];
                s.store(acc, &mut sum);
                F::add(s, total, std::iter::once(&sum));
            }
        } else {
            let mut start = 0;
            for ends in ends.chunks(UNITS) {
                for (end, sums) in ends.iter().zip(sums.iter_mut()) {
                    let end = end / GROUP;
                    let acc = unit::<S, C, T>(s, &cells[start..end], &x[start..end]);
                    sums.iter_mut()
                        .zip(acc)
                        .for_each(|(sum, acc)| s.store(acc, sum));
                    start = end;
                }
                s.call(AddUnits::<F> {
                    totals: &mut totals,
                    sums: &sums[..ends.len()],
                });
            }
        }
        for (t, total) in totals.iter().enumerate() {
            self.sink.write(panel, row + t, F::values(s, total));
        }
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
