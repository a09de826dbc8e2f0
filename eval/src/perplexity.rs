//! Next-token loss of prose per position, streamed under a bounded cache, against the full one.

use std::fmt::Write;
use std::path::Path;

use palimpsest_engine::decoder::Logits;
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::Backend;
use serde::{Deserialize, Serialize};

use crate::caches::Caches;
use crate::contracts::{CacheShape, EntrySize, FULL, held};
use crate::stats::{log_probability, mean_and_error};
use crate::store::{Store, write, write_lines};
use crate::{Error, Progress, Result, TextSide};

/// Tokens whose logits are held at once; the state does not depend on it.
const PIECE: usize = 32;
/// First bucket of positions; each further one is as wide as all before it.
const FIRST_BUCKET: usize = 256;

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

/// A point of the grid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossCell {
    /// Model and indexer.
    pub model: String,
    /// Tokens of the window.
    pub length: usize,
    /// First token of the windows counts from 0; how many there are decides where they are.
    pub windows: usize,
    /// Digest of the text.
    pub text: String,
    /// Tokens between boundaries.
    pub stride: usize,
    /// What the sequence may hold.
    #[serde(flatten)]
    pub cache: CacheShape,
}

/// Loss of the tokens at positions `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// First position predicted.
    pub start: usize,
    /// Position after the last.
    pub end: usize,
    /// Mean loss per token, nats.
    pub loss: f64,
}

/// One window under one cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossSample {
    /// Its cell.
    #[serde(flatten)]
    pub cell: LossCell,
    /// Which window.
    pub index: usize,
    /// Loss by position.
    pub buckets: Vec<Bucket>,
    /// Mean entries per KV head at the end of the window, latent memory included.
    pub held: f64,
}

/// A bucket's windows together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossResult {
    /// The cell.
    #[serde(flatten)]
    pub cell: LossCell,
    /// Positions.
    pub start: usize,
    /// End of the positions.
    pub end: usize,
    /// Windows.
    pub n: usize,
    /// Mean loss, nats per token.
    pub loss: f64,
    /// Its standard error over windows.
    pub loss_error: Option<f64>,
    /// Mean loss above the full cache's, window by window; only where that was measured.
    pub above_full: Option<f64>,
    /// Its standard error.
    pub above_full_error: Option<f64>,
}

/// Measures what is missing and writes `perplexity.jsonl`, `perplexity_cells.jsonl` and
/// `perplexity.md` to `out`.
///
/// # Errors
/// Those of the rank, the text side and the files; [`Error::Prose`] for a text shorter than a
/// window.
pub fn run<B: Backend>(
    runner: &mut Runner<B>,
    side: &dyn TextSide,
    (text, digest): (&str, &str),
    spec: &PerplexitySpec,
    out: &Path,
    progress: Progress<'_>,
) -> Result<Vec<LossResult>> {
    std::fs::create_dir_all(out).map_err(crate::store::io(out))?;
    let ids = side.encode(text)?;
    let cells = cells(runner, spec, digest, ids.len())?;
    let (mut store, mut known) = Store::open::<LossSample>(&out.join("perplexity.jsonl"))?;
    let total = (spec.samples * cells.len()) as u64;
    let mut done = 0;
    for index in 0..spec.samples {
        for cell in &cells {
            if !known.iter().any(|k| k.index == index && k.cell == *cell) {
                let start = (ids.len() - cell.length) * index / (spec.samples - 1).max(1);
                let sample = window(runner, cell, index, &ids[start..start + cell.length])?;
                store.append(&sample)?;
                known.push(sample);
            }
            done += 1;
            progress(done, total);
        }
    }
    let results: Vec<LossResult> = cells
        .iter()
        .flat_map(|cell| aggregate(cell, &known))
        .collect();
    write_lines(&out.join("perplexity_cells.jsonl"), &results)?;
    write(&out.join("perplexity.md"), &table(&results))?;
    Ok(results)
}

fn cells<B: Backend>(
    runner: &Runner<B>,
    spec: &PerplexitySpec,
    digest: &str,
    found: usize,
) -> Result<Vec<LossCell>> {
    for policy in spec.caches.policy_names() {
        palimpsest_engine::policy::find(runner.policies(), policy)?;
    }
    let comparable = |name: &str| {
        runner
            .policies()
            .iter()
            .any(|p| p.name() == name && p.comparable())
    };
    let shapes = spec.caches.shapes(runner.kv_type(), &comparable)?;
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

/// Positions of the buckets of a window: 0-256, 256-512, 512-1024, and so on.
fn edges(length: usize) -> Vec<(usize, usize)> {
    let mut edges = Vec::new();
    let (mut start, mut end) = (0, FIRST_BUCKET);
    while start < length {
        edges.push((start, end.min(length)));
        (start, end) = (end, end * 2);
    }
    edges
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
    let bucket = |(start, end): (usize, usize)| {
        let own = &losses[start.saturating_sub(1)..end - 1];
        Bucket {
            start,
            end,
            loss: mean_and_error(own).0,
        }
    };
    let buckets = edges(ids.len()).into_iter().map(bucket).collect();
    Ok(LossSample {
        cell: cell.clone(),
        index,
        buckets,
        held,
    })
}

fn aggregate(cell: &LossCell, known: &[LossSample]) -> Vec<LossResult> {
    let comparable: Vec<&LossSample> = known
        .iter()
        .filter(|k| {
            LossCell {
                cache: cell.cache.clone(),
                ..k.cell.clone()
            } == *cell
        })
        .collect();
    let full = cell.cache.full_of(&comparable, |k| &k.cell.cache);
    let own: Vec<_> = comparable.iter().filter(|k| k.cell == *cell).collect();
    let bucket = |(b, (start, end)): (usize, (usize, usize))| {
        let mut losses = Vec::new();
        let mut above = Vec::new();
        for index in 0..cell.windows {
            let Some(sample) = own.iter().find(|k| k.index == index) else {
                continue;
            };
            losses.push(sample.buckets[b].loss);
            let full = full.iter().find(|k| k.index == index);
            above.extend(full.map(|f| sample.buckets[b].loss - f.buckets[b].loss));
        }
        let (loss, loss_error) = mean_and_error(&losses);
        let (difference, above_full_error) = mean_and_error(&above);
        let above_full = (!above.is_empty()).then_some(difference);
        LossResult {
            cell: cell.clone(),
            start,
            end,
            n: losses.len(),
            loss,
            loss_error,
            above_full,
            above_full_error,
        }
    };
    edges(cell.length)
        .into_iter()
        .enumerate()
        .map(bucket)
        .collect()
}

/// A Markdown table per length: a row per cache, a column per bucket of positions.
pub fn table(results: &[LossResult]) -> String {
    let mut text = String::new();
    let mut lengths: Vec<usize> = results.iter().map(|r| r.cell.length).collect();
    lengths.dedup();
    for length in lengths {
        let of: Vec<&LossResult> = results.iter().filter(|r| r.cell.length == length).collect();
        let edges = edges(length);
        let names: Vec<String> = edges
            .iter()
            .map(|(start, end)| format!("{start}-{end}"))
            .collect();
        let n = of.iter().map(|r| r.n).min().unwrap_or(0);
        let _ = writeln!(
            text,
            "### Next-token loss, windows of {length} tokens, n = {n}\n\nNats per token by \
             position; bounded caches: above the full cache ± standard error over windows.\n\n| \
             cache | budget | {} |\n|---|---|{}",
            names.join(" | "),
            "---|".repeat(names.len())
        );
        for row in of.chunks(edges.len()) {
            let show = |r: &&LossResult| match r.above_full {
                Some(above) if r.cell.cache.policy != FULL => {
                    format!(
                        "{above:+.3}{}",
                        r.above_full_error
                            .map_or(String::new(), |e| format!(" ± {e:.3}"))
                    )
                }
                _ => format!("{:.3}", r.loss),
            };
            let cells: Vec<String> = row.iter().map(show).collect();
            let cache = &row[0].cell.cache;
            let budget = cache.budget.map_or("all".to_string(), |b| b.to_string());
            let _ = writeln!(
                text,
                "| {} | {budget} | {} |",
                cache.line(),
                cells.join(" | ")
            );
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_every_position_once() {
        assert_eq!(
            edges(1500),
            [(0, 256), (256, 512), (512, 1024), (1024, 1500)]
        );
        assert_eq!(edges(256), [(0, 256)]);
        for length in [2, 255, 257, 4096] {
            let covered: usize = edges(length).iter().map(|(start, end)| end - start).sum();
            assert_eq!(covered, length);
        }
    }

    #[test]
    fn differences_to_full_are_window_by_window() {
        let cell = |cache: CacheShape| LossCell {
            model: "m".into(),
            length: 100,
            windows: 3,
            text: "t".into(),
            stride: 16,
            cache,
        };
        let window = CacheShape {
            policy: "window".into(),
            ..CacheShape::full()
        };
        let sample = |cache: &CacheShape, index: usize, loss: f64| LossSample {
            cell: cell(cache.clone()),
            index,
            buckets: vec![Bucket {
                start: 0,
                end: 100,
                loss,
            }],
            held: 1.0,
        };
        let full = CacheShape::full();
        let mut known = vec![sample(&full, 0, 3.0), sample(&full, 1, 5.0)];
        known.extend([
            sample(&window, 0, 3.25),
            sample(&window, 1, 5.75),
            sample(&window, 2, 9.0),
        ]);
        let result = aggregate(&cell(window), &known).remove(0);
        assert_eq!((result.n, result.loss), (3, 6.0));
        assert_eq!(
            (result.above_full, result.above_full_error),
            (Some(0.5), Some(0.25))
        );
    }
}
