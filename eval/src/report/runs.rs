//! A page of Markdown from what runs left on disk.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::{Outcome, losses, tables};
use crate::record::{Cell, LossCell, LossSample, SampleResult};
use crate::stats::distinct;
use crate::store::read;
use crate::{Error, Result};

/// How much a page has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Means over tasks.
    Means,
    /// Every task by itself, too.
    ByTask,
}

/// Tables of the samples in some directories, `samples.jsonl` and `perplexity.jsonl` of each, put
/// together: samples of one cell from several runs are that cell's samples, and one that is there
/// twice counts once.
///
/// # Errors
/// [`Error::Spec`] for a directory with neither file; [`Error::Io`] and [`Error::Record`] for
/// what cannot be read.
pub fn markdown(directories: &[PathBuf], detail: Detail) -> Result<String> {
    let mut samples: Vec<SampleResult> = Vec::new();
    let mut windows: Vec<LossSample> = Vec::new();
    for directory in directories {
        let retrieval = lines(&directory.join("samples.jsonl"))?;
        let prose = lines(&directory.join("perplexity.jsonl"))?;
        if retrieval.is_none() && prose.is_none() {
            return Err(Error::Spec(format!(
                "{} holds no run: there is neither samples.jsonl nor perplexity.jsonl in it",
                directory.display()
            )));
        }
        samples.extend(retrieval.unwrap_or_default());
        windows.extend(prose.unwrap_or_default());
    }

    let mut seen = HashSet::new();
    samples.retain(|s| seen.insert((key(&s.cell), s.index)));
    seen.clear();
    windows.retain(|w| seen.insert((key(&w.cell), w.index)));

    let cells: Vec<Cell> = distinct(samples.iter().map(|s| &s.cell))
        .into_iter()
        .cloned()
        .collect();
    let outcome = Outcome::of(&cells, &samples);
    let mut page = tables::means(&outcome.headlines);
    if page.is_empty() && !samples.is_empty() {
        page += "The full cache was not measured on these prompts: there is nothing to compare \
                 with.\n\n";
    }
    if detail == Detail::ByTask {
        page += &tables::by_task(&outcome.cells);
    }
    let cells: Vec<LossCell> = distinct(windows.iter().map(|w| &w.cell))
        .into_iter()
        .cloned()
        .collect();
    let results: Vec<_> = cells
        .iter()
        .flat_map(|cell| losses::aggregate(cell, &windows))
        .collect();
    page += &losses::table(&results);
    Ok(page)
}

/// A cell as the text of its record, which can be hashed.
fn key(cell: &impl serde::Serialize) -> String {
    serde_json::to_string(cell).expect("records are plain structures with string keys")
}

/// The records of a file; `None` where there is no file.
fn lines<T: DeserializeOwned>(path: &Path) -> Result<Option<Vec<T>>> {
    if path.exists() {
        read(path).map(Some)
    } else {
        Ok(None)
    }
}
