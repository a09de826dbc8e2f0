//! The error of a document's scores and its gradient, a page of it, which finite differences check.

use palimpsest_engine::policy::pairwise::{EPSILON, PairwiseLayer, PairwiseWeights};

use super::scores::{Best, best_queries, project};
use crate::collect::LayerSample;
use crate::gradient::{add_outer, dot};

/// Entries among the last ones of a document have seen too few queries to learn from.
pub(super) const LEAST_QUERIES: usize = 128;

/// Mean squared error of the scores of a document's entries, and its gradient.
pub(super) fn loss(
    weights: &PairwiseWeights,
    document: &LayerSample,
    kv_heads: usize,
) -> (f64, PairwiseLayer) {
    let (heads, dim) = (weights.heads, weights.dim);
    let (rows, layer) = (PairwiseWeights::rows(heads, dim), &weights.layers[0]);
    let width = layer.weight.len() / layer.bias.len();
    let tokens = document.hidden.len() / width;
    let entries = tokens.saturating_sub(LEAST_QUERIES).max(1);
    let zeros = |like: &[f32]| vec![0.0; like.len()];
    let mut gradient = PairwiseLayer {
        weight: zeros(&layer.weight),
        bias: zeros(&layer.bias),
        norm: zeros(&layer.norm),
        offset: zeros(&layer.offset),
    };
    let mut error = 0.0;
    for kv_head in 0..kv_heads {
        let raw = project(weights, kv_head, &document.hidden);
        let mut finished = raw.clone();
        finished
            .chunks_exact_mut(rows)
            .for_each(|token| weights.finish(0, kv_head, token));
        // Gradient with respect to what `finish` returns.
        let mut upstream = vec![0.0; finished.len()];
        for (j, Best { score, query }) in best_queries(weights, &finished)
            .into_iter()
            .take(entries)
            .enumerate()
        {
            let off = score + layer.offset[kv_head] - document.targets[j * kv_heads + kv_head];
            error += f64::from(off * off) / (entries * kv_heads) as f64;
            let slope = 2.0 * off / (entries * kv_heads) as f32;
            gradient.offset[kv_head] += slope;
            pair_gradient(weights, &finished, (query, j), slope, &mut upstream);
        }
        let norms = (
            &layer.norm[kv_head * 4 * dim..][..4 * dim],
            &mut gradient.norm[kv_head * 4 * dim..][..4 * dim],
        );
        finish_gradient(weights, &raw, norms, &mut upstream);
        for token in upstream.chunks_exact(rows) {
            let bias = &mut gradient.bias[kv_head * rows..][..rows];
            bias.iter_mut().zip(token).for_each(|(b, u)| *b += u);
        }
        let matrix = &mut gradient.weight[kv_head * rows * width..][..rows * width];
        add_outer(matrix, &upstream, &document.hidden, (rows, width));
    }
    (error, gradient)
}

/// Adds to `upstream` the gradient of `slope` times the score that query `t` gives entry `j`.
fn pair_gradient(
    weights: &PairwiseWeights,
    tokens: &[f32],
    (t, j): (usize, usize),
    slope: f32,
    upstream: &mut [f32],
) {
    let (heads, dim) = (weights.heads, weights.dim);
    let rows = PairwiseWeights::rows(heads, dim);
    let (key_at, weights_at) = (j * rows + heads * dim, t * rows + (heads + 1) * dim);
    for h in 0..heads {
        let query_at = t * rows + h * dim;
        let matched = dot(&tokens[query_at..][..dim], &tokens[key_at..][..dim]);
        if matched > 0.0 {
            upstream[weights_at + h] += slope * matched;
            let along = slope * tokens[weights_at + h];
            for d in 0..dim {
                upstream[query_at + d] += along * tokens[key_at + d];
                upstream[key_at + d] += along * tokens[query_at + d];
            }
        }
    }
}

/// Turns gradients with respect to normalised projections into those with respect to the `raw`
/// ones, in place, and adds to those of gains and shifts. `norms`: the norms `[4, d]` and their
/// gradient.
fn finish_gradient(
    weights: &PairwiseWeights,
    raw: &[f32],
    norms: (&[f32], &mut [f32]),
    upstream: &mut [f32],
) {
    let (heads, dim) = (weights.heads, weights.dim);
    let rows = PairwiseWeights::rows(heads, dim);
    let scale = 1.0 / ((heads * dim) as f32).sqrt();
    for (raw, upstream) in raw.chunks_exact(rows).zip(upstream.chunks_exact_mut(rows)) {
        for (index, (x, slope)) in raw
            .chunks_exact(dim)
            .zip(upstream.chunks_exact_mut(dim))
            .take(heads + 1)
            .enumerate()
        {
            // Queries first, the key last.
            let own = if index < heads {
                0..2 * dim
            } else {
                2 * dim..4 * dim
            };
            layer_norm_gradient(x, &norms.0[own.clone()], &mut norms.1[own], slope);
        }
        upstream[(heads + 1) * dim..]
            .iter_mut()
            .for_each(|slope| *slope *= scale);
    }
}

/// Backward pass of a layer norm: `slope` of its outputs becomes that of its inputs `x`.
fn layer_norm_gradient(x: &[f32], norm: &[f32], norm_slope: &mut [f32], slope: &mut [f32]) {
    let len = x.len() as f32;
    let mean = x.iter().sum::<f32>() / len;
    let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / len;
    let inverse = 1.0 / (variance + EPSILON).sqrt();
    let (gains, _) = norm.split_at(x.len());
    let (gain_slopes, shift_slopes) = norm_slope.split_at_mut(x.len());
    let (mut sum, mut along) = (0.0, 0.0);
    for (i, (x, gain)) in x.iter().zip(gains).enumerate() {
        let normal = (x - mean) * inverse;
        gain_slopes[i] += slope[i] * normal;
        shift_slopes[i] += slope[i];
        slope[i] *= gain;
        sum += slope[i];
        along += slope[i] * normal;
    }
    for (slope, x) in slope.iter_mut().zip(x) {
        *slope = (*slope - sum / len - (x - mean) * inverse * along / len) * inverse;
    }
}
