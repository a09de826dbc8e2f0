//! The paper's latent memory: a matrix of linear features per KV head that evicted entries are added to, read as a gated
//! residual of attention.
//!
//! Source: IndexMem (arXiv 2605.25475), latent memory (method section 2.5), with the defects of method section 6.8 mended:
//! the write rate is left out, because the normalised readout does not depend on it; so is the decay, because what makes up
//! for the entries that are missing must count all of them alike; gates are per KV head; and it is causal, because it is
//! written at boundaries only. `A += phi(k) v^T`, `b += phi(k)^2`, `phi(z) = W z`; the readout is
//! [`palimpsest_kernels::Backend::readout`].

use super::{Memory, Readout};
use palimpsest_kernels::{AssociativeLayer, CentroidView};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// Trained weights of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct AssociativeLayerWeights {
    /// `[F, D]`.
    pub features: Vec<f32>,
    /// `[K]`.
    pub gates: Vec<f32>,
}

/// Trained weights, every layer.
#[derive(Debug, Clone, PartialEq)]
pub struct AssociativeWeights {
    /// `F`.
    pub features: usize,
    /// `D`.
    pub head_dim: usize,
    /// One per decoder layer.
    pub layers: Vec<AssociativeLayerWeights>,
}

/// State of every KV head of a sequence, f32.
pub struct Associative {
    weights: Arc<AssociativeWeights>,
    /// Features in use: the first ones, as many as the budget pays for.
    features: usize,
    /// The rank's KV heads per layer, and the first of them among those of the model.
    kv_heads: (usize, usize),
    heads: Vec<State>,
}

#[derive(Clone, Default)]
struct State {
    /// `A`, `[f, D]`.
    sums: Vec<f32>,
    /// `b`, `[f]`.
    norms: Vec<f32>,
}

impl Associative {
    /// Empty memory of `features` features for every layer and the `kv_heads.0` heads of a rank from `kv_heads.1` on.
    pub fn new(weights: Arc<AssociativeWeights>, features: usize, kv_heads: (usize, usize)) -> Self {
        let features = features.min(weights.features);
        let heads = vec![State::default(); weights.layers.len() * kv_heads.0];
        Self { weights, features, kv_heads, heads }
    }

    /// Bytes of one feature of one KV head.
    pub const fn feature_bytes(head_dim: usize) -> usize {
        (head_dim + 1) * 4
    }

    /// Features that `entries` cache entries of `entry_bytes` each pay for.
    pub const fn features_for(entries: usize, entry_bytes: usize, head_dim: usize) -> usize {
        entries * entry_bytes / Self::feature_bytes(head_dim)
    }
}

impl Memory for Associative {
    fn absorb(&mut self, head: usize, keys: &[f32], values: &[f32]) {
        let dim = self.weights.head_dim;
        let layer = &self.weights.layers[head / self.kv_heads.0];
        let state = &mut self.heads[head];
        state.sums.resize(self.features * dim, 0.0);
        state.norms.resize(self.features, 0.0);
        for (key, value) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)) {
            let features = layer.features.chunks_exact(dim);
            let rows = state.sums.chunks_exact_mut(dim).zip(&mut state.norms);
            for (feature, (row, norm)) in features.zip(rows) {
                // Eight running sums let the compiler use vector lanes in a fixed order.
                let mut lanes = [0.0f32; 8];
                for (f, k) in feature.chunks(8).zip(key.chunks(8)) {
                    lanes.iter_mut().zip(f.iter().zip(k)).for_each(|(lane, (f, k))| *lane += f * k);
                }
                let phi: f32 = lanes.iter().sum();
                row.iter_mut().zip(value).for_each(|(sum, v)| *sum += phi * v);
                *norm += phi * phi;
            }
        }
    }

    fn centroids(&self, _head: usize) -> Option<CentroidView<'_>> {
        None
    }

    fn readout(&self, head: usize) -> Option<Readout<'_>> {
        let state = &self.heads[head];
        if state.norms.is_empty() {
            return None;
        }
        let layer = &self.weights.layers[head / self.kv_heads.0];
        let (count, first) = self.kv_heads;
        let weights = AssociativeLayer { features: &layer.features, gates: &layer.gates[first..first + count] };
        Some(Readout { weights, sums: &state.sums, norms: &state.norms })
    }

    fn bytes(&self) -> usize {
        self.heads.len() * self.features * Self::feature_bytes(self.weights.head_dim)
    }

    fn digest(&self, hash: &mut Xxh3) {
        for state in &self.heads {
            for v in state.sums.iter().chain(&state.norms) {
                hash.update(&v.to_bits().to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(features: usize) -> Associative {
        let layer = |x: f32| AssociativeLayerWeights { features: vec![x, 0.0, 0.0, x, x, x], gates: vec![0.1, 0.2] };
        let weights = AssociativeWeights { features: 3, head_dim: 2, layers: vec![layer(1.0), layer(2.0)] };
        Associative::new(Arc::new(weights), features, (1, 1))
    }

    #[test]
    fn what_is_absorbed_is_summed_with_its_features() {
        let mut memory = memory(3);
        assert!(memory.readout(1).is_none());
        memory.absorb(1, &[1.0, 0.0, 0.0, 3.0], &[5.0, 7.0, 1.0, 2.0]);
        let Readout { weights, sums, norms } = memory.readout(1).expect("something was absorbed");
        // phi of the keys: (2, 0, 2) and (0, 6, 6).
        assert_eq!(sums, [10.0, 14.0, 6.0, 12.0, 16.0, 26.0]);
        assert_eq!(norms, [4.0, 36.0, 40.0]);
        assert_eq!(weights.gates, [0.2]);
        assert!(memory.readout(0).is_none());
    }

    #[test]
    fn a_small_budget_uses_the_first_features() {
        let mut memory = memory(2);
        memory.absorb(0, &[1.0, 2.0], &[1.0, 1.0]);
        let Readout { sums, norms, .. } = memory.readout(0).expect("something was absorbed");
        assert_eq!((sums, norms), (&[1.0, 1.0, 2.0, 2.0][..], &[1.0, 4.0][..]));
        assert_eq!(memory.bytes(), 2 * 2 * 12);
        assert_eq!(Associative::features_for(33, 256, 64), 32);
    }
}
