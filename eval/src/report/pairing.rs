//! Samples side by side: what may be compared, and a cache's samples with the full one's.

use crate::contracts::CacheShape;
use crate::record::{Cell, Metric, Protocol, SampleResult, Setting};
use crate::stats::distinct;
use crate::tasks::Task;

/// What samples must share to be averaged.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Comparison<'a> {
    pub model: &'a str,
    pub length: usize,
    pub protocol: Protocol,
    pub metric: Metric,
    pub stride: usize,
    /// All that were asked with one seed. Seeds with the same tasks are taken together, others are
    /// runs of their own.
    pub tasks: Vec<Task>,
}

/// What tasks are cut into: the samples that may be drawn for one another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stratum {
    pub task: Task,
    pub depth: Option<u32>,
}

/// A sample under both caches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pair {
    pub score: f64,
    pub full: f64,
    pub loss: f64,
    pub share: f64,
}

/// Everything that some of the cells belong to.
pub(super) fn comparisons(cells: &[Cell]) -> Vec<Comparison<'_>> {
    distinct(
        cells
            .iter()
            .map(|cell| Comparison::of(&cell.setting, cells)),
    )
}

impl<'a> Comparison<'a> {
    fn of(setting: &'a Setting, cells: &'a [Cell]) -> Self {
        let alone = Self {
            model: &setting.model,
            length: setting.length,
            protocol: setting.protocol,
            metric: setting.metric,
            stride: setting.stride,
            tasks: Vec::new(),
        };
        let same_run = cells
            .iter()
            .map(|cell| &cell.setting)
            .filter(|s| s.seed == setting.seed && alone.agrees(s));
        Self {
            tasks: distinct(same_run.map(|s| s.task)),
            ..alone
        }
    }

    /// All but the tasks.
    fn agrees(&self, setting: &Setting) -> bool {
        self.model == setting.model
            && self.length == setting.length
            && self.protocol == setting.protocol
            && self.metric == setting.metric
            && self.stride == setting.stride
    }

    pub fn covers(&self, setting: &'a Setting, cells: &'a [Cell]) -> bool {
        self.agrees(setting) && Self::of(setting, cells) == *self
    }
}

impl Stratum {
    pub fn of(setting: &Setting) -> Self {
        Self {
            task: setting.task,
            depth: setting.depth,
        }
    }
}

/// The pairs of one cache.
pub(super) struct Measured<'a> {
    pub cache: &'a CacheShape,
    /// Those of which there is a pair.
    pub strata: Vec<Stratum>,
    /// Of each of them.
    pub pairs: Vec<Vec<Pair>>,
}

impl<'a> Measured<'a> {
    pub fn of(
        cache: &'a CacheShape,
        strata: &[Stratum],
        settings: &[&Setting],
        samples: &[SampleResult],
    ) -> Self {
        let mut measured = Self {
            cache,
            strata: Vec::new(),
            pairs: Vec::new(),
        };
        for stratum in strata {
            let own = settings.iter().filter(|s| Stratum::of(s) == *stratum);
            let found: Vec<Pair> = own.flat_map(|s| pairs(s, cache, samples)).collect();
            if !found.is_empty() {
                measured.strata.push(*stratum);
                measured.pairs.push(found);
            }
        }
        measured
    }

    pub fn is_full(&self) -> bool {
        self.cache.budget.is_none()
    }

    pub fn has(&self, strata: &[Stratum]) -> bool {
        strata.iter().all(|stratum| self.strata.contains(stratum))
    }

    pub fn pairs_of(&self, strata: &[Stratum]) -> Vec<Vec<Pair>> {
        self.strata
            .iter()
            .zip(&self.pairs)
            .filter(|(stratum, _)| strata.contains(stratum))
            .map(|(_, pairs)| pairs.clone())
            .collect()
    }
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
