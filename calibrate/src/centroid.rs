//! Fits the gains of the `centroid` memory: how much more a centroid counts than the number of its entries, one number per KV
//! head (see [`CentroidState`]). The error is the paper's for its memory (arXiv 2605.25475, second training stage): that of
//! attention outputs with the memory against those of the full cache. It has one variable, so a grid finds the least.

use crate::associative::{Case, Heads};
use crate::gradient::dot;
use palimpsest_kernels::latent::CentroidState;

/// Centroids of a head: about what a contract's default pays for in a document's length.
const CENTROIDS: usize = 8;
/// Gains that are tried: every eighth of a nat up to three.
const STEPS: u8 = 24;
const STEP: f32 = 0.125;

/// One case with its centroids: what attention of every query would read of them.
struct Read<'a> {
    case: &'a Case,
    /// `scale * <q, key>`, `[rows, R]`.
    logits: Vec<f32>,
    /// Means of values `[R, D]`.
    values: Vec<f32>,
    /// Entries of each `[R]`.
    counts: Vec<f32>,
}

impl<'a> Read<'a> {
    fn new(case: &'a Case, dim: usize) -> Self {
        let mut state = CentroidState::default();
        let (keys, values) = case.evicted();
        for (key, value) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)) {
            state.absorb(CENTROIDS, key, value);
        }
        let (means, scale) = (state.keys(), 1.0 / (dim as f32).sqrt());
        let row = |query| means.chunks_exact(dim).map(move |key| scale * dot(query, key));
        let logits = case.queries().chunks_exact(dim).flat_map(row).collect();
        Self { case, logits, values: state.values(), counts: state.counts().to_vec() }
    }

    /// Squared error of attention outputs with the memory, summed over rows and dimensions.
    fn error(&self, gain: f32, dim: usize) -> f64 {
        let state = CentroidState::new(&vec![0.0; self.values.len()], &self.values, self.counts.clone()).gained(gain);
        let rows = self.logits.chunks_exact(self.counts.len()).zip(self.case.kept());
        let rows = rows.zip(self.case.missing().chunks_exact(dim));
        rows.map(|((logits, (bounded, mass)), missing)| {
            let weights: Vec<f32> = logits.iter().zip(state.bias()).map(|(l, b)| (l + b - mass).exp()).collect();
            let sum = 1.0 + weights.iter().sum::<f32>();
            let mut out: Vec<f32> = missing.iter().map(|m| -m).collect();
            for (weight, value) in weights.iter().zip(self.values.chunks_exact(dim)) {
                let change = value.iter().zip(bounded).map(|(v, b)| weight / sum * (v - b));
                out.iter_mut().zip(change).for_each(|(o, c)| *o += c);
            }
            f64::from(dot(&out, &out))
        })
        .sum()
    }
}

/// The gains of one layer `[K]`, nats. `cases`: every document's KV heads, in order, `K` a document.
pub fn fit(cases: &[Case], heads: Heads) -> Vec<f32> {
    let mut errors = vec![[0.0; STEPS as usize + 1]; heads.kv_heads];
    for (index, case) in cases.iter().enumerate().filter(|(_, case)| !case.is_empty()) {
        let read = Read::new(case, heads.dim);
        for (step, error) in (0..=STEPS).zip(&mut errors[index % heads.kv_heads]) {
            *error += read.error(STEP * f32::from(step), heads.dim);
        }
    }
    let best = |errors: &[f64; STEPS as usize + 1]| {
        (0..=STEPS).min_by(|&a, &b| errors[usize::from(a)].total_cmp(&errors[usize::from(b)]))
    };
    errors.iter().map(|errors| STEP * f32::from(best(errors).unwrap_or(0))).collect()
}

/// Share of what eviction took from attention outputs (squared) that the memory with these gains gives back, over all cases.
pub fn explained(gains: &[f32], cases: &[Case], heads: Heads) -> f64 {
    let (mut left, mut energy) = (0.0, 0.0);
    for (index, case) in cases.iter().enumerate().filter(|(_, case)| !case.is_empty()) {
        left += Read::new(case, heads.dim).error(gains[index % heads.kv_heads], heads.dim);
        energy += f64::from(dot(case.missing(), case.missing()));
    }
    if energy > 0.0 { 1.0 - left / energy } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::LayerSample;
    use crate::corpus::Draws;

    const HEADS: Heads = Heads { kv_heads: 2, group: 2, dim: 8 };

    /// Keys that differ by `spread[k]` in KV head `k`; half of them go.
    fn cases(seeds: std::ops::Range<u64>, spread: [f32; 2]) -> Vec<Case> {
        let tokens = 160;
        let kept: Vec<u32> = (0..128).filter(|t| t % 2 == 0).collect();
        let case = |seed| {
            let mut draws = Draws::new(seed);
            let mut values = |n: usize, size: f32| (0..n).map(|_| draws.signed() * size).collect::<Vec<f32>>();
            let queries = values(tokens * HEADS.kv_heads * HEADS.group * HEADS.dim, 2.0);
            let keys = spread.iter().flat_map(|&spread| values(tokens * HEADS.dim, spread)).collect();
            let values = values(HEADS.kv_heads * tokens * HEADS.dim, 1.0).iter().map(|v| 1.0 + v).collect();
            let sample = LayerSample { queries, keys, values, ..LayerSample::default() };
            (0..2).map(|k| Case::new(&sample, HEADS, k, 128, &kept)).collect::<Vec<_>>()
        };
        seeds.flat_map(case).collect()
    }

    #[test]
    fn a_head_whose_keys_differ_more_gets_the_larger_gain_and_new_documents_profit() {
        let gains = fit(&cases(0..4, [0.1, 2.0]), HEADS);
        assert!(gains[0] < 0.3 && gains[1] > gains[0] + 0.3, "{gains:?}");
        let new = cases(9..11, [0.1, 2.0]);
        let (with, without) = (explained(&gains, &new, HEADS), explained(&[0.0; 2], &new, HEADS));
        assert!(with > without + 0.01, "{with} is not above {without}");
    }

    /// The attention that is fitted is the engine's.
    #[test]
    fn with_a_centroid_for_every_entry_nothing_is_missing() {
        let tokens = 40;
        let mut draws = Draws::new(3);
        let mut values = |n: usize| (0..n).map(|_| draws.signed()).collect::<Vec<f32>>();
        let (queries, keys) = (values(tokens * 4 * HEADS.dim), values(2 * tokens * HEADS.dim));
        let sample = LayerSample { queries, keys, values: values(2 * tokens * HEADS.dim), ..LayerSample::default() };
        let kept: Vec<u32> = (0..32).filter(|t| t % 5 > 0).collect();
        let case = Case::new(&sample, HEADS, 1, 32, &kept);
        let read = Read::new(&case, HEADS.dim);
        assert!(read.counts.iter().filter(|&&n| n == 1.0).count() >= 6, "{:?}", read.counts);
        let given_back = explained(&[0.0; 2], &[Case::new(&sample, HEADS, 0, 32, &kept), case], HEADS);
        assert!(given_back > 0.999, "{given_back}");
    }
}
