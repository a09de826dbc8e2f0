//! Next-token loss by position, and how far it is above the full cache's.

use std::fmt::Write;
use std::ops::Range;
use std::path::Path;

use super::prose::paragraph;
use crate::Result;
use crate::contracts::FULL;
use crate::record::{LossCell, LossResult, LossSample, buckets};
use crate::stats::{distinct, half_width, mean_and_error};
use crate::store::{write, write_lines};

/// Aggregates, and writes `perplexity_cells.jsonl` and `perplexity.md`.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn conclude(out: &Path, cells: &[LossCell], samples: &[LossSample]) -> Result<Vec<LossResult>> {
    let results: Vec<LossResult> = cells
        .iter()
        .flat_map(|cell| aggregate(cell, samples))
        .collect();
    write_lines(&out.join("perplexity_cells.jsonl"), &results)?;
    write(&out.join("perplexity.md"), &table(&results))?;
    Ok(results)
}

/// A cell's windows together, bucket by bucket; differences to the full cache are window by window.
pub fn aggregate(cell: &LossCell, known: &[LossSample]) -> Vec<LossResult> {
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
    let bucket = |(b, positions): (usize, Range<usize>)| {
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
            start: positions.start,
            end: positions.end,
            n: losses.len(),
            loss,
            loss_error,
            above_full,
            above_full_error,
            above_full_n: above.len(),
        }
    };
    buckets(cell.length)
        .into_iter()
        .enumerate()
        .map(bucket)
        .collect()
}

/// What windows must share to stand in one table.
#[derive(PartialEq)]
struct Windows<'a> {
    model: &'a str,
    text: &'a str,
    length: usize,
    stride: usize,
}

impl<'a> Windows<'a> {
    fn of(result: &'a LossResult) -> Self {
        let cell = &result.cell;
        Self {
            model: &cell.model,
            text: &cell.text,
            length: cell.length,
            stride: cell.stride,
        }
    }
}

/// A Markdown table for each kind of window: a row per cache, a column per bucket of positions.
pub fn table(results: &[LossResult]) -> String {
    let mut text = String::new();
    for windows in distinct(results.iter().map(Windows::of)) {
        let own: Vec<&LossResult> = results
            .iter()
            .filter(|r| Windows::of(r) == windows)
            .collect();
        let buckets = buckets(windows.length);
        let names: Vec<String> = buckets
            .iter()
            .map(|positions| format!("{}-{}", positions.start, positions.end))
            .collect();
        let legend = format!(
            "{}; stride {}, text {}. n: windows. Nats per token by position; bounded caches: above \
             the full cache on the same windows [95 % interval, Student's t over windows].",
            windows.model, windows.stride, windows.text,
        );
        let _ = writeln!(
            text,
            "### Next-token loss, windows of {} tokens\n\n{}\n\n| cache | budget | n | {} \
             |\n|---|---|---|{}",
            windows.length,
            paragraph(&legend),
            names.join(" | "),
            "---|".repeat(names.len())
        );
        for row in own.chunks(buckets.len()) {
            let cells: Vec<String> = row.iter().map(|r| show(r)).collect();
            let cache = &row[0].cell.cache;
            let budget = cache.budget.map_or("all".to_string(), |b| b.to_string());
            let _ = writeln!(
                text,
                "| {} | {budget} | {} | {} |",
                cache.line(),
                count(row[0]),
                cells.join(" | ")
            );
        }
        text.push('\n');
    }
    text
}

/// Windows that a row rests on.
fn count(r: &LossResult) -> usize {
    if r.above_full.is_some() {
        r.above_full_n
    } else {
        r.n
    }
}

/// The full cache's loss itself, those of others above it.
fn show(r: &LossResult) -> String {
    match r.above_full {
        Some(above) if r.cell.cache.policy != FULL => {
            let interval = r.above_full_error.map(|error| {
                let half = half_width(error, r.above_full_n);
                format!(" [{:+.3}, {:+.3}]", above - half, above + half)
            });
            format!("{above:+.3}{}", interval.unwrap_or_default())
        }
        _ => format!("{:.3}", r.loss),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contracts::CacheShape;
    use crate::record::Bucket;

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
