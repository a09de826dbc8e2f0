//! The paper's indexer: a small network compares every query with every entry, and an entry is
//! worth the largest score it has had.
//!
//! Source: IndexMem (arXiv 2605.25475), query indexer (method section 2.2), with three changes. It
//! is per KV head instead of per layer, so that it shards and heads may differ (method section
//! 5.3). Its queries are read off the hidden state: the paper projects the layer's queries before
//! rotation, which are themselves linear in it, so both maps are one matrix. And it is trained to
//! predict the logarithm of the same target as the retention scorer, so scores of heads are
//! comparable.
//!
//! `I[t, j] = sum_h w[t, h] * relu(<q[t, h], k[j]>)`, `q`, `k` layer-normalised, no rotary
//! positions; the score of entry `j` is `offset + max over t >= j of I[t, j]`, kept up to date as
//! queries come.

use std::sync::Arc;

use super::{HeadView, Ingest, Policy};

/// Added to variances.
pub const EPSILON: f32 = 1e-5;

/// Weights of one layer. Rows of a KV head are adjacent: `h*d` of queries, `d` of the key, `h` of
/// head weights.
#[derive(Debug, Clone, PartialEq)]
pub struct PairwiseLayer {
    /// `[K * rows, E]`.
    pub weight: Vec<f32>,
    /// `[K * rows]`.
    pub bias: Vec<f32>,
    /// Gain and shift of the queries' and of the keys' layer norm, `[K, 4, d]`.
    pub norm: Vec<f32>,
    /// `[K]`: added to scores.
    pub offset: Vec<f32>,
}

/// A trained pairwise indexer, every layer.
#[derive(Debug, Clone, PartialEq)]
pub struct PairwiseWeights {
    /// `h`: indexer heads of one KV head.
    pub heads: usize,
    /// `d`: width of indexer queries and keys.
    pub dim: usize,
    /// One per decoder layer.
    pub layers: Vec<PairwiseLayer>,
}

impl PairwiseWeights {
    /// Projected values of one token and KV head.
    pub const fn rows(heads: usize, dim: usize) -> usize {
        heads
            .saturating_mul(dim)
            .saturating_add(dim)
            .saturating_add(heads)
    }

    /// What projected values `[rows]` of one token become: normalised queries `[h, d]`, normalised
    /// key `[d]`, weights `[h]`. Written over the values, in the same places.
    pub fn finish(&self, layer: usize, kv_head: usize, values: &mut [f32]) {
        let (heads, dim) = (self.heads, self.dim);
        let norm = &self.layers[layer].norm[kv_head * 4 * dim..][..4 * dim];
        let (query_norm, key_norm) = norm.split_at(2 * dim);
        let (queries, rest) = values.split_at_mut(heads * dim);
        let (key, weights) = rest.split_at_mut(dim);
        queries
            .chunks_exact_mut(dim)
            .for_each(|query| layer_norm(query, query_norm));
        layer_norm(key, key_norm);
        let scale = 1.0 / ((heads * dim) as f32).sqrt();
        weights.iter_mut().for_each(|w| *w *= scale);
    }
}

/// `(x - mean) / sqrt(variance + epsilon) * gain + shift`; `norm`: gain, then shift.
fn layer_norm(x: &mut [f32], norm: &[f32]) {
    let len = x.len() as f32;
    let mean = x.iter().sum::<f32>() / len;
    let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / len;
    let inverse = 1.0 / (variance + EPSILON).sqrt();
    let (gain, shift) = norm.split_at(x.len());
    for ((x, gain), shift) in x.iter_mut().zip(gain).zip(shift) {
        *x = (*x - mean) * inverse * gain + shift;
    }
}

/// Ranks by a trained pairwise indexer.
pub struct PairwiseIndexer {
    weights: Arc<PairwiseWeights>,
}

impl PairwiseIndexer {
    /// Name on the wire.
    pub const NAME: &'static str = "query-indexer";

    /// The policy of a trained indexer.
    pub fn new(weights: Arc<PairwiseWeights>) -> Self {
        Self { weights }
    }

    /// What it was trained to.
    pub fn weights(&self) -> &PairwiseWeights {
        &self.weights
    }
}

impl Policy for PairwiseIndexer {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn comparable(&self) -> bool {
        true
    }
    /// The running maximum lives where other policies keep attention.
    fn keeps_mass(&self) -> bool {
        true
    }
    fn ingest(&self) -> Ingest<'_> {
        Ingest::Query(self)
    }
    /// The indexer key.
    fn terms(&self) -> usize {
        self.weights.dim
    }
    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        let offset = self.weights.layers[head.layer].offset[head.kv_head];
        for (score, mass) in scores.iter_mut().zip(head.mass) {
            *score = mass + offset;
        }
    }
}
