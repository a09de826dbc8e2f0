//! Fits the pairwise indexer to the reconstruction target, a layer at a time.
//!
//! An entry's score is the largest it gets from any query, so only the pair that attains it has a
//! gradient: the best query of every entry is found with the engine's own arithmetic, and gradients
//! of those pairs alone are linear in the length.

use palimpsest_engine::policy::pairwise::{EPSILON, PairwiseLayer, PairwiseWeights};

use crate::collect::LayerSample;
use crate::draws::Draws;
use crate::gradient::{Adam, Scaling, add_outer, dot, uniform};

/// Entries among the last ones of a document have seen too few queries to learn from.
const LEAST_QUERIES: usize = 128;

/// Shape and training of the pairwise indexer.
#[derive(Debug, Clone, Copy)]
pub struct QueryOptions {
    /// `h`: indexer heads of one KV head.
    pub heads: usize,
    /// `d`: width of indexer queries and keys.
    pub dim: usize,
    /// Passes over the documents.
    pub epochs: usize,
    /// Learning rate at the start; it falls to 0 linearly.
    pub rate: f32,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self {
            heads: 2,
            dim: 8,
            epochs: 5,
            rate: 3e-3,
        }
    }
}

/// Fits one layer on all `documents`. Channels of hidden states differ in size by orders of
/// magnitude, which gradient descent cannot cope with: they are standardised for training, and the
/// weights take that in at the end.
pub fn fit(
    documents: &[LayerSample],
    kv_heads: usize,
    hidden: usize,
    options: QueryOptions,
    seed: u64,
) -> PairwiseLayer {
    let scaling = Scaling::of(
        documents.iter().map(|document| &document.hidden[..]),
        hidden,
    );
    let standardised = |document: &LayerSample| LayerSample {
        hidden: scaling.standardised(&document.hidden),
        targets: document.targets.clone(),
        ..LayerSample::default()
    };
    let documents: Vec<_> = documents.iter().map(standardised).collect();
    let documents = &documents[..];
    let mut weights = start(documents, kv_heads, hidden, options, seed);
    let sizes = parts(&mut weights.layers[0]).map(|part| part.len());
    let mut optimizers = sizes.map(Adam::new);
    let steps = options.epochs * documents.len();
    for step in 0..steps {
        let document = &documents[step % documents.len()];
        let (_, mut gradient) = loss(&weights, document, kv_heads);
        let rate = options.rate * (1.0 - step as f32 / steps as f32);
        let moved = parts(&mut weights.layers[0])
            .into_iter()
            .zip(parts(&mut gradient));
        for (optimizer, (part, gradient)) in optimizers.iter_mut().zip(moved) {
            optimizer.step(part, gradient, rate);
        }
    }
    let mut layer = weights.layers.remove(0);
    scaling.fold(&mut layer.weight, Some(&mut layer.bias));
    layer
}

/// The arrays of a layer.
fn parts(layer: &mut PairwiseLayer) -> [&mut Vec<f32>; 4] {
    [
        &mut layer.weight,
        &mut layer.bias,
        &mut layer.norm,
        &mut layer.offset,
    ]
}

/// Weights of one layer before training.
fn start(
    documents: &[LayerSample],
    kv_heads: usize,
    hidden: usize,
    options: QueryOptions,
    seed: u64,
) -> PairwiseWeights {
    let QueryOptions { heads, dim, .. } = options;
    let rows = PairwiseWeights::rows(heads, dim);
    let bound = 1.0 / (hidden as f32).sqrt();
    let weight = uniform(&mut Draws::new(seed), kv_heads * rows * hidden, bound);
    // Head weights begin at 1 after their scaling, so that scores begin as sums of matches.
    let one = ((heads * dim) as f32).sqrt();
    let bias = (0..kv_heads * rows)
        .map(|i| {
            if i % rows >= (heads + 1) * dim {
                one
            } else {
                0.0
            }
        })
        .collect();
    let norm = (0..kv_heads * 4 * dim)
        .map(|i| if i / dim % 2 == 0 { 1.0 } else { 0.0 })
        .collect();
    let count: usize = documents.iter().map(|d| d.targets.len() / kv_heads).sum();
    let mean = |k: usize| {
        let targets = documents
            .iter()
            .flat_map(|d| d.targets.iter().skip(k).step_by(kv_heads));
        targets.map(|t| f64::from(*t)).sum::<f64>() / count.max(1) as f64
    };
    let offset = (0..kv_heads).map(|k| mean(k) as f32).collect();
    PairwiseWeights {
        heads,
        dim,
        layers: vec![PairwiseLayer {
            weight,
            bias,
            norm,
            offset,
        }],
    }
}

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
        for (j, (score, _)) in best_queries(&weights, &finished).into_iter().enumerate() {
            scores[j * kv_heads + kv_head] = score + layer.offset[kv_head];
        }
    }
    scores
}

/// Projections of every token for one KV head before normalisation, `[n, rows]`.
fn project(weights: &PairwiseWeights, kv_head: usize, hidden: &[f32]) -> Vec<f32> {
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

/// For every entry its largest score and the query that gives it. `tokens`: normalised projections.
fn best_queries(weights: &PairwiseWeights, tokens: &[f32]) -> Vec<(f32, usize)> {
    let (heads, dim) = (weights.heads, weights.dim);
    let tokens: Vec<&[f32]> = tokens
        .chunks_exact(PairwiseWeights::rows(heads, dim))
        .collect();
    // Keys by channel, so that vector lanes run over entries.
    let channels: Vec<Vec<f32>> = (0..dim)
        .map(|d| tokens.iter().map(|token| token[heads * dim + d]).collect())
        .collect();
    let mut best = vec![(f32::NEG_INFINITY, 0); tokens.len()];
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
            if *score > best.0 {
                *best = (*score, t);
            }
        }
    }
    best
}

/// Mean squared error of the scores of a document's entries, and its gradient.
fn loss(
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
        for (j, (score, t)) in best_queries(weights, &finished)
            .into_iter()
            .take(entries)
            .enumerate()
        {
            let off = score + layer.offset[kv_head] - document.targets[j * kv_heads + kv_head];
            error += f64::from(off * off) / (entries * kv_heads) as f64;
            let slope = 2.0 * off / (entries * kv_heads) as f32;
            gradient.offset[kv_head] += slope;
            pair_gradient(weights, &finished, (t, j), slope, &mut upstream);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradient::testing;

    const OPTIONS: QueryOptions = QueryOptions {
        heads: 2,
        dim: 4,
        epochs: 60,
        rate: 1e-2,
    };

    /// Documents whose targets are the scores of a known indexer.
    fn documents(count: usize) -> (Vec<LayerSample>, usize, usize) {
        let (kv_heads, hidden, tokens) = (2, 6, 160);
        let rows = PairwiseWeights::rows(OPTIONS.heads, OPTIONS.dim);
        let mut draws = Draws::new(5);
        let mut values = |n: usize| (0..n).map(|_| draws.signed()).collect::<Vec<f32>>();
        let teacher = PairwiseLayer {
            weight: values(kv_heads * rows * hidden),
            bias: values(kv_heads * rows),
            norm: vec![1.0; kv_heads * 4 * OPTIONS.dim],
            offset: vec![-3.0, -5.0],
        };
        let sample = |hidden: Vec<f32>| LayerSample {
            targets: predict(&teacher, OPTIONS, &hidden, kv_heads),
            hidden,
            ..LayerSample::default()
        };
        (
            (0..count)
                .map(|_| sample(values(tokens * hidden)))
                .collect(),
            kv_heads,
            hidden,
        )
    }

    fn error(layer: &PairwiseLayer, document: &LayerSample, kv_heads: usize) -> f32 {
        let scores = predict(layer, OPTIONS, &document.hidden, kv_heads);
        let squares = scores
            .iter()
            .zip(&document.targets)
            .map(|(s, t)| (s - t) * (s - t));
        squares.sum::<f32>() / scores.len() as f32
    }

    #[test]
    fn training_explains_most_of_a_known_indexer_on_a_new_document() {
        let (documents, kv_heads, hidden) = documents(5);
        let (held_out, train) = documents.split_last().expect("five");
        let before = fit(
            train,
            kv_heads,
            hidden,
            QueryOptions {
                epochs: 0,
                ..OPTIONS
            },
            3,
        );
        let after = fit(train, kv_heads, hidden, OPTIONS, 3);
        let (before, after) = (
            error(&before, held_out, kv_heads),
            error(&after, held_out, kv_heads),
        );
        assert!(
            after < 0.3 * before,
            "{after} after training, {before} before"
        );
    }

    #[test]
    fn the_loss_is_that_of_the_engines_scores() {
        let (documents, kv_heads, hidden) = documents(1);
        let weights = start(&documents, kv_heads, hidden, OPTIONS, 9);
        let (loss, _) = loss(&weights, &documents[0], kv_heads);
        let entries = documents[0].targets.len() / kv_heads - LEAST_QUERIES;
        let scores = predict(&weights.layers[0], OPTIONS, &documents[0].hidden, kv_heads);
        let pairs = scores
            .iter()
            .zip(&documents[0].targets)
            .take(entries * kv_heads);
        let want = pairs.map(|(s, t)| (s - t) * (s - t)).sum::<f32>() / (entries * kv_heads) as f32;
        assert!(
            (loss as f32 - want).abs() < 1e-3 * want.max(1.0),
            "{loss} is not {want}"
        );
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let (documents, kv_heads, hidden) = documents(1);
        let mut weights = start(&documents, kv_heads, hidden, OPTIONS, 9);
        let (_, mut gradient) = loss(&weights, &documents[0], kv_heads);
        for part in 0..4 {
            let mut parameters = parts(&mut weights.layers[0])[part].clone();
            let gradient = parts(&mut gradient)[part].clone();
            testing::check(&mut parameters, &gradient, 7, &mut |moved| {
                parts(&mut weights.layers[0])[part].copy_from_slice(moved);
                loss(&weights, &documents[0], kv_heads).0
            });
            parts(&mut weights.layers[0])[part].copy_from_slice(&parameters);
        }
    }
}
