//! Expected Attention: what later queries, taken to be like those so far, would give to a key.
//!
//! Source: Expected Attention (arXiv 2510.00636), as its authors' kvpress computes it. Queries
//! before rotation are taken as normal with the mean `m` and the covariance `C` of the queries read
//! so far; `R` is the mean rotation of the next [`FUTURE`] positions. A key (rotated where it
//! stands) gets `softmax_j( <R m, k_j> / sqrt(D) + k_j' R C R' k_j / 2D )`, averaged over the query
//! heads of its KV head, and the score is `(that + EPSILON) * |v_j|`.
//!
//! Here it streams: mean and covariance are running sums over every token but the first
//! [`SKIPPED`], and each boundary scores the slots that are left. These sums are not charged to the
//! budget, as the weights of learned scorers are not, though they grow with neither context nor
//! budget: `1 + D + D (D + 1) / 2` numbers of 8 bytes for each query head.
//!
//! Scores are attention probabilities weighted by the length of the value, and AdaKV (arXiv
//! 2407.11550) pools them over the heads of a layer with a floor of a fifth of the mean. That is
//! the head budget `layer` here, with the floor that every pooled head budget has; `column` and
//! `group` pool them, too.

use std::sync::Arc;

use palimpsest_kernels::Backend;

use super::{Attention, HeadView, Hook, Installed, LayerStep, Needs, NewTokens, Policy, Site};
use crate::error::Result;
use crate::rope::Angles;

/// Positions ahead over which the rotation is averaged.
pub const FUTURE: u64 = 512;
/// First positions whose queries are left out as outliers.
pub const SKIPPED: u64 = 4;
/// Added to expected probabilities before the values' lengths come in. Of the values tried the
/// one that suits the policy best; its authors' default is 0.
pub const EPSILON: f32 = 0.01;

/// Running sums over the queries of one query head: their number, the sum `[D]`, and the products
/// `[D (D + 1) / 2]`, row by row from the diagonal on. Tokens are added one by one in f64, so the
/// sums do not depend on how a sequence was cut.
pub struct Moments;

impl Moments {
    /// Numbers of one query head.
    pub const fn len(dim: usize) -> usize {
        1 + dim + dim * (dim + 1) / 2
    }

    /// Adds one query `[D]`.
    pub fn add(moments: &mut [f64], query: &[f64]) {
        let dim = query.len();
        moments[0] += 1.0;
        let (sums, mut products) = moments[1..].split_at_mut(dim);
        sums.iter_mut().zip(query).for_each(|(sum, q)| *sum += q);
        for (i, &q) in query.iter().enumerate() {
            let (row, rest) = products.split_at_mut(dim - i);
            row.iter_mut()
                .zip(&query[i..])
                .for_each(|(product, other)| *product += q * other);
            products = rest;
        }
    }

    /// Zero without any query.
    fn normal(moments: &[f64], dim: usize) -> Normal {
        let count = moments[0].max(1.0);
        let (sums, products) = moments[1..].split_at(dim);
        let mean: Vec<f64> = sums.iter().map(|sum| sum / count).collect();
        let mut covariance = vec![0.0; dim * dim];
        let mut next = products.iter();
        for i in 0..dim {
            for j in i..dim {
                let product = next.next().expect("D (D + 1) / 2 of them");
                let value = product / count - mean[i] * mean[j];
                covariance[i * dim + j] = value;
                covariance[j * dim + i] = value;
            }
        }
        Normal { mean, covariance }
    }
}

/// A normal distribution of queries.
struct Normal {
    /// `[D]`.
    mean: Vec<f64>,
    /// `[D, D]`.
    covariance: Vec<f64>,
}

/// Ranks by the attention that later queries are expected to give.
#[derive(Debug, Default)]
pub struct ExpectedAttention;

impl ExpectedAttention {
    /// Name on the wire.
    pub const NAME: &'static str = "expected-attention";
}

impl Policy for ExpectedAttention {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn comparable(&self) -> bool {
        true
    }

    /// The queries' sums cost a download of all queries, and a sum over their products.
    fn needs(&self) -> Needs {
        Needs {
            attention: Attention::Predicted,
            entries: true,
            host: true,
            ..Needs::default()
        }
    }

    fn predict(&self, head: &HeadView<'_>) -> Vec<Vec<f32>> {
        let dim = head.head_dim;
        let first = head
            .positions
            .partition_point(|&p| (p as usize) < head.sinks);
        let rotation = mean_rotation(head.next_rotary, head.inv_freq);
        let of = |moments: &[f64]| {
            let Normal {
                mut mean,
                mut covariance,
            } = Moments::normal(moments, dim);
            rotate(&mut mean, &rotation);
            rotate_both(&mut covariance, dim, &rotation);
            let mut expected = vec![0.0; first];
            expected.extend(softmax(&logits(
                &head.keys[first * dim..],
                &mean,
                &covariance,
            )));
            expected
        };
        head.sums.chunks_exact(Moments::len(dim)).map(of).collect()
    }

    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        // Before any query counts, values decide alone.
        let expected = head.mass.iter().copied().chain(std::iter::repeat(0.0));
        for ((score, value), p) in scores
            .iter_mut()
            .zip(head.values.chunks_exact(head.head_dim))
            .zip(expected)
        {
            *score = (p + EPSILON) * value.iter().map(|v| v * v).sum::<f32>().sqrt();
        }
    }
}

/// Installs the policy, which needs no training.
pub(super) fn install<B: Backend>(_: &mut Site<'_, '_, B>) -> Result<Option<Installed<B>>> {
    Ok(Some(Installed {
        policy: Arc::new(ExpectedAttention),
        hook: Some(Box::new(QuerySums)),
    }))
}

/// Adds a step's queries, turned back to before rotation, to the [`Moments`] of each query head.
struct QuerySums;

impl<B: Backend> Hook<B> for QuerySums {
    fn after_attention(
        &mut self,
        step: &LayerStep<'_, B>,
        queries: &B::Buffer,
        angles: &Angles,
        tokens: &mut [NewTokens<'_>],
    ) -> Result<()> {
        let (heads, dim) = (step.shape.heads, step.shape.head_dim);
        let (group, half) = (heads / step.shape.kv_heads, dim / 2);
        let len = Moments::len(dim);
        let mut host = vec![0.0; step.rows * heads * dim];
        step.backend.download(queries, 0, &mut host)?;
        let mut query = vec![0.0; dim];
        for new in tokens {
            let skipped = SKIPPED
                .saturating_sub(new.first_position)
                .min(new.rows.len() as u64) as usize;
            for row in new.rows.start + skipped..new.rows.end {
                let cos = &angles.cos[row * half..][..half];
                let sin = &angles.sin[row * half..][..half];
                for head in 0..heads {
                    let rotated = &host[(row * heads + head) * dim..][..dim];
                    turn_back(rotated, cos, sin, &mut query);
                    shorten(&mut query, &angles.scale);
                    let sums = &mut new.heads[head / group].sums;
                    sums.resize(group * len, 0.0);
                    Moments::add(&mut sums[head % group * len..][..len], &query);
                }
            }
        }
        Ok(())
    }
}

/// Undoes a rotation by angles with these cosines and sines `[D/2]`.
fn turn_back(rotated: &[f32], cos: &[f32], sin: &[f32], query: &mut [f64]) {
    let (low, high) = rotated.split_at(cos.len());
    let (to_low, to_high) = query.split_at_mut(cos.len());
    for i in 0..cos.len() {
        let [a, b, c, s] = [low[i], high[i], cos[i], sin[i]].map(f64::from);
        to_low[i] = a * c + b * s;
        to_high[i] = b * c - a * s;
    }
}

/// Takes the length out that turning there and back gave a query twice: later queries have it
/// once.
fn shorten(query: &mut [f64], scale: &[f32]) {
    let (low, high) = query.split_at_mut(scale.len());
    for ((a, b), scale) in low.iter_mut().zip(high).zip(scale) {
        *a /= f64::from(*scale);
        *b /= f64::from(*scale);
    }
}

/// A cosine and a sine.
struct Turn {
    cos: f64,
    sin: f64,
}

/// Mean cosines and sines `[D/2]` of the positions from `next` on.
fn mean_rotation(next: u64, inv_freq: &[f32]) -> Vec<Turn> {
    let mean = |freq: &f32| {
        let angles = (next..next + FUTURE).map(|position| f64::from(position as f32 * freq));
        let (cos, sin) = angles.fold((0.0, 0.0), |(c, s), angle| {
            (c + angle.cos(), s + angle.sin())
        });
        Turn {
            cos: cos / FUTURE as f64,
            sin: sin / FUTURE as f64,
        }
    };
    inv_freq.iter().map(mean).collect()
}

/// `R x` in place, in the layout of the rotary kernels: element `i` turns with element `i + D/2`.
fn rotate(x: &mut [f64], rotation: &[Turn]) {
    let (low, high) = x.split_at_mut(rotation.len());
    for ((a, b), Turn { cos, sin }) in low.iter_mut().zip(high).zip(rotation) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// `R C R'` in place, `C` symmetric.
fn rotate_both(matrix: &mut [f64], dim: usize, rotation: &[Turn]) {
    // Rows of C R' are those of C, rotated; its transpose is R C, whose rows are rotated in turn.
    for _ in 0..2 {
        matrix
            .chunks_exact_mut(dim)
            .for_each(|row| rotate(row, rotation));
        for i in 0..dim {
            for j in 0..i {
                matrix.swap(i * dim + j, j * dim + i);
            }
        }
    }
}

/// `<m, k> / sqrt(D) + k' C k / 2D` of every key.
fn logits(keys: &[f32], mean: &[f64], covariance: &[f64]) -> Vec<f32> {
    let dim = mean.len();
    let (linear, square) = (1.0 / (dim as f64).sqrt(), 0.5 / dim as f64);
    // One matrix for both terms: k' (C / 2D) k + (m / sqrt(D))' k, with sums over whole rows so
    // that they run in lanes.
    let scaled: Vec<f32> = covariance.iter().map(|c| (c * square) as f32).collect();
    let mean: Vec<f32> = mean.iter().map(|m| (m * linear) as f32).collect();
    let mut image = vec![0.0f32; dim];
    let of = |key: &[f32]| {
        image.copy_from_slice(&mean);
        for (k, row) in key.iter().zip(scaled.chunks_exact(dim)) {
            image.iter_mut().zip(row).for_each(|(x, c)| *x += k * c);
        }
        image.iter().zip(key).map(|(x, k)| x * k).sum()
    };
    keys.chunks_exact(dim).map(of).collect()
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = logits.iter().map(|l| (l - most).exp()).collect();
    let sum: f32 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

#[cfg(test)]
mod tests;
