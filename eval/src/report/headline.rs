//! One line a cache: the mean over tasks, and how it differs from what the full cache reaches on
//! the same prompts.
//!
//! Intervals are a paired bootstrap (Efron and Tibshirani, "An introduction to the bootstrap",
//! 1993): samples are drawn again within each task, the same ones for the cache and for the full
//! one. With fewer than about ten samples a task they are too narrow, and say nothing where all
//! samples agree.

use serde::Serialize;

use super::pairing::{Comparison, Measured, Pair, Stratum, comparisons};
use crate::contracts::{Budget, CacheShape};
use crate::draws::Draws;
use crate::record::{Cell, Metric, Protocol, SampleResult};
use crate::stats::distinct;
use crate::tasks::Task;

/// Times that the samples are drawn again.
const DRAWS: usize = 2000;

/// A cache's line. Intervals are those of the middle 95 % of the draws.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Headline {
    /// Model and indexer.
    pub model: String,
    /// Tasks averaged over, each with the same weight, and so are depths.
    pub tasks: Vec<Task>,
    /// Tokens of the context.
    pub length: usize,
    /// Protocol.
    pub protocol: Protocol,
    /// The cache.
    pub cache: String,
    /// Its budget.
    pub budget: Option<Budget>,
    /// Samples that both caches have, over all tasks.
    pub n: usize,
    /// Mean accuracy.
    pub score: f64,
    /// The same as a share of the full cache's; `None` where that is 0.
    pub of_full: Option<f64>,
    /// Its interval.
    pub of_full_interval: Option<(f64, f64)>,
    /// Mean log-likelihood per answer token less that of the full cache, nats.
    pub loss: f64,
    /// Its interval.
    pub loss_interval: (f64, f64),
    /// Mean share held.
    pub share: f64,
    /// Interval of `score`.
    pub score_interval: (f64, f64),
    /// Mean accuracy less that of the full cache.
    pub difference: f64,
    /// Its interval.
    pub difference_interval: (f64, f64),
    /// When an answer counts.
    pub metric: Metric,
    /// Tokens between boundaries.
    pub stride: usize,
}

impl Headline {
    /// Whether no sample differs in the least from the full cache's: it is the cache that others
    /// are compared with.
    pub fn is_reference(&self) -> bool {
        self.budget.is_none() && self.loss_interval == (0.0, 0.0)
    }
}

/// Lines of everything for which the full cache was measured. A cache that lacks some of a
/// comparison's tasks has its line in a group of its own, beside the full cache on the same tasks.
pub fn headlines(cells: &[Cell], samples: &[SampleResult]) -> Vec<Headline> {
    let mut found = Vec::new();
    for comparison in comparisons(cells) {
        let own: Vec<&Cell> = cells
            .iter()
            .filter(|cell| comparison.covers(&cell.setting, cells))
            .collect();
        let settings = distinct(own.iter().map(|cell| &cell.setting));
        let strata = distinct(settings.iter().map(|setting| Stratum::of(setting)));
        let measured: Vec<Measured<'_>> = distinct(own.iter().map(|cell| &cell.cache))
            .into_iter()
            .map(|cache| Measured::of(cache, &strata, &settings, samples))
            .collect();

        for group in distinct(measured.iter().map(|m| &m.strata)) {
            let lines = measured
                .iter()
                .filter(|m| m.strata == *group || (m.is_full() && m.has(group)));
            if !group.is_empty() {
                found.extend(lines.map(|m| line(&comparison, m.cache, group, &m.pairs_of(group))));
            }
        }
    }
    found
}

fn line(
    comparison: &Comparison<'_>,
    cache: &CacheShape,
    strata: &[Stratum],
    pairs: &[Vec<Pair>],
) -> Headline {
    let all = |of: fn(&Pair) -> f64| mean_of_means(pairs, of);
    let (score, full) = (all(|p| p.score), all(|p| p.full));
    let mut drawn = Drawn::of(pairs);
    Headline {
        model: comparison.model.into(),
        tasks: distinct(strata.iter().map(|stratum| stratum.task)),
        length: comparison.length,
        protocol: comparison.protocol,
        cache: cache.line(),
        budget: cache.budget,
        n: pairs.iter().map(Vec::len).sum(),
        score,
        of_full: (full > 0.0).then(|| score / full),
        of_full_interval: (full > 0.0).then(|| interval(&mut drawn.ratios)),
        loss: all(|p| p.loss),
        loss_interval: interval(&mut drawn.losses),
        share: all(|p| p.share),
        score_interval: interval(&mut drawn.scores),
        difference: score - full,
        difference_interval: interval(&mut drawn.differences),
        metric: comparison.metric,
        stride: comparison.stride,
    }
}

/// Means of samples that were drawn again.
struct Drawn {
    scores: Vec<f64>,
    differences: Vec<f64>,
    /// Scores as a share of the full cache's, where that is above 0.
    ratios: Vec<f64>,
    losses: Vec<f64>,
}

impl Drawn {
    fn of(strata: &[Vec<Pair>]) -> Self {
        let mut drawn = Self {
            scores: Vec::with_capacity(DRAWS),
            differences: Vec::with_capacity(DRAWS),
            ratios: Vec::with_capacity(DRAWS),
            losses: Vec::with_capacity(DRAWS),
        };
        let mut draws = Draws::new(&[strata.len() as u64]);
        for _ in 0..DRAWS {
            let again: Vec<Vec<Pair>> = strata
                .iter()
                .map(|pairs| {
                    pairs
                        .iter()
                        .map(|_| pairs[draws.below(pairs.len())])
                        .collect()
                })
                .collect();
            let all = |of: fn(&Pair) -> f64| mean_of_means(&again, of);
            let (score, full) = (all(|p| p.score), all(|p| p.full));
            drawn.scores.push(score);
            drawn.differences.push(score - full);
            if full > 0.0 {
                drawn.ratios.push(score / full);
            }
            drawn.losses.push(all(|p| p.loss));
        }
        drawn
    }
}

/// Mean over the strata of the mean within each.
fn mean_of_means(strata: &[Vec<Pair>], of: fn(&Pair) -> f64) -> f64 {
    let mean = |pairs: &Vec<Pair>| pairs.iter().map(of).sum::<f64>() / pairs.len() as f64;
    strata.iter().map(mean).sum::<f64>() / strata.len() as f64
}

/// The middle 95 % of the values.
fn interval(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1) as f64;
    let at = |part: f64| {
        values
            .get((part * last).round() as usize)
            .copied()
            .unwrap_or(f64::NAN)
    };
    (at(0.025), at(0.975))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(score: f64, full: f64) -> Pair {
        Pair {
            score,
            full,
            loss: score - full,
            share: 0.25,
        }
    }

    #[test]
    fn tasks_weigh_alike_and_pairs_stay_together() {
        let setting = crate::record::tests::setting();
        let comparison = Comparison {
            model: "m",
            length: setting.length,
            protocol: setting.protocol,
            metric: setting.metric,
            stride: setting.stride,
            tasks: vec![setting.task],
        };
        let stratum = Stratum::of(&setting);
        let line = |shape: &CacheShape, pairs: &[Vec<Pair>]| {
            line(&comparison, shape, &vec![stratum; pairs.len()], pairs)
        };
        // All of six samples and one of three: the mean over tasks is 2/3, over samples it would be
        // 7/9.
        let strata = [
            vec![pair(1.0, 1.0); 6],
            vec![pair(1.0, 1.0), pair(0.0, 1.0), pair(0.0, 1.0)],
        ];
        let shape = CacheShape {
            budget: Some(Budget::Share(2500)),
            ..CacheShape::full()
        };
        let l = line(&shape, &strata);
        assert!(
            (l.score - 2.0 / 3.0).abs() < 1e-12
                && (l.of_full.expect("full > 0") - 2.0 / 3.0).abs() < 1e-12
        );
        let (low, high) = l.of_full_interval.expect("full > 0");
        // The second task can be all wrong or all right; the first is always right.
        assert!(
            (low - 0.5).abs() < 1e-12 && (high - 1.0).abs() < 1e-12,
            "{low} {high}"
        );
        // A cache that differs from the full one nowhere has no spread, whatever the samples.
        let same = line(
            &shape,
            &[vec![
                pair(0.0, 0.0),
                pair(1.0, 1.0),
                pair(1.0, 1.0),
                pair(1.0, 1.0),
            ]],
        );
        assert_eq!(
            (same.of_full, same.of_full_interval),
            (Some(1.0), Some((1.0, 1.0)))
        );
        assert_eq!(line(&shape, &[vec![pair(0.0, 0.0)]]).of_full, None);
    }

    #[test]
    fn intervals_hold_the_middle() {
        let mut values: Vec<f64> = (0..=1000).rev().map(f64::from).collect();
        assert_eq!(interval(&mut values), (25.0, 975.0));
        assert!(interval(&mut []).0.is_nan());
    }
}
