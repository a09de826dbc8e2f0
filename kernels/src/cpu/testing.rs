//! Backends, random weights and activations for tests.

use super::device::{Activations, CpuBackend, CpuOptions};
use super::pack::CpuMatrix;
use super::simd::SimdLevel;
use crate::backend::{WeightType, WeightView};
use crate::quant::random_blocks;

/// SplitMix64 (Steele et al., 2014).
pub(crate) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1 .. 1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// `rows * cols` weights as a file holds them: random codes under moderate scales.
pub(crate) fn weights(dtype: WeightType, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    random_blocks(dtype, rows * cols, || random.next())
}

/// Activations with a few outliers, as real ones have.
pub(crate) fn activations(len: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..len)
        .map(|_| {
            random.float()
                * if random.next().is_multiple_of(50) {
                    8.0
                } else {
                    1.0
                }
        })
        .collect()
}

/// Every weight type.
pub(crate) const TYPES: [WeightType; 25] = WeightType::ALL;

/// A backend of so many threads.
pub(crate) fn backend(activations: Activations, simd: SimdLevel, threads: usize) -> CpuBackend {
    CpuBackend::new(CpuOptions {
        threads: Some(threads),
        activations,
        simd: Some(simd),
    })
}

/// A backend with the best instruction set.
pub(crate) fn best(activations: Activations, threads: usize) -> CpuBackend {
    backend(activations, SimdLevel::detect(), threads)
}

/// A matrix of stacked parts: element type and rows of each.
pub(crate) fn load(
    backend: &CpuBackend,
    parts: &[(WeightType, usize)],
    cols: usize,
    bytes: &[Vec<u8>],
) -> CpuMatrix {
    let views: Vec<_> = parts
        .iter()
        .zip(bytes)
        .map(|(&(dtype, rows), bytes)| WeightView::new(dtype, rows, cols, bytes))
        .collect();
    CpuMatrix::load(&backend.pool, &views).unwrap()
}

/// Output rows and inputs: one block, a ragged panel, several blocks with a ragged last one.
pub(crate) fn shapes(dtype: WeightType) -> Vec<(usize, usize)> {
    let block = dtype.block().weights;
    let mut shapes = vec![(1, block), (13, block), (40, 3 * block), (29, 512 + block)];
    if block == 1 {
        shapes.push((17, 131));
    }
    shapes
}
