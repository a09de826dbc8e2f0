//! Fits the pairwise indexer to the reconstruction target, a layer at a time.
//!
//! An entry's score is the largest it gets from any query, so only the pair that attains it has a
//! gradient: the best query of every entry is found with the engine's own arithmetic, and gradients
//! of those pairs alone are linear in the length.

mod loss;
mod options;
mod scores;

use palimpsest_engine::policy::pairwise::{PairwiseLayer, PairwiseWeights};

use self::loss::loss;
pub use self::options::QueryOptions;
pub use self::scores::predict;
use crate::collect::LayerSample;
use crate::draws::Draws;
use crate::gradient::{Adam, Scaling, uniform};

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

#[cfg(test)]
mod tests {
    use super::loss::LEAST_QUERIES;
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
