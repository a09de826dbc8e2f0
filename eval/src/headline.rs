//! One number a cache: the mean over tasks, as a share of what the full cache reaches on the same
//! prompts.
//!
//! Intervals are a paired bootstrap (Efron and Tibshirani, "An introduction to the bootstrap",
//! 1993): samples are drawn again within each task, the same ones for the cache and for the full
//! one. With fewer than about ten samples a task they are too narrow, and say nothing where all
//! samples agree.

use std::fmt::Write;

use serde::Serialize;

use crate::contracts::{Budget, CacheShape};
use crate::draws::Draws;
use crate::grid::{Cell, SampleResult, Setting};
use crate::prompt::Protocol;
use crate::report::distinct;
use crate::tasks::Task;

/// Times that the samples are drawn again.
const DRAWS: usize = 2000;

/// A cache's line.
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
    /// Its 95 % interval.
    pub of_full_interval: Option<(f64, f64)>,
    /// Mean log-likelihood per answer token less that of the full cache, nats.
    pub loss: f64,
    /// Its 95 % interval.
    pub loss_interval: (f64, f64),
    /// Mean share held.
    pub share: f64,
}

/// A sample under both caches.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pair {
    score: f64,
    full: f64,
    loss: f64,
    share: f64,
}

/// Lines of every length and protocol for which the full cache was measured.
pub fn headlines(cells: &[Cell], samples: &[SampleResult]) -> Vec<Headline> {
    let group = |s: &Setting| (s.model.clone(), s.length, s.protocol);
    let mut found = Vec::new();
    for of in distinct(cells.iter().map(|c| group(&c.setting))) {
        let settings: Vec<&Setting> =
            distinct(cells.iter().map(|c| &c.setting).filter(|s| group(s) == of));
        for cache in distinct(
            cells
                .iter()
                .filter(|c| group(&c.setting) == of)
                .map(|c| &c.cache),
        ) {
            let strata: Vec<Vec<Pair>> =
                settings.iter().map(|s| pairs(s, cache, samples)).collect();
            if strata.iter().all(|pairs| !pairs.is_empty()) {
                found.push(line(&settings, cache, &strata));
            }
        }
    }
    found
}

fn pairs(setting: &Setting, cache: &CacheShape, samples: &[SampleResult]) -> Vec<Pair> {
    let samples: Vec<&SampleResult> = samples
        .iter()
        .filter(|s| s.cell.setting == *setting)
        .collect();
    let full = cache.full_of(&samples, |s| &s.cell.cache);
    let own = samples.iter().filter(|s| s.cell.cache == *cache);
    own.filter_map(|own| {
        let full = full.iter().find(|f| f.index == own.index)?;
        Some(Pair {
            score: own.score,
            full: full.score,
            loss: own.loglik - full.loglik,
            share: own.share,
        })
    })
    .collect()
}

fn line(settings: &[&Setting], cache: &CacheShape, strata: &[Vec<Pair>]) -> Headline {
    let all = |of: fn(&Pair) -> f64| mean_of_means(strata, of, |pairs, i| &pairs[i]);
    let (score, full) = (all(|p| p.score), all(|p| p.full));
    let (mut ratios, mut losses) = (Vec::with_capacity(DRAWS), Vec::with_capacity(DRAWS));
    let mut draws = Draws::new(&[strata.len() as u64]);
    for _ in 0..DRAWS {
        let again: Vec<Vec<usize>> = strata
            .iter()
            .map(|pairs| pairs.iter().map(|_| draws.below(pairs.len())).collect())
            .collect();
        let again: Vec<Vec<Pair>> = strata
            .iter()
            .zip(&again)
            .map(|(pairs, chosen)| chosen.iter().map(|&i| pairs[i]).collect())
            .collect();
        let all = |of: fn(&Pair) -> f64| mean_of_means(&again, of, |pairs, i| &pairs[i]);
        let (score, full) = (all(|p| p.score), all(|p| p.full));
        if full > 0.0 {
            ratios.push(score / full);
        }
        losses.push(all(|p| p.loss));
    }
    let first = settings[0];
    Headline {
        model: first.model.clone(),
        tasks: distinct(settings.iter().map(|s| s.task)),
        length: first.length,
        protocol: first.protocol,
        cache: cache.line(),
        budget: cache.budget,
        n: strata.iter().map(Vec::len).sum(),
        score,
        of_full: (full > 0.0).then(|| score / full),
        of_full_interval: (full > 0.0).then(|| interval(&mut ratios)),
        loss: all(|p| p.loss),
        loss_interval: interval(&mut losses),
        share: all(|p| p.share),
    }
}

/// Mean over the strata of the mean within each.
fn mean_of_means(
    strata: &[Vec<Pair>],
    of: fn(&Pair) -> f64,
    at: fn(&[Pair], usize) -> &Pair,
) -> f64 {
    let mean = |pairs: &Vec<Pair>| {
        (0..pairs.len()).map(|i| of(at(pairs, i))).sum::<f64>() / pairs.len() as f64
    };
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

/// A Markdown table for each length and protocol.
pub fn table(lines: &[Headline]) -> String {
    let mut text = String::new();
    for of in distinct(lines.iter().map(|l| (l.length, l.protocol, &l.model))) {
        let own: Vec<&Headline> = lines
            .iter()
            .filter(|l| (l.length, l.protocol, &l.model) == of)
            .collect();
        let tasks: Vec<String> = own[0].tasks.iter().map(ToString::to_string).collect();
        let n = own.iter().map(|l| l.n).min().unwrap_or(0);
        let _ = writeln!(
            text,
            "### Mean over {}: {} tokens, {}\n\n{}; at least {n} samples a line. Of full: share \
             of the full cache's score on the same prompts, percent [95 %, paired bootstrap]. \
             Loss: log-likelihood per answer token less the full cache's, nats.\n\n| cache | \
             budget | score | of full | loss | held |\n|---|---|---|---|---|---|",
            tasks.join(", "),
            of.0,
            of.1.name(),
            of.2,
        );
        for l in own {
            // No sample differs in the least: it is the cache that others are compared with.
            let itself = l.budget.is_none() && l.loss_interval == (0.0, 0.0);
            let of_full = match (l.of_full, l.of_full_interval) {
                (Some(_), _) if itself => "100".into(),
                (Some(share), Some((low, high))) => {
                    format!(
                        "{:.0} [{:.0}, {:.0}]",
                        share * 100.0,
                        low * 100.0,
                        high * 100.0
                    )
                }
                _ => "-".into(),
            };
            let loss = if itself {
                "0".into()
            } else {
                format!(
                    "{:+.2} [{:+.2}, {:+.2}]",
                    l.loss, l.loss_interval.0, l.loss_interval.1
                )
            };
            let budget = l.budget.map_or("all".to_string(), |b| b.to_string());
            let (score, held) = (l.score * 100.0, l.share * 100.0);
            let _ = writeln!(
                text,
                "| {} | {budget} | {score:.0} | {of_full} | {loss} | {held:.1} % |",
                l.cache
            );
        }
        text.push('\n');
    }
    text
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
        let setting = crate::grid::tests::setting();
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
        let l = line(&[&setting, &setting], &shape, &strata);
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
            &[&setting],
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
        assert_eq!(
            line(&[&setting], &shape, &[vec![pair(0.0, 0.0)]]).of_full,
            None
        );
    }

    #[test]
    fn intervals_hold_the_middle() {
        let mut values: Vec<f64> = (0..=1000).rev().map(f64::from).collect();
        assert_eq!(interval(&mut values), (25.0, 975.0));
        assert!(interval(&mut []).0.is_nan());
    }
}
