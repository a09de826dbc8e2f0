//! Scores of entries, with the engine's own arithmetic.

use palimpsest_engine::policy::pairwise::{PairwiseLayer, PairwiseWeights};

use super::options::QueryOptions;
use crate::gradient::dot;

/// Score of every entry `[n, K]`: what the engine has after the document's last token.
pub fn predict(
    layer: &PairwiseLayer,
    options: QueryOptions,
    hidden: &[f32],
    kv_heads: usize,
) -> Vec<f32> {
    let weights = PairwiseWeights {
        heads: options.heads,
        dim: options.dim,
        layers: vec![layer.clone()],
    };
    let tokens = hidden.len() / (layer.weight.len() / layer.bias.len());
    let rows = PairwiseWeights::rows(options.heads, options.dim);
    let mut scores = vec![0.0; tokens * kv_heads];
    for kv_head in 0..kv_heads {
        let mut finished = project(&weights, kv_head, hidden);
        finished
            .chunks_exact_mut(rows)
            .for_each(|token| weights.finish(0, kv_head, token));
        for (j, best) in best_queries(&weights, &finished).into_iter().enumerate() {
            scores[j * kv_heads + kv_head] = best.score + layer.offset[kv_head];
        }
    }
    scores
}

/// Projections of every token for one KV head before normalisation, `[n, rows]`.
pub(super) fn project(weights: &PairwiseWeights, kv_head: usize, hidden: &[f32]) -> Vec<f32> {
    let rows = PairwiseWeights::rows(weights.heads, weights.dim);
    let layer = &weights.layers[0];
    let width = layer.weight.len() / layer.bias.len();
    let matrix = &layer.weight[kv_head * rows * width..][..rows * width];
    let bias = &layer.bias[kv_head * rows..][..rows];
    let token = |x| {
        matrix
            .chunks_exact(width)
            .zip(bias)
            .map(move |(w, b)| dot(w, x) + b)
    };
    hidden.chunks_exact(width).flat_map(token).collect()
}

/// The largest score of an entry, and the query that gives it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Best {
    /// Without the head's offset.
    pub score: f32,
    /// The query's token.
    pub query: usize,
}

/// For every entry its largest score and the query that gives it. `tokens`: normalised projections.
pub(super) fn best_queries(weights: &PairwiseWeights, tokens: &[f32]) -> Vec<Best> {
    let (heads, dim) = (weights.heads, weights.dim);
    let tokens: Vec<&[f32]> = tokens
        .chunks_exact(PairwiseWeights::rows(heads, dim))
        .collect();
    // Keys by channel, so that vector lanes run over entries.
    let channels: Vec<Vec<f32>> = (0..dim)
        .map(|d| tokens.iter().map(|token| token[heads * dim + d]).collect())
        .collect();
    let none = Best {
        score: f32::NEG_INFINITY,
        query: 0,
    };
    let mut best = vec![none; tokens.len()];
    let (mut scores, mut matches) = (vec![0.0f32; tokens.len()], vec![0.0f32; tokens.len()]);
    for (t, token) in tokens.iter().enumerate() {
        // Entry `j` is seen by queries from its own on.
        let seen = t + 1;
        scores[..seen].fill(0.0);
        for (query, weight) in token
            .chunks_exact(dim)
            .take(heads)
            .zip(&token[(heads + 1) * dim..])
        {
            matches[..seen].fill(0.0);
            for (q, channel) in query.iter().zip(&channels) {
                matches[..seen]
                    .iter_mut()
                    .zip(channel)
                    .for_each(|(m, k)| *m += q * k);
            }
            scores[..seen]
                .iter_mut()
                .zip(&matches)
                .for_each(|(s, m)| *s += weight * m.max(0.0));
        }
        for (best, score) in best.iter_mut().zip(&scores[..seen]) {
            if *score > best.score {
                *best = Best {
                    score: *score,
                    query: t,
                };
            }
        }
    }
    best
}
