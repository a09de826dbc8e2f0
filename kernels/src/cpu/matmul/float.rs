//! Products with f32 activations: weights are unpacked to f32 a block of inputs at a time and
//! multiplied in order, `acc = fma(w[k], x[k], acc)` for `k = 0, 1, ..` from zero.

use std::ops::Range;

use super::super::cell::{Cell, Lines, PANEL};
use super::super::pool::Pool;
use super::super::simd::{Kernel, Simd};
use super::super::totals::Form;
use super::task::{Cut, Sink};

/// Token rows of a full tile: 2 panels times 6 rows of accumulators fill the 16 registers of AVX2
/// best.
const TILE: usize = 6;
/// Token rows whose accumulators are kept while the inputs of a panel pass.
const BLOCK: usize = 16 * TILE;
/// Inputs unpacked at a time; a multiple of every cell's inputs.
const INPUTS: usize = 128;

/// Activations in tiles of [`TILE`] rows (the last one of what remains): input by input, row by
/// row.
pub(crate) struct Tiled<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
}

impl<'a> Tiled<'a> {
    /// Rearranges `rows` rows of `x`; `values` is the memory that holds the result.
    pub fn new(pool: &Pool, x: &[f32], rows: usize, values: &'a mut Vec<f32>) -> Self {
        let cols = x.len() / rows.max(1);
        values.resize(x.len(), 0.0);
        if cols > 0 {
            let tile = |tile: usize, out: &mut [f32]| {
                let count = out.len() / cols;
                for (t, x) in x[tile * TILE * cols..][..out.len()]
                    .chunks_exact(cols)
                    .enumerate()
                {
                    out.iter_mut()
                        .skip(t)
                        .step_by(count)
                        .zip(x)
                        .for_each(|(out, x)| *out = *x);
                }
            };
            pool.chunks(values, TILE * cols, &tile);
        }
        Self { values, rows, cols }
    }

    /// Inputs `inputs` of the `T` rows from `row`.
    #[inline(always)]
    fn tile<const T: usize>(&self, row: usize, inputs: Range<usize>) -> &[[f32; T]] {
        &self.values[row * self.cols..][..T * self.cols]
            .as_chunks::<T>()
            .0[inputs]
    }
}

/// Products of some panels with all rows.
pub(crate) struct FloatTask<'a, C, F: Form> {
    /// Cells of the part.
    pub cells: &'a [C],
    pub cut: Cut<'a>,
    pub x: &'a Tiled<'a>,
    pub sink: Sink<'a, F::Out>,
}

/// What a block works in.
struct Buffers<T, const P: usize> {
    weights: [Lines<P>; INPUTS],
    acc: [Lines<P>; BLOCK],
    totals: [[T; P]; BLOCK],
}

impl<C: Cell, F: Form> Kernel for FloatTask<'_, C, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for start in (0..self.x.rows).step_by(BLOCK) {
            let rows = start..self.x.rows.min(start + BLOCK);
            let mut panels = self.cut.panels.clone();
            // One chain of additions per accumulator: with few rows, several panels keep the adders
            // busy.
            if rows.len() <= 3 {
                self.blocks::<S, 4>(s, &mut panels, rows.clone());
            }
            self.blocks::<S, 2>(s, &mut panels, rows.clone());
            self.blocks::<S, 1>(s, &mut panels, rows);
        }
    }
}

impl<C: Cell, F: Form> FloatTask<'_, C, F> {
    /// Takes `P` panels at a time from the front of `panels`, as long as there are as many.
    #[inline(always)]
    fn blocks<S: Simd, const P: usize>(&self, s: S, panels: &mut Range<usize>, rows: Range<usize>) {
        if panels.len() < P {
            return;
        }
        let mut buffers = Buffers {
            weights: [[[0.0; PANEL]; P]; INPUTS],
            acc: [[[0.0; PANEL]; P]; BLOCK],
            totals: [[F::zero(0); P]; BLOCK],
        };
        while panels.len() >= P {
            self.block(s, panels.start, rows.clone(), &mut buffers);
            panels.start += P;
        }
    }

    /// `P` panels from `panel` with at most [`BLOCK`] rows, unit by unit.
    #[inline(always)]
    fn block<S: Simd, const P: usize>(
        &self,
        s: S,
        panel: usize,
        rows: Range<usize>,
        buffers: &mut Buffers<F::Total, P>,
    ) {
        let ends = self.cut.ends.of(C::INPUTS);
        buffers.totals[..rows.len()].fill([F::zero(ends.len()); P]);
        let mut start = 0;
        for &end in ends {
            self.unit(s, panel, rows.clone(), start..end, buffers);
            for (total, acc) in buffers.totals.iter_mut().zip(&buffers.acc[..rows.len()]) {
                total
                    .iter_mut()
                    .zip(acc)
                    .for_each(|(total, acc)| F::add(s, total, std::iter::once(acc)));
            }
            start = end;
        }
        for (row, totals) in rows.zip(&buffers.totals) {
            for (p, total) in totals.iter().enumerate() {
                self.sink.write(panel + p, row, F::values(s, total));
            }
        }
    }

    /// The products of inputs `unit`, into `buffers.acc`.
    #[inline(always)]
    fn unit<S: Simd, const P: usize>(
        &self,
        s: S,
        panel: usize,
        rows: Range<usize>,
        unit: Range<usize>,
        buffers: &mut Buffers<F::Total, P>,
    ) {
        let Buffers { weights, acc, .. } = buffers;
        let acc = &mut acc[..rows.len()];
        acc.fill([[0.0; PANEL]; P]);
        for start in unit.clone().step_by(INPUTS) {
            let inputs = start..unit.end.min(start + INPUTS);
            for p in 0..P {
                let cells = &self.cells[(panel + p) * (self.x.cols / C::INPUTS)..];
                let cells = &cells[inputs.start / C::INPUTS..inputs.end / C::INPUTS];
                s.call(Unpack { cells, p, weights });
            }
            for row in rows.clone().step_by(TILE) {
                let (acc, inputs) = (&mut acc[row - rows.start..], inputs.clone());
                match rows.end - row {
                    1 => s.call(Multiply {
                        weights,
                        x: self.x.tile::<1>(row, inputs),
                        acc,
                    }),
                    2 => s.call(Multiply {
                        weights,
                        x: self.x.tile::<2>(row, inputs),
                        acc,
                    }),
                    3 => s.call(Multiply {
                        weights,
                        x: self.x.tile::<3>(row, inputs),
                        acc,
                    }),
                    4 => s.call(Multiply {
                        weights,
                        x: self.x.tile::<4>(row, inputs),
                        acc,
                    }),
                    5 => s.call(Multiply {
                        weights,
                        x: self.x.tile::<5>(row, inputs),
                        acc,
                    }),
                    _ => s.call(Multiply {
                        weights,
                        x: self.x.tile::<TILE>(row, inputs),
                        acc,
                    }),
                }
            }
        }
    }
}

/// Unpacks the cells of one panel. Like [`Multiply`], a function of its own: neither is compiled
/// again for every form of result, nor this one for every number of rows.
struct Unpack<'a, C, const P: usize> {
    cells: &'a [C],
    p: usize,
    weights: &'a mut [Lines<P>; INPUTS],
}

impl<C: Cell, const P: usize> Kernel for Unpack<'_, C, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let weights = self.weights.chunks_exact_mut(C::INPUTS);
        for (cell, out) in self.cells.iter().zip(weights) {
            cell.unpack(s, self.p, out);
        }
    }
}

/// `acc[t][p][r] += weights[k][p][r] * x[k][t]`, in the order of `k`.
struct Multiply<'a, const P: usize, const T: usize> {
    weights: &'a [Lines<P>; INPUTS],
    x: &'a [[f32; T]],
    acc: &'a mut [Lines<P>],
}

impl<const P: usize, const T: usize> Kernel for Multiply<'_, P, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let acc = &mut self.acc[..T];
        let mut sums: [[S::F; P]; T] =
            std::array::from_fn(|t| std::array::from_fn(|p| s.load(&acc[t][p])));
        for (w, x) in self.weights.iter().zip(self.x) {
            let w: [S::F; P] = std::array::from_fn(|p| s.load(&w[p]));
            for t in 0..T {
                let x = s.splat(x[t]);
                for p in 0..P {
                    sums[t][p] = s.fma(w[p], x, sums[t][p]);
                }
            }
        }
        for t in 0..T {
            for p in 0..P {
                s.store(sums[t][p], &mut acc[t][p]);
            }
        }
    }
}
