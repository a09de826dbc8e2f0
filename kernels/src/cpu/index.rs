//! Pairwise indexer scores: every new query against every slot, the largest kept.

use std::sync::Mutex;

use super::exec::Exec;
use super::lanes::{Kernel, Lanes, WIDTH, dispatch};
use crate::backend::{IndexItem, IndexShape};
use crate::error::{Error, Result};

/// Slots of one task.
const SLOTS: usize = 256;

/// See [`Indexing::index`](crate::backend::Indexing::index).
pub(crate) fn index(exec: Exec<'_>, shape: IndexShape, items: &mut [IndexItem<'_>]) -> Result<()> {
    let op = "index";
    let IndexShape { heads, dim } = shape;
    for item in items.iter() {
        let (rows, slots) = (item.rows, item.scores.len());
        let wants = [
            ("queries", item.queries.len(), rows * heads * dim),
            ("weights", item.weights.len(), rows * heads),
            ("keys", item.keys.len(), slots * dim),
        ];
        for (what, got, want) in wants {
            if got != want {
                return Err(Error::Shape {
                    op,
                    what,
                    got,
                    want,
                });
            }
        }
        if rows > slots {
            return Err(Error::Shape {
                op,
                what: "scores",
                got: slots,
                want: rows,
            });
        }
    }
    let mut work = 0;
    let mut tasks = Vec::new();
    for item in items.iter_mut() {
        let (slots, rows) = (item.scores.len(), item.rows);
        work += slots * rows * heads;
        let (queries, weights, keys) = (item.queries, item.weights, item.keys);
        for (i, scores) in item.scores.chunks_mut(SLOTS).enumerate() {
            let first = i * SLOTS;
            let keys = &keys[first * dim..(first + scores.len()) * dim];
            tasks.push(Mutex::new(Score {
                shape,
                queries,
                weights,
                keys,
                scores,
                first,
                before: slots - rows,
            }));
        }
    }
    exec.run(tasks.len(), work, &|task| {
        let mut score = tasks[task].lock().expect("no task panics");
        dispatch(exec.level, &mut *score);
    });
    Ok(())
}

/// Slots of one item.
struct Score<'a> {
    shape: IndexShape,
    queries: &'a [f32],
    weights: &'a [f32],
    keys: &'a [f32],
    scores: &'a mut [f32],
    /// First slot.
    first: usize,
    /// Slots before those of the new rows: row `i` sees slots `0 ..= before + i`.
    before: usize,
}

impl Kernel for &mut Score<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let IndexShape { heads, dim } = self.shape;
        // Keys of eight slots, transposed: lane = slot.
        let mut columns = vec![[0.0f32; WIDTH]; dim];
        for (tile, scores) in self.scores.chunks_mut(WIDTH).enumerate() {
            let first = tile * WIDTH;
            for (d, column) in columns.iter_mut().enumerate() {
                for (lane, value) in column.iter_mut().enumerate().take(scores.len()) {
                    *value = self.keys[(first + lane) * dim + d];
                }
            }
            let slot = self.first + first;
            // Rows before the first slot of the tile see none of it.
            let start = slot.saturating_sub(self.before);
            let rows = self
                .queries
                .chunks_exact(heads * dim)
                .zip(self.weights.chunks_exact(heads))
                .enumerate();
            let mut best = L::from_slice(scores, f32::NEG_INFINITY);
            for (row, (queries, weights)) in rows.skip(start) {
                let mut sum = L::splat(0.0);
                for (query, &weight) in queries.chunks_exact(dim).zip(weights) {
                    let mut product = L::splat(0.0);
                    for (&q, column) in query.iter().zip(&columns) {
                        product = L::splat(q).fma(L::from_slice(column, 0.0), product);
                    }
                    sum = product.max(L::splat(0.0)).fma(L::splat(weight), sum);
                }
                let visible = self.before + row + 1 - slot;
                if visible < WIDTH {
                    let mut lanes = sum.to_array();
                    lanes[visible..].fill(f32::NEG_INFINITY);
                    sum = L::from_slice(&lanes, 0.0);
                }
                best = sum.max(best);
            }
            best.write(scores);
        }
    }
}
