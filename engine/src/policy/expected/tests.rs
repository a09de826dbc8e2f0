//! Scores against the formula, written out.

use super::*;
use crate::random::splitmix;

const DIM: usize = 8;

fn random(salt: u64, count: usize) -> Vec<f64> {
    let at = |i: u64| (splitmix(salt << 32 ^ i) >> 40) as f64 / (1u64 << 23) as f64 - 1.0;
    (0..count as u64).map(at).collect()
}

/// The formula, written out: matrices of every single rotation, averaged.
fn oracle(queries: &[Vec<f64>], keys: &[Vec<f64>], next: u64, inv_freq: &[f32]) -> Vec<f64> {
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

const SINKS: usize = 4;
const SLOTS: usize = 40;
/// Query heads of the KV head.
const GROUP: usize = 3;
/// Rotary position of the next token.
const NEXT: u64 = 700;
const INV_FREQ: [f32; DIM / 2] = [1.0, 0.3, 0.05, 0.002];

/// A KV head with random contents.
struct Head {
    positions: Vec<u32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Moments of the queries so far.
    sums: Vec<f64>,
    /// What the formula says that the slots behind the sinks get, averaged over query heads.
    expected: Vec<f64>,
}

impl Head {
    fn random() -> Self {
        let keys: Vec<f64> = random(1, SLOTS * DIM).iter().map(|k| 3.0 * k).collect();
        let rows: Vec<Vec<f64>> = keys.chunks_exact(DIM).map(<[f64]>::to_vec).collect();
        let (mut sums, mut expected) = (Vec::new(), vec![0.0; SLOTS - SINKS]);
        for query_head in 0..GROUP as u64 {
            let queries = Self::queries(query_head);
            let mut own = vec![0.0; Moments::len(DIM)];
            queries
                .iter()
                .for_each(|query| Moments::add(&mut own, query));
            sums.extend(own);
            let of_head = oracle(&queries, &rows[SINKS..], NEXT, &INV_FREQ);
            expected
                .iter_mut()
                .zip(of_head)
                .for_each(|(e, p)| *e += p / GROUP as f64);
        }
        let single = |values: &[f64]| values.iter().map(|&x| x as f32).collect();
        Self {
            positions: (0..SLOTS as u32)
                .map(|i| if i < 4 { i } else { 5 * i })
                .collect(),
            keys: single(&keys),
            values: single(&random(2, SLOTS * DIM)),
            sums,
            expected,
        }
    }

    /// Fifty queries whose channels differ in their means.
    fn queries(query_head: u64) -> Vec<Vec<f64>> {
        let shifted = |q: &[f64]| {
            q.iter()
                .enumerate()
                .map(|(d, x)| 2.0 * x + d as f64 * 0.2)
                .collect()
        };
        random(3 + query_head, 50 * DIM)
            .chunks_exact(DIM)
            .map(shifted)
            .collect()
    }

    fn view(&self) -> HeadView<'_> {
        HeadView {
            layer: 0,
            kv_head: 0,
            at: NEXT - 1,
            next_rotary: NEXT,
            sinks: SINKS,
            head_dim: DIM,
            inv_freq: &INV_FREQ,
            positions: &self.positions,
            terms: &[],
            mass: &[],
            keys: &self.keys,
            values: &self.values,
            sums: &self.sums,
        }
    }

    /// Length of a slot's value.
    fn norm(&self, slot: usize) -> f64 {
        let value = &self.values[slot * DIM..][..DIM];
        value
            .iter()
            .map(|&x| f64::from(x) * f64::from(x))
            .sum::<f64>()
            .sqrt()
    }
}

#[test]
fn scores_are_those_of_the_formula() {
    let head = Head::random();
    let of_heads = ExpectedAttention.predict(&head.view());
    assert_eq!(of_heads.len(), GROUP);
    let mass: Vec<f32> = (0..SLOTS)
        .map(|s| of_heads.iter().map(|p| p[s]).sum::<f32>() / GROUP as f32)
        .collect();
    let view = HeadView {
        mass: &mass,
        ..head.view()
    };
    let mut scores = vec![f32::NAN; SLOTS];
    ExpectedAttention.score(&view, &mut scores);
    for (slot, score) in scores.iter().enumerate().skip(SINKS) {
        let want = (head.expected[slot - SINKS] + f64::from(EPSILON)) * head.norm(slot);
        assert!(
            (f64::from(*score) - want).abs() < 1e-5 * (1.0 + want),
            "slot {slot}: {score}, {want} expected"
        );
    }
    // The expected attention decides, not the values alone.
    let most = |of: &dyn Fn(usize) -> f64| (SINKS..SLOTS).max_by(|a, b| of(*a).total_cmp(&of(*b)));
    assert_ne!(most(&|s| f64::from(scores[s])), most(&|s| head.norm(s)));
}

#[test]
fn values_decide_alone_before_any_query_counts() {
    let head = Head::random();
    let before = HeadView {
        sums: &[],
        ..head.view()
    };
    assert!(ExpectedAttention.predict(&before).is_empty());
    let mut scores = vec![f32::NAN; SLOTS];
    ExpectedAttention.score(&before, &mut scores);
    assert!((scores[7] - EPSILON * head.norm(7) as f32).abs() < 1e-6);
}

#[test]
fn turning_back_undoes_the_rotation() {
    let angle = 0.7f32;
    let (x, y) = (0.25f32, -1.5f32);
    let rotated = [
        x * angle.cos() - y * angle.sin(),
        y * angle.cos() + x * angle.sin(),
    ];
    let mut query = [0.0; 2];
    turn_back(&rotated, &[angle.cos()], &[angle.sin()], &mut query);
    assert!((query[0] - f64::from(x)).abs() < 1e-6 && (query[1] - f64::from(y)).abs() < 1e-6);
}
