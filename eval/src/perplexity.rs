//! Next-token loss of prose per position, streamed under a bounded cache, against the full one.

use std::ops::Range;
use std::path::Path;

use palimpsest_engine::decoder::Logits;
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::Backend;

use crate::caches::Caches;
use crate::contracts::{EntrySize, held};
use crate::record::{Bucket, LossCell, LossResult, LossSample, buckets};
use crate::report::losses;
use crate::stats::{log_probability, mean_and_error};
use crate::store::Store;
use crate::tasks::filler::digest;
use crate::{Error, Progress, Result, Subject};

/// Tokens whose logits are held at once; the state does not depend on it.
const PIECE: usize = 32;

/// What to measure.
#[derive(Debug, Clone)]
pub struct PerplexitySpec {
    /// Names model and indexer in the records.
    pub model: String,
    /// Tokens of a window.
    pub lengths: Vec<usize>,
    /// Caches. A share is one of the window's length.
    pub caches: Caches,
    /// Windows, spread evenly over the text.
    pub samples: usize,
}

/// Measures what is missing and writes `perplexity.jsonl`, `perplexity_cells.jsonl` and
/// `perplexity.md` to `out`.
///
/// # Errors
/// Those of the rank, the text side and the files; [`Error::Prose`] for a text shorter than a
/// window.
pub fn run<B: Backend>(
    subject: &mut Subject<'_, B>,
    text: &str,
    spec: &PerplexitySpec,
    out: &Path,
    progress: Progress<'_>,
) -> Result<Vec<LossResult>> {
    std::fs::create_dir_all(out).map_err(crate::store::io(out))?;
    let ids = subject.side.encode(text)?;
    let cells = cells(subject.runner, spec, &digest(text), ids.len())?;
    let (mut store, mut known) = Store::open::<LossSample>(&out.join("perplexity.jsonl"))?;
    let total = (spec.samples * cells.len()) as u64;
    let mut done = 0;
    for index in 0..spec.samples {
        for cell in &cells {
            if !known.iter().any(|k| k.index == index && k.cell == *cell) {
                let start = (ids.len() - cell.length) * index / (spec.samples - 1).max(1);
                let ids = &ids[start..start + cell.length];
                let sample = window(subject.runner, cell, index, ids)?;
                store.append(&sample)?;
                known.push(sample);
            }
            done += 1;
            progress(done, total);
        }
    }
    losses::conclude(out, &cells, &known)
}

fn cells<B: Backend>(
    runner: &Runner<B>,
    spec: &PerplexitySpec,
    digest: &str,
    found: usize,
) -> Result<Vec<LossCell>> {
    let shapes = spec.caches.known(runner)?;
    let mut cells = Vec::new();
    for &length in &spec.lengths {
        if length < 2 || length > found {
            return Err(Error::Prose {
                found,
                needed: length.max(2),
                unit: "tokens",
            });
        }
        for cache in &shapes {
            cache.contract(length, 0, EntrySize::of(runner, &cache.policy))?;
            cells.push(LossCell {
                model: spec.model.clone(),
                length,
                windows: spec.samples,
                text: digest.into(),
                stride: runner.decoder().stride() as usize,
                cache: cache.clone(),
            });
        }
    }
    Ok(cells)
}

fn window<B: Backend>(
    runner: &mut Runner<B>,
    cell: &LossCell,
    index: usize,
    ids: &[u32],
) -> Result<LossSample> {
    let size = EntrySize::of(runner, &cell.cache.policy);
    let vocabulary = runner.decoder().config().vocabulary;
    let mut sequence = OfflineSequence::open(runner, cell.cache.contract(cell.length, 0, size)?)?;
    // Position 0 has no prediction: losses[i] is that of token i + 1.
    let mut losses = Vec::with_capacity(ids.len());
    for first in (0..ids.len() - 1).step_by(PIECE) {
        let piece = &ids[first..(first + PIECE).min(ids.len() - 1)];
        let logits = sequence.feed(piece, Logits::All)?;
        let next = &ids[first + 1..];
        losses.extend(
            logits
                .chunks(vocabulary)
                .zip(next)
                .map(|(logits, &next)| -log_probability(logits, next).0),
        );
    }
    let held = held(sequence.cache(), size);
    sequence.close();
    if losses.iter().any(|l| l.is_nan()) {
        return Err(Error::NotANumber);
    }
    let bucket = |positions: Range<usize>| {
        let own = &losses[positions.start.saturating_sub(1)..positions.end - 1];
        Bucket {
            start: positions.start,
            end: positions.end,
            loss: mean_and_error(own).0,
        }
    };
    let buckets = buckets(ids.len()).into_iter().map(bucket).collect();
    Ok(LossSample {
        cell: cell.clone(),
        index,
        buckets,
        held,
    })
}
