//! The inner loops of attention: up to six query rows against one chunk of up to 128 slots.
//!
//! The running state of a row is its maximum logit, the sum of exponentials, and the weighted sum
//! of values. A chunk is reduced on its own (logits in order of `D`, exponentials in eight partial
//! sums and a fixed tree, values slot by slot) and then merged, as in FlashAttention (Dao et al.
//! 2022) and its split-KV decoding. Slots that a row does not see get weight zero, which changes no
//! bit, so a row's state depends on its own visible slots alone.
//!
//! Logits are in units of log2: the query is scaled by `log2(e) / sqrt(D)` when it is packed.

use super::element::Element;
use super::exp::exp2;
use super::lanes::{Kernel, Lanes, WIDTH};
use super::page_layout::SLOTS;

/// Pages of one chunk.
pub(crate) const CHUNK_PAGES: usize = 4;
/// Slots of one chunk. Chunks start at multiples of this slot index.
pub(crate) const CHUNK: usize = CHUNK_PAGES * SLOTS;
/// Most query rows of one block.
pub(crate) const BLOCK: usize = 6;

/// Slots `first .. end` of a chunk, those that a row sees.
#[derive(Clone, Copy, Default)]
pub(crate) struct Visible {
    pub(crate) first: usize,
    pub(crate) end: usize,
}

/// First element of each page of a chunk, in layout `[D][32]` keys, `[32][D]` values. Pages that no
/// row of the block sees may be null.
pub(crate) type ChunkPages<T> = [*const T; CHUNK_PAGES];

/// Where the keys and values of a chunk are.
#[derive(Clone, Copy)]
pub(crate) struct Chunk<T> {
    pub(crate) pages: ChunkPages<T>,
    /// Scales of 32 keys and of 32 values for each page, in halves, where elements are multiples
    /// of them. Logits and weights are scaled, not elements: the same bits whether the elements
    /// were widened before or not.
    pub(crate) scales: Option<ChunkPages<u16>>,
}

impl<T> Chunk<T> {
    /// Multiplies columns of `row` with the scales of their keys, or with those of their values.
    ///
    /// # Safety
    /// The pages of the columns are readable.
    #[inline(always)]
    unsafe fn scale<L: Lanes>(
        &self,
        row: &mut [f32; CHUNK],
        columns: std::ops::Range<usize>,
        values: bool,
    ) {
        let Some(scales) = self.scales else { return };
        for column in columns.step_by(WIDTH) {
            // SAFETY: 64 halves a page, by the caller's contract.
            let scale = unsafe {
                L::load_f16(
                    scales[column / SLOTS].add(column % SLOTS + if values { SLOTS } else { 0 }),
                )
            };
            let row = &mut row[column..column + WIDTH];
            L::from_slice(row, 0.0).mul(scale).write(row);
        }
    }
}

/// Running softmax of the rows of a block.
pub(crate) struct State<'a> {
    /// Largest logit of each row; `-inf` before the first chunk.
    pub(crate) max: &'a mut [f32],
    /// Sum of `2^(logit - max)`.
    pub(crate) sum: &'a mut [f32],
    /// Sum of `2^(logit - max) * value`, `[rows, D]`.
    pub(crate) values: &'a mut [f32],
}

/// Logits of a block: `q` packed `[D][M]`, `M` rows.
pub(crate) struct Logits<'a, T> {
    pub(crate) q: &'a [f32],
    pub(crate) dim: usize,
    pub(crate) chunk: Chunk<T>,
    /// What each row sees; its length is `M`.
    pub(crate) visible: &'a [Visible],
    /// Added to the logit of each slot; for centroids.
    pub(crate) bias: Option<&'a [f32]>,
    /// First page of the next chunk (or null), when pages are to be fetched ahead: worth it where
    /// they come from memory and are used once.
    pub(crate) next: Option<*const T>,
}

/// Logits `[M][CHUNK]`; only the pages that some row sees are filled, with `-inf` where a row does
/// not see a slot.
pub(crate) type LogitTile = [[f32; CHUNK]; BLOCK];

impl<T: Element> Logits<'_, T> {
    /// The slots that some row sees, rounded to pages.
    #[inline(always)]
    fn region(&self) -> std::ops::Range<usize> {
        let seen = || self.visible.iter().filter(|row| row.first < row.end);
        let first = seen().map(|row| row.first).min().unwrap_or(0);
        let end = seen().map(|row| row.end).max().unwrap_or(0);
        first / SLOTS * SLOTS..end.next_multiple_of(SLOTS)
    }

    /// Fills `tile`, and returns the slots that were filled.
    ///
    /// # Safety
    /// Every page that some row sees is readable, and `q` has `D * M` values.
    #[inline(always)]
    unsafe fn compute<L: Lanes, const M: usize, const N: usize>(
        &self,
        tile: &mut LogitTile,
    ) -> std::ops::Range<usize> {
        let region = self.region();
        debug_assert!(self.visible.len() == M && self.q.len() >= M * self.dim);
        for column in region.clone().step_by(N * WIDTH) {
            let page = self.chunk.pages[column / SLOTS];
            // SAFETY: the page is readable by contract, and `column % SLOTS + N * 8 <= 32`.
            unsafe { self.products::<L, M, N>(page.add(column % SLOTS), column, tile) };
        }
        for row in &mut tile[..M] {
            // SAFETY: the pages of the region are readable by contract.
            unsafe { self.chunk.scale::<L>(row, region.clone(), false) };
        }
        for (row, seen) in tile.iter_mut().zip(self.visible) {
            if let Some(bias) = self.bias {
                for (logit, bias) in row[region.clone()].iter_mut().zip(&bias[region.clone()]) {
                    *logit += bias;
                }
            }
            let (first, end) = if seen.first < seen.end {
                (seen.first, seen.end)
            } else {
                (region.end, region.end)
            };
            row[region.start..first].fill(f32::NEG_INFINITY);
            row[end..region.end].fill(f32::NEG_INFINITY);
        }
        region
    }

    /// `N * 8` columns of the tile: `M * N` independent sums over `D`.
    #[inline(always)]
    unsafe fn products<L: Lanes, const M: usize, const N: usize>(
        &self,
        keys: *const T,
        column: usize,
        tile: &mut LogitTile,
    ) {
        let q = self.q.as_ptr();
        let ahead = self.next.is_some() && column.is_multiple_of(SLOTS);
        let next = match self.chunk.pages.get(column / SLOTS + 1) {
            Some(&page) => page,
            None => self.next.unwrap_or(std::ptr::null()),
        };
        let mut sums = [[L::splat(0.0); N]; M];
        for d in 0..self.dim {
            // SAFETY: row `d` of the page's keys, by the contract of `compute`; `q` holds `D * M`
            // values. A prefetch may point anywhere: here at the values of this page and the keys
            // of the next one.
            unsafe {
                if ahead {
                    L::prefetch(keys.wrapping_add((self.dim + d) * SLOTS));
                    L::prefetch(next.wrapping_add(d * SLOTS));
                }
                multiply_add(keys.add(d * SLOTS), q.add(d * M), 1, &mut sums);
            }
        }
        for (sums, row) in sums.into_iter().zip(tile) {
            for (sum, out) in sums
                .into_iter()
                .zip(row[column..column + N * WIDTH].chunks_exact_mut(WIDTH))
            {
                sum.write(out);
            }
        }
    }
}

/// `sums[m][n] += scalars[m * stride] * vectors[n]`. The smaller operand stays in registers.
///
/// # Safety
/// `N * 8` elements of `vectors` and `M` scalars at distance `stride` are readable.
#[inline(always)]
unsafe fn multiply_add<T: Element, L: Lanes, const M: usize, const N: usize>(
    vectors: *const T,
    scalars: *const f32,
    stride: usize,
    sums: &mut [[L; N]; M],
) {
    // SAFETY: by the caller's contract.
    unsafe {
        if M < N {
            let mut scalar = [L::splat(0.0); M];
            for (m, scalar) in scalar.iter_mut().enumerate() {
                *scalar = L::splat(*scalars.add(m * stride));
            }
            for n in 0..N {
                let vector: L = T::load(vectors.add(n * WIDTH));
                for (sums, scalar) in sums.iter_mut().zip(scalar) {
                    sums[n] = scalar.fma(vector, sums[n]);
                }
            }
        } else {
            let mut vector = [L::splat(0.0); N];
            for (n, vector) in vector.iter_mut().enumerate() {
                *vector = T::load(vectors.add(n * WIDTH));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let scalar = L::splat(*scalars.add(m * stride));
                for (sum, vector) in sums.iter_mut().zip(vector) {
                    *sum = scalar.fma(vector, *sum);
                }
            }
        }
    }
}

/// Largest logit of `row`.
#[inline(always)]
fn row_max<L: Lanes>(row: &[f32]) -> f32 {
    let mut max = L::splat(f32::NEG_INFINITY);
    for logits in row.chunks_exact(WIDTH) {
        max = max.max(L::from_slice(logits, 0.0));
    }
    max.largest()
}

/// Replaces logits by `2^(logit - max)` and returns their sum.
#[inline(always)]
fn exponentials<L: Lanes>(row: &mut [f32], max: f32) -> f32 {
    let (mut sum, max) = (L::splat(0.0), L::splat(max));
    for logits in row.chunks_exact_mut(WIDTH) {
        let weights = exp2(L::from_slice(logits, 0.0).sub(max));
        weights.write(logits);
        sum = sum.add(weights);
    }
    sum.sum()
}

/// What two states are multiplied with to be added.
#[derive(Clone, Copy)]
struct Factors {
    old: f32,
    new: f32,
}

/// The larger of two maxima, and what brings states with these maxima to it.
struct Common {
    max: f32,
    factors: Factors,
}

impl Common {
    /// Of a state with maximum `old` and one with maximum `new`.
    #[inline(always)]
    fn of<L: Lanes>(old: f32, new: f32) -> Self {
        let max = if new > old { new } else { old };
        let factors = exp2(L::from_slice(&[old - max, new - max], 0.0)).to_array();
        Self {
            max,
            factors: Factors {
                old: factors[0],
                new: factors[1],
            },
        }
    }
}

/// Reduces a chunk and merges it into the state of a block of `M` rows; `N` vectors of keys at a
/// time.
pub(crate) struct Accumulate<'a, T, const M: usize, const N: usize> {
    pub(crate) logits: Logits<'a, T>,
    pub(crate) state: State<'a>,
}

impl<T: Element, const M: usize, const N: usize> Kernel for Accumulate<'_, T, M, N> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let mut tile: LogitTile = [[0.0; CHUNK]; BLOCK];
        // SAFETY: whoever builds a `Logits` passes pages that are readable where rows see them.
        let region = unsafe { self.logits.compute::<L, M, N>(&mut tile) };
        let (mut max, mut sum) = ([f32::NEG_INFINITY; M], [0.0; M]);
        for m in 0..M {
            let row = &mut tile[m][region.clone()];
            max[m] = row_max::<L>(row);
            // A row that sees nothing keeps weights of zero: `-inf` minus zero.
            let finite = if max[m] == f32::NEG_INFINITY {
                0.0
            } else {
                max[m]
            };
            sum[m] = exponentials::<L>(row, finite);
            // SAFETY: as above.
            unsafe {
                self.logits
                    .chunk
                    .scale::<L>(&mut tile[m], region.clone(), true)
            };
        }
        let mut factors = [Factors { old: 1.0, new: 0.0 }; M];
        for m in 0..M {
            if max[m] != f32::NEG_INFINITY {
                let common = Common::of::<L>(self.state.max[m], max[m]);
                factors[m] = common.factors;
                let Factors { old, new } = common.factors;
                self.state.max[m] = common.max;
                self.state.sum[m] = sum[m].mul_add(new, self.state.sum[m] * old);
            }
        }
        let dim = self.logits.dim;
        let wide = dim / (N * WIDTH) * (N * WIDTH);
        for d in (0..wide).step_by(N * WIDTH) {
            // SAFETY: as above; columns `d .. d + N * 8` exist.
            unsafe { self.values::<L, N>(&tile, region.clone(), d, &factors) };
        }
        for d in (wide..dim).step_by(WIDTH) {
            // SAFETY: as above; columns `d .. d + 8` exist.
            unsafe { self.values::<L, 1>(&tile, region.clone(), d, &factors) };
        }
    }
}

impl<T: Element, const M: usize, const N: usize> Accumulate<'_, T, M, N> {
    /// `V * 8` columns of the weighted values, merged into the state.
    #[inline(always)]
    unsafe fn values<L: Lanes, const V: usize>(
        &mut self,
        tile: &LogitTile,
        region: std::ops::Range<usize>,
        column: usize,
        factors: &[Factors; M],
    ) {
        let dim = self.logits.dim;
        let last = self
            .logits
            .visible
            .iter()
            .map(|row| row.end)
            .max()
            .unwrap_or(0);
        let mut sums = [[L::splat(0.0); V]; M];
        for first in region.step_by(SLOTS) {
            let page = self.logits.chunk.pages[first / SLOTS];
            for slot in first..last.min(first + SLOTS) {
                // SAFETY: the slot's page is readable, its values follow the keys; rows of the tile
                // are CHUNK apart.
                unsafe {
                    let values = page.add((SLOTS + slot - first) * dim + column);
                    multiply_add(
                        values,
                        tile.as_ptr().cast::<f32>().add(slot),
                        CHUNK,
                        &mut sums,
                    );
                }
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            let (old, new) = (L::splat(factors[m].old), L::splat(factors[m].new));
            let out = &mut self.state.values[m * dim + column..][..V * WIDTH];
            for (sum, out) in sums.into_iter().zip(out.chunks_exact_mut(WIDTH)) {
                sum.fma(new, L::from_slice(out, 0.0).mul(old)).write(out);
            }
        }
    }
}

/// Merges the state of one row into another, as [`Accumulate`] merges a chunk.
pub(crate) struct Merge<'a> {
    pub(crate) into: State<'a>,
    pub(crate) max: f32,
    pub(crate) sum: f32,
    pub(crate) values: &'a [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        if self.max == f32::NEG_INFINITY {
            return;
        }
        let common = Common::of::<L>(self.into.max[0], self.max);
        let Factors { old, new } = common.factors;
        self.into.max[0] = common.max;
        self.into.sum[0] = self.sum.mul_add(new, self.into.sum[0] * old);
        let (old, new) = (L::splat(old), L::splat(new));
        for (out, values) in self
            .into
            .values
            .chunks_exact_mut(WIDTH)
            .zip(self.values.chunks_exact(WIDTH))
        {
            L::from_slice(values, 0.0)
                .fma(new, L::from_slice(out, 0.0).mul(old))
                .write(out);
        }
    }
}

/// `out = values / sum`.
pub(crate) struct Finish<'a> {
    pub(crate) sum: f32,
    pub(crate) values: &'a [f32],
    pub(crate) out: &'a mut [f32],
}

impl Kernel for Finish<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let sum = L::splat(self.sum);
        for (out, values) in self
            .out
            .chunks_exact_mut(WIDTH)
            .zip(self.values.chunks_exact(WIDTH))
        {
            L::from_slice(values, 0.0).div(sum).write(out);
        }
    }
}

/// Adds a sink to the maximum and the sum of a row. Returns what the row's values are multiplied
/// with to be weighted by the new maximum.
pub(crate) struct AddSink<'a> {
    pub(crate) sink: f32,
    pub(crate) max: &'a mut f32,
    pub(crate) sum: &'a mut f32,
}

impl Kernel for AddSink<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        let common = Common::of::<L>(*self.max, self.sink);
        let Factors { old, new } = common.factors;
        *self.max = common.max;
        *self.sum = self.sum.mul_add(old, new);
        old
    }
}

/// Maximum and sum of exponentials of a chunk, merged: the first pass of `observe`.
pub(crate) struct Normalise<'a, T, const M: usize, const N: usize> {
    pub(crate) logits: Logits<'a, T>,
    pub(crate) max: &'a mut [f32],
    pub(crate) sum: &'a mut [f32],
}

impl<T: Element, const M: usize, const N: usize> Kernel for Normalise<'_, T, M, N> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut tile: LogitTile = [[0.0; CHUNK]; BLOCK];
        // SAFETY: as in `Accumulate`.
        let region = unsafe { self.logits.compute::<L, M, N>(&mut tile) };
        for (m, row) in tile.iter_mut().take(M).enumerate() {
            let row = &mut row[region.clone()];
            let max = row_max::<L>(row);
            if max != f32::NEG_INFINITY {
                let sum = exponentials::<L>(row, max);
                let common = Common::of::<L>(self.max[m], max);
                let Factors { old, new } = common.factors;
                self.max[m] = common.max;
                self.sum[m] = sum.mul_add(new, self.sum[m] * old);
            }
        }
    }
}

/// Attention probabilities of a chunk: the second pass of `observe`. Fills `tile` and returns the
/// slots filled.
pub(crate) struct Probabilities<'a, T, const M: usize, const N: usize> {
    pub(crate) logits: Logits<'a, T>,
    pub(crate) max: &'a [f32],
    pub(crate) sum: &'a [f32],
    pub(crate) tile: &'a mut LogitTile,
}

impl<T: Element, const M: usize, const N: usize> Kernel for Probabilities<'_, T, M, N> {
    type Output = std::ops::Range<usize>;
    #[inline(always)]
    fn run<L: Lanes>(self) -> Self::Output {
        // SAFETY: as in `Accumulate`.
        let region = unsafe { self.logits.compute::<L, M, N>(self.tile) };
        for m in 0..M {
            let (max, sum) = (L::splat(self.max[m]), L::splat(self.sum[m]));
            for logits in self.tile[m][region.clone()].chunks_exact_mut(WIDTH) {
                exp2(L::from_slice(logits, 0.0).sub(max))
                    .div(sum)
                    .write(logits);
            }
        }
        region
    }
}

/// Runs a kernel with const parameters `M` (rows of the block) and `N` (vectors of keys at a time):
/// twelve sums where there are two or three rows, so that they and their operands fill the sixteen
/// registers.
macro_rules! with_block {
    ($level:expr, $rows:expr, $kernel:ident<$t:ty> $fields:tt) => {
        match $rows {
            1 => $crate::cpu::lanes::dispatch($level, $kernel::<$t, 1, 4> $fields),
            2 => $crate::cpu::lanes::dispatch($level, $kernel::<$t, 2, 4> $fields),
            3 => $crate::cpu::lanes::dispatch($level, $kernel::<$t, 3, 2> $fields),
            4 => $crate::cpu::lanes::dispatch($level, $kernel::<$t, 4, 2> $fields),
            5 => $crate::cpu::lanes::dispatch($level, $kernel::<$t, 5, 2> $fields),
            _ => $crate::cpu::lanes::dispatch($level, $kernel::<$t, 6, 2> $fields),
        }
    };
}
pub(crate) use with_block;
