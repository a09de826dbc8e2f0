//! Scores against the formulas of the papers, written out slowly in f64.

use palimpsest_kernels::ScoreRule;

use super::retention::{LayerScorer, RecentScorer, RetentionWeights};
use super::*;
use crate::random::splitmix;

mod value_norm;

const DIM: usize = 8;

/// One head with random contents; gaps in the positions as after evictions.
struct Head {
    positions: Vec<u32>,
    mass: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Head {
    fn random(seed: u64, len: usize) -> Self {
        let at = |salt: u64, i: usize| {
            (splitmix(seed ^ salt << 32 ^ i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        Self {
            positions: (0..len as u32)
                .map(|i| if i < 4 { i } else { 3 * i })
                .collect(),
            mass: (0..len).map(|i| at(1, i).abs()).collect(),
            keys: (0..len * DIM).map(|i| at(2, i)).collect(),
            values: (0..len * DIM).map(|i| at(3, i)).collect(),
        }
    }

    fn scores(&self, policy: &dyn Policy) -> Vec<f32> {
        let view = HeadView {
            layer: 1,
            kv_head: 2,
            at: u64::from(self.positions[self.positions.len() - 1]),
            sinks: 4,
            head_dim: DIM,
            positions: &self.positions,
            terms: &[],
            mass: &self.mass,
            keys: &self.keys,
            values: &self.values,
            sums: &[],
            next_rotary: 0,
            inv_freq: &[],
        };
        let mut scores = vec![f32::NAN; self.positions.len()];
        policy.score(&view, &mut scores);
        scores
    }

    fn rows(values: &[f32]) -> Vec<Vec<f64>> {
        values
            .chunks_exact(DIM)
            .map(|row| row.iter().map(|&v| f64::from(v)).collect())
            .collect()
    }
}

fn close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (slot, (&got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(got) - want).abs() < 1e-5,
            "slot {slot}: {got}, {want} expected"
        );
    }
}

#[test]
fn window_prefers_the_recent_and_random_ignores_everything_but_the_place() {
    let head = Head::random(1, 40);
    assert!(head.scores(&Window).is_sorted());
    let other = Head {
        keys: Vec::new(),
        ..Head::random(1, 40)
    };
    assert_eq!(head.scores(&RandomPolicy), other.scores(&RandomPolicy));
    let mut distinct = head.scores(&RandomPolicy);
    distinct.sort_by(f32::total_cmp);
    distinct.dedup();
    assert_eq!(distinct.len(), 40);
}

#[test]
fn h2o_and_tova_rank_by_the_attention_they_observed() {
    let head = Head::random(2, 50);
    assert_eq!(head.scores(&H2o), head.mass);
    assert_eq!(head.scores(&Tova), head.mass);
    // H2O sums every row, for ever; TOVA looks at the last row alone.
    let observed = |policy: &dyn Policy| {
        let observe = policy
            .needs()
            .attention
            .observed()
            .expect("it looks at attention");
        (observe.last_rows, observe.forgets)
    };
    assert_eq!(observed(&H2o), (None, false));
    assert_eq!(observed(&Tova), (Some(1), true));
}

#[test]
fn snapkv_pools_over_neighbours_with_zeros_beyond_the_ends() {
    for len in [1, 4, 5, 50] {
        let head = Head::random(3, len);
        let padded = |i: isize| {
            if i < 0 || i >= len as isize {
                0.0
            } else {
                f64::from(head.mass[i as usize])
            }
        };
        let want: Vec<f64> = (0..len as isize)
            .map(|i| (i - 2..=i + 2).map(padded).sum::<f64>() / 5.0)
            .collect();
        close(&head.scores(&SnapKv), &want);
    }
}

/// Their formulas are tested where they are: in the kernels.
#[test]
fn policies_of_keys_and_notes_are_scored_on_the_device() {
    assert_eq!(KNorm.rule(0, 0), Some(ScoreRule::KeyNorm));
    assert_eq!(KeyDiff.rule(1, 2), Some(ScoreRule::KeyDirection));
    assert!(
        !KNorm.needs().entries && !KeyDiff.needs().entries,
        "nothing is downloaded for them"
    );
    let layer = |rate: [f32; 2]| LayerScorer {
        weight: vec![0.5; 6],
        bias: vec![0.5, 1.0],
        rate: rate.to_vec(),
        recent: None,
    };
    let layers = vec![layer([0.0, 0.0]), layer([-1.0, -0.5])];
    let policy = Retention::new(Arc::new(RetentionWeights { layers }));
    assert_eq!(
        policy.rule(1, 1),
        Some(ScoreRule::Fading {
            rate: -0.5,
            scale: retention::AGE
        })
    );
    let recent = RecentScorer {
        weight: vec![0.25; 6],
        bias: vec![2.0; 2],
        rate: vec![-3.0, -0.25],
    };
    let two = LayerScorer {
        recent: Some(recent),
        ..layer([0.0, 0.0])
    };
    assert_eq!(
        two.rule(1),
        ScoreRule::Either {
            rate: -0.25,
            scale: retention::AGE
        }
    );
    assert!(policy.needs().notes && policy.needs().terms == 0);
    assert_eq!(Window.rule(0, 0), None);
}

/// Softmax over `rows` of the standard deviation across channels, channels scaled to the range they
/// have in `lag`.
fn lag_scores(rows: &[Vec<f64>], lag: &[Vec<f64>]) -> Vec<f64> {
    let low = |d: usize| lag.iter().map(|row| row[d]).fold(f64::INFINITY, f64::min);
    let high = |d: usize| {
        lag.iter()
            .map(|row| row[d])
            .fold(f64::NEG_INFINITY, f64::max)
    };
    let deviation = |row: &Vec<f64>| {
        let scaled: Vec<f64> = (0..DIM)
            .map(|d| (row[d] - low(d)) / (high(d) - low(d)))
            .collect();
        let mean = scaled.iter().sum::<f64>() / DIM as f64;
        (scaled.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (DIM - 1) as f64).sqrt()
    };
    let weights: Vec<f64> = rows.iter().map(|row| deviation(row).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

#[test]
fn lagkv_ranks_each_partition_against_the_next() {
    let lag = LagKv::LAG;
    let (sinks, rest) = (4, 37);
    let head = Head::random(6, sinks + 3 * lag + rest);
    let got = head.scores(&LagKv);
    let (keys, values) = (Head::rows(&head.keys), Head::rows(&head.values));
    for start in [sinks, sinks + lag] {
        let (part, next) = (start..start + lag, start + lag..start + 2 * lag);
        let k = lag_scores(&keys[part.clone()], &keys[next.clone()]);
        let v = lag_scores(&values[part.clone()], &values[next]);
        let joint: Vec<f64> = k.iter().zip(&v).map(|(k, v)| k + v).collect();
        for (slot, score) in got[part].iter().enumerate() {
            // Rank among the partition: how many are clearly below, and how many may be.
            let below = joint.iter().filter(|&&x| x < joint[slot] - 1e-7).count();
            let at_most = joint.iter().filter(|&&x| x < joint[slot] + 1e-7).count();
            let rank = (score * lag as f32).round() as usize;
            assert!(
                (below..at_most).contains(&rank),
                "slot {slot} of the partition at {start}: rank {rank}"
            );
        }
    }
    // Sinks, the last whole partition and what follows it have no successor: nothing ranks above
    // them.
    let free = got[..sinks].iter().chain(&got[sinks + 2 * lag..]);
    assert!(free.clone().count() == sinks + lag + rest && free.into_iter().all(|&s| s == 1.0));
}

/// CONTRIBUTING.md shows a policy. It is this file, so what it shows compiles, and does what it
/// says.
#[test]
fn the_policy_of_the_guide_is_one_that_works() {
    let guide = include_str!("../../../CONTRIBUTING.md");
    assert!(guide.contains(include_str!("tests/value_norm.rs")));
    let head = Head::random(9, 20);
    let want: Vec<f64> = Head::rows(&head.values)
        .iter()
        .map(|value| value.iter().map(|v| v.abs()).sum())
        .collect();
    close(&head.scores(&value_norm::ValueNorm), &want);
}
