//! Products whose columns are cut in units, against their parts and against any deal of them.

use std::ops::Range;

use super::MODES;
use crate::backend::{WeightType, WeightView};
use crate::cpu::device::{Activations, CpuBackend};
use crate::cpu::matmul;
use crate::cpu::pack::CpuMatrix;
use crate::cpu::simd::SimdLevel;
use crate::cpu::testing::{TYPES, activations, backend, best, load, weights};
use crate::fixed;
use crate::quant::GROUP;

/// Columns `range` of a matrix whose rows are `stored` weights long: the blocks that they touch.
fn columns(
    backend: &CpuBackend,
    dtype: WeightType,
    bytes: &[u8],
    stored: usize,
    range: &Range<usize>,
) -> CpuMatrix {
    let (block, row) = (dtype.block(), dtype.bytes(stored).unwrap());
    let blocks = range.start / block.weights..range.end.div_ceil(block.weights);
    let own: Vec<u8> = bytes
        .chunks_exact(row)
        .flat_map(|row| &row[blocks.start * block.bytes..blocks.end * block.bytes])
        .copied()
        .collect();
    let view = WeightView {
        skip: range.start % block.weights,
        ..WeightView::new(dtype, bytes.len() / row, range.len(), &own)
    };
    CpuMatrix::load(&backend.pool, &[view]).unwrap()
}

/// A matrix and activations whose columns are cut in units, each a whole number of groups.
struct Cut {
    dtype: WeightType,
    bytes: Vec<u8>,
    x: Vec<f32>,
    n: usize,
    rows: usize,
    ends: Vec<usize>,
    /// Weights of a row with those that fill its last block.
    stored: usize,
}

impl Cut {
    fn new(dtype: WeightType, rows: usize, units: &[usize]) -> Self {
        let block = dtype.block().weights;
        let ends: Vec<usize> = units
            .iter()
            .scan(0, |end, unit| {
                *end += unit * block.min(GROUP);
                Some(*end)
            })
            .collect();
        let (n, cols) = (21, ends[ends.len() - 1]);
        let stored = cols.next_multiple_of(block);
        Self {
            dtype,
            bytes: weights(dtype, n, stored, 71),
            x: activations(rows * cols, 72),
            n,
            rows,
            ends,
            stored,
        }
    }

    /// The share of a rank that holds units `units`.
    fn share(&self, backend: &CpuBackend, units: Range<usize>) -> Vec<i64> {
        let cols = self.ends[self.ends.len() - 1];
        let first = if units.start == 0 {
            0
        } else {
            self.ends[units.start - 1]
        };
        let range = first..self.ends[units.end - 1];
        let own: Vec<f32> = self
            .x
            .chunks_exact(cols)
            .flat_map(|x| x[range.clone()].to_vec())
            .collect();
        let matrix = columns(backend, self.dtype, &self.bytes, self.stored, &range);
        let ends: Vec<usize> = self.ends[units].iter().map(|end| end - first).collect();
        let mut out = vec![-1; self.rows * self.n];
        matmul::matmul_fixed(backend, &matrix, &own, self.rows, &ends, &mut out).unwrap();
        out
    }

    /// The product of a rank with all units.
    fn whole(&self, backend: &CpuBackend) -> Vec<u32> {
        let cols = self.ends[self.ends.len() - 1];
        let all = 0..cols;
        let matrix = columns(backend, self.dtype, &self.bytes, self.stored, &all);
        let mut out = vec![f32::NAN; self.rows * self.n];
        matmul::matmul_fixed(backend, &matrix, &self.x, self.rows, &self.ends, &mut out).unwrap();
        out.into_iter().map(f32::to_bits).collect()
    }
}

#[test]
fn any_deal_of_units_gives_the_bits_of_the_whole() {
    for dtype in TYPES {
        for mode in MODES {
            for rows in [1, 2, 3, 4, 5, 9] {
                let cut = Cut::new(dtype, rows, &[1, 3, 2, 1, 1, 4]);
                let (here, portable) = (best(mode, 2), backend(mode, SimdLevel::Portable, 1));
                let whole = cut.whole(&here);
                assert_eq!(cut.whole(&portable), whole, "{dtype:?} {mode:?}");
                for deal in [
                    vec![0, 6],
                    vec![0, 3, 6],
                    vec![0, 1, 5, 6],
                    vec![0, 1, 2, 3, 4, 5, 6],
                ] {
                    let mut sum = vec![0i64; rows * cut.n];
                    for (rank, units) in deal.windows(2).enumerate() {
                        let backend = if rank % 2 == 0 { &here } else { &portable };
                        let share = cut.share(backend, units[0]..units[1]);
                        sum.iter_mut()
                            .zip(share)
                            .for_each(|(sum, share)| *sum = sum.wrapping_add(share));
                    }
                    let sum: Vec<u32> = sum
                        .into_iter()
                        .map(|sum| fixed::to_f32(sum).to_bits())
                        .collect();
                    assert_eq!(sum, whole, "{dtype:?} {mode:?} {rows} rows, {deal:?}");
                }
            }
        }
    }
}

#[test]
fn units_are_products_of_their_columns_in_fixed_point() {
    for dtype in TYPES {
        for mode in MODES {
            // More units than are added up at a time.
            let cut = Cut::new(dtype, 5, &[1; 40]);
            let backend = best(mode, 2);
            let cols = cut.ends[39];
            let mut sum = vec![0i64; 5 * cut.n];
            for end in &cut.ends {
                let range = end - cols / 40..*end;
                let x: Vec<f32> = cut
                    .x
                    .chunks_exact(cols)
                    .flat_map(|x| x[range.clone()].to_vec())
                    .collect();
                let matrix = columns(&backend, dtype, &cut.bytes, cut.stored, &range);
                let mut unit = vec![f32::NAN; 5 * cut.n];
                matmul::matmul(&backend, &matrix, &x, 5, None, &mut unit).unwrap();
                sum.iter_mut()
                    .zip(unit)
                    .for_each(|(sum, unit)| *sum += fixed::from_f32(unit));
            }
            let want: Vec<u32> = sum
                .into_iter()
                .map(|sum| fixed::to_f32(sum).to_bits())
                .collect();
            assert_eq!(cut.whole(&backend), want, "{dtype:?} {mode:?}");
        }
    }
}

#[test]
fn a_unit_without_a_valid_value_makes_its_rows_nan_and_no_others() {
    let (n, ends, largest) = (3, [1, 2, 3], fixed::LIMIT);
    for simd in [SimdLevel::Portable, SimdLevel::detect()] {
        let backend = backend(Activations::F32, simd, 1);
        let ones: Vec<u8> = 1f32
            .to_le_bytes()
            .into_iter()
            .cycle()
            .take(4 * n * 3)
            .collect();
        let matrix = load(&backend, &[(WeightType::F32, n)], 3, &[ones]);
        let values = [
            f32::NAN,
            -f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            largest.next_up(),
            -largest.next_up(),
        ];
        for (bad, is_bad) in values
            .map(|v| (v, true))
            .into_iter()
            .chain([(largest, false), (-largest, false)])
        {
            let x = [1.0, 2.0, 3.0, largest, bad, 0.5, -largest, -1e-9, -largest];
            let (mut out, mut share) = ([0f32; 9], [0i64; 9]);
            matmul::matmul_fixed(&backend, &matrix, &x, 3, &ends, &mut out).unwrap();
            matmul::matmul_fixed(&backend, &matrix, &x, 3, &ends, &mut share).unwrap();
            let middle = if is_bad {
                f32::NAN
            } else {
                largest + bad + 0.5
            };
            for (row, want) in [6.0, middle, -2.0 * largest].into_iter().enumerate() {
                for got in &out[row * n..][..n] {
                    assert!(
                        *got == want || got.is_nan() && want.is_nan(),
                        "{got} for {want}, {bad}"
                    );
                }
            }
            assert_eq!(
                share.map(|sum| fixed::to_f32(sum).to_bits()),
                out.map(f32::to_bits),
                "{bad}"
            );
        }
    }
}
