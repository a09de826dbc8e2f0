//! What a run shows: tables and plots, from its records alone. Nothing here measures.
//!
//! [`conclude`] ends every retrieval run and [`losses::conclude`] every run over prose;
//! [`markdown`] makes a page of what any number of runs left on disk.

mod figures;
pub mod headline;
pub mod losses;
mod pairing;
mod prose;
mod runs;
pub mod tables;

use std::path::Path;

pub use self::headline::{Headline, headlines};
pub use self::runs::{Detail, markdown};
use crate::Result;
use crate::record::{Cell, CellResult, SampleResult};
use crate::store::{write, write_lines};

/// What a grid gave.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Every cell.
    pub cells: Vec<CellResult>,
    /// Caches over all tasks.
    pub headlines: Vec<Headline>,
}

impl Outcome {
    /// Of cells and their samples, all of which count.
    pub fn of(cells: &[Cell], samples: &[SampleResult]) -> Self {
        let result = |cell: &Cell| {
            let own: Vec<&SampleResult> = samples.iter().filter(|s| s.cell == *cell).collect();
            CellResult::of(cell, &own)
        };
        Self {
            cells: cells.iter().map(result).collect(),
            headlines: headlines(cells, samples),
        }
    }

    /// Means over tasks, and every task by itself, in Markdown.
    pub fn tables(&self) -> String {
        tables::means(&self.headlines) + &tables::by_task(&self.cells)
    }
}

/// Aggregates the first `rounds` samples of every cell and writes everything but the samples:
/// `cells.jsonl`, `headline.jsonl`, `table.md` and plots.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn conclude(
    out: &Path,
    cells: &[Cell],
    known: &[SampleResult],
    rounds: usize,
) -> Result<Outcome> {
    let known: Vec<SampleResult> = known.iter().filter(|k| k.index < rounds).cloned().collect();
    let outcome = Outcome::of(&with_other_types(cells, &known, rounds), &known);
    write_lines(&out.join("cells.jsonl"), &outcome.cells)?;
    write_lines(&out.join("headline.jsonl"), &outcome.headlines)?;
    write(&out.join("table.md"), &outcome.tables())?;
    figures::write_all(out, &outcome.cells, &outcome.headlines)?;
    Ok(outcome)
}

/// The cells, and before them those of other element types that were measured as often in earlier
/// runs.
fn with_other_types(cells: &[Cell], known: &[SampleResult], rounds: usize) -> Vec<Cell> {
    let mut all: Vec<Cell> = Vec::new();
    for sample in known.iter().filter(|k| {
        cells
            .iter()
            .all(|c| c.cache.kv_type != k.cell.cache.kv_type)
    }) {
        let same = known.iter().filter(|k| k.cell == sample.cell).count();
        if same >= rounds
            && cells.iter().any(|c| c.setting == sample.cell.setting)
            && !all.contains(&sample.cell)
        {
            all.push(sample.cell.clone());
        }
    }
    all.extend_from_slice(cells);
    all
}

#[cfg(test)]
mod tests {
    use palimpsest_kernels::KvType;

    use super::*;
    use crate::caches::tests::caches;
    use crate::contracts::{Budget, CacheShape};
    use crate::record::tests::{sample_of, setting};

    #[test]
    fn caches_of_other_types_stand_beside_these_and_are_compared_with_the_full_cache_of_halves() {
        let (full, mut own) = (
            CacheShape::full(),
            caches()
                .shapes(KvType::Q8, &|_| true)
                .expect("a grid")
                .remove(1),
        );
        own.budget = Some(Budget::Share(1000));
        assert!(own.line().ends_with(", q8"), "{}", own.line());
        let cell = |cache: &CacheShape| Cell {
            setting: setting(),
            cache: cache.clone(),
        };
        let samples = [sample_of(cell(&full), 0.5), sample_of(cell(&own), 0.25)];
        let cells = with_other_types(&[cell(&own)], &samples, 1);
        assert_eq!(cells, [cell(&full), cell(&own)]);
        assert_eq!(
            with_other_types(&[cell(&own)], &samples, 2),
            [cell(&own)],
            "full was not measured twice"
        );
        let found = headlines(&cells, &samples);
        assert_eq!(
            found.iter().map(|l| l.of_full).collect::<Vec<_>>(),
            [Some(1.0), Some(0.5)]
        );
        // Alone, they are compared with a full cache of their own.
        let own_full = CacheShape {
            kv_type: "q8".into(),
            ..full
        };
        let samples = [sample_of(cell(&own_full), 1.0), sample_of(cell(&own), 0.25)];
        let found = headlines(&[cell(&own)], &samples);
        assert_eq!(found[0].of_full, Some(0.25));
    }
}
