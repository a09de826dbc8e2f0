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
//! the head budget `layer` here, with the floor of [`crate::kv::budget::FLOOR_SHARE`]; `column` and
//! `group` pool them, too.

use super::{HeadView, Policy};

/// Positions ahead over which the rotation is averaged.
pub const FUTURE: u64 = 512;
/// First positions whose queries are left out as outliers.
pub const SKIPPED: u64 = 4;
/// Added to expected probabilities before the values' lengths come in. Of the values tried (method
/// section 9 and the models' notes) the one that suits the policy best; its authors' default is 0.
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

    /// Mean `[D]` and covariance `[D, D]`; zero without any query.
    fn normal(moments: &[f64], dim: usize) -> (Vec<f64>, Vec<f64>) {
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
        (mean, covariance)
    }
}

/// Queries as a policy sees them.
#[derive(Debug, Clone, Copy)]
pub struct QueryView<'a> {
    /// [`Moments`] of every query head of the KV head; empty before the first token that counts.
    pub moments: &'a [f64],
    /// Rotary position of the next token.
    pub next: u64,
    /// Inverse rotary frequencies `[D/2]`.
    pub inv_freq: &'a [f32],
}

/// Ranks by the attention that later queries are expected to give.
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
    fn reads_slots(&self) -> bool {
        true
    }
    fn reads_queries(&self) -> bool {
        true
    }
    fn expected(&self, head: &HeadView<'_>) -> Vec<Vec<f32>> {
        let dim = head.head_dim;
        let first = head
            .positions
            .partition_point(|&p| (p as usize) < head.sinks);
        let rotation = mean_rotation(&head.queries);
        let of = |moments: &[f64]| {
            let (mut mean, mut covariance) = Moments::normal(moments, dim);
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
        head.queries
            .moments
            .chunks_exact(Moments::len(dim))
            .map(of)
            .collect()
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

/// Mean cosines and sines `[D/2]` of the positions to come.
fn mean_rotation(queries: &QueryView<'_>) -> Vec<(f64, f64)> {
    let mean = |freq: &f32| {
        let angles =
            (queries.next..queries.next + FUTURE).map(|position| f64::from(position as f32 * freq));
        let (cos, sin) = angles.fold((0.0, 0.0), |(c, s), angle| {
            (c + angle.cos(), s + angle.sin())
        });
        (cos / FUTURE as f64, sin / FUTURE as f64)
    };
    queries.inv_freq.iter().map(mean).collect()
}

/// `R x` in place, in the layout of the rotary kernels: element `i` turns with element `i + D/2`.
fn rotate(x: &mut [f64], rotation: &[(f64, f64)]) {
    let (low, high) = x.split_at_mut(rotation.len());
    for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(rotation) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// `R C R'` in place, `C` symmetric.
fn rotate_both(matrix: &mut [f64], dim: usize, rotation: &[(f64, f64)]) {
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
mod tests {
    use super::*;
    use crate::policy::splitmix;

    const DIM: usize = 8;

    fn random(salt: u64, count: usize) -> Vec<f64> {
        let at = |i: u64| (splitmix(salt << 32 ^ i) >> 40) as f64 / (1u64 << 23) as f64 - 1.0;
        (0..count as u64).map(at).collect()
    }

    /// The formula, written out: matrices of every single rotation, averaged.
    fn oracle(
        queries: &[Vec<f64>],
        keys: &[Vec<f64>],
        (next, inv_freq): (u64, &[f32]),
    ) -> Vec<f64> {
        let half = DIM / 2;
        let mut rotation = vec![vec![0.0; DIM]; DIM];
        for position in next..next + FUTURE {
            for (i, freq) in inv_freq.iter().enumerate() {
                let angle = f64::from(position as f32 * freq);
                for (row, column, value) in [
                    (i, i, angle.cos()),
                    (i, i + half, -angle.sin()),
                    (i + half, i, angle.sin()),
                    (i + half, i + half, angle.cos()),
                ] {
                    rotation[row][column] += value / FUTURE as f64;
                }
            }
        }
        let n = queries.len() as f64;
        let mean: Vec<f64> = (0..DIM)
            .map(|d| queries.iter().map(|q| q[d]).sum::<f64>() / n)
            .collect();
        let covariance = |a: usize, b: usize| {
            queries
                .iter()
                .map(|q| (q[a] - mean[a]) * (q[b] - mean[b]))
                .sum::<f64>()
                / n
        };
        let turn = |x: &dyn Fn(usize) -> f64, row: usize| {
            (0..DIM).map(|d| rotation[row][d] * x(d)).sum::<f64>()
        };
        let logit = |key: &Vec<f64>| {
            let linear: f64 = (0..DIM).map(|d| turn(&|e| mean[e], d) * key[d]).sum();
            let mut square = 0.0;
            for a in 0..DIM {
                for b in 0..DIM {
                    let turned: f64 = turn(&|c| turn(&|e| covariance(c, e), b), a);
                    square += key[a] * turned * key[b];
                }
            }
            linear / (DIM as f64).sqrt() + square / (2.0 * DIM as f64)
        };
        let weights: Vec<f64> = keys.iter().map(|key| logit(key).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|w| w / sum).collect()
    }

    #[test]
    fn scores_are_those_of_the_formula() {
        let (sinks, slots, group) = (4, 40, 3);
        let inv_freq = [1.0, 0.3, 0.05, 0.002];
        let rows = |all: Vec<f64>| {
            all.chunks_exact(DIM)
                .map(<[f64]>::to_vec)
                .collect::<Vec<_>>()
        };
        let keys = rows(random(1, slots * DIM).iter().map(|k| 3.0 * k).collect());
        let values = rows(random(2, slots * DIM));
        let mut moments = Vec::new();
        let mut expected = vec![0.0; slots - sinks];
        for head in 0..group as u64 {
            let queries: Vec<Vec<f64>> = rows(random(3 + head, 50 * DIM))
                .into_iter()
                .map(|q| {
                    q.iter()
                        .enumerate()
                        .map(|(d, x)| 2.0 * x + d as f64 * 0.2)
                        .collect()
                })
                .collect();
            let mut own = vec![0.0; Moments::len(DIM)];
            queries
                .iter()
                .for_each(|query| Moments::add(&mut own, query));
            moments.extend(own);
            let of_head = oracle(&queries, &keys[sinks..], (700, &inv_freq));
            expected
                .iter_mut()
                .zip(of_head)
                .for_each(|(e, p)| *e += p / group as f64);
        }
        let flat = |rows: &[Vec<f64>]| rows.iter().flatten().map(|&x| x as f32).collect::<Vec<_>>();
        let (flat_keys, flat_values) = (flat(&keys), flat(&values));
        let view = HeadView {
            layer: 0,
            kv_head: 0,
            at: 699,
            sinks,
            head_dim: DIM,
            positions: &(0..slots as u32)
                .map(|i| if i < 4 { i } else { 5 * i })
                .collect::<Vec<_>>(),
            terms: &[],
            mass: &[],
            keys: &flat_keys,
            values: &flat_values,
            queries: QueryView {
                moments: &moments,
                next: 700,
                inv_freq: &inv_freq,
            },
        };
        let of_heads = ExpectedAttention.expected(&view);
        assert_eq!(of_heads.len(), group);
        let mass: Vec<f32> = (0..slots)
            .map(|s| of_heads.iter().map(|p| p[s]).sum::<f32>() / group as f32)
            .collect();
        let view = HeadView {
            mass: &mass,
            ..view
        };
        let mut scores = vec![f32::NAN; slots];
        ExpectedAttention.score(&view, &mut scores);
        let norm = |v: &Vec<f64>| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        for (slot, score) in scores.iter().enumerate().skip(sinks) {
            let want = (expected[slot - sinks] + f64::from(EPSILON)) * norm(&values[slot]);
            assert!(
                (f64::from(*score) - want).abs() < 1e-5 * (1.0 + want),
                "slot {slot}: {score}, {want} expected"
            );
        }
        // The expected attention decides, not the values alone.
        let most =
            |of: &dyn Fn(usize) -> f64| (sinks..slots).max_by(|a, b| of(*a).total_cmp(&of(*b)));
        assert_ne!(most(&|s| f64::from(scores[s])), most(&|s| norm(&values[s])));
        // Before any query counts, values decide alone.
        let before = HeadView {
            mass: &[],
            queries: QueryView {
                moments: &[],
                ..view.queries
            },
            ..view
        };
        assert!(ExpectedAttention.expected(&before).is_empty());
        ExpectedAttention.score(&before, &mut scores);
        assert!((scores[7] - EPSILON * norm(&values[7]) as f32).abs() < 1e-6);
    }
}
