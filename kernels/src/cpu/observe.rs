//! Attention probabilities per slot, reduced over rows. Two passes over the logits: first every
//! row's maximum and sum, in parallel over rows; then the probabilities, in parallel over slots, so
//! that each slot adds its rows in order.

use std::ops::Range;

use super::attention::check;
use super::attention_block::{
    AddSink, BLOCK, CHUNK, LogitTile, Logits, Normalise, Probabilities, Visible, with_block,
};
use super::attention_head::{Call, Head, Source, Unit, with_scratch};
use super::element::Element;
use super::exec::Exec;
use super::lanes::{Shared, dispatch};
use super::pages::{CpuPages, with_arena};
use crate::backend::{ObserveItem, QkvShape, Reduce};
use crate::centroids::CentroidState;
use crate::error::{Error, Result, at_least};

/// Query rows that are packed at a time.
const TILE: usize = 96;

/// See [`Attention::observe`](crate::backend::Attention::observe).
pub(crate) fn observe(
    exec: Exec<'_>,
    shape: QkvShape,
    pages: &CpuPages,
    q: &[f32],
    items: &[ObserveItem<'_>],
    out: &mut [Vec<f32>],
) -> Result<()> {
    let op = "observe";
    if out.len() != items.len() {
        return Err(Error::Shape {
            op,
            what: "out",
            got: out.len(),
            want: items.len(),
        });
    }
    let rows = q.len() / (shape.heads * shape.head_dim).max(1);
    let mut centroids = Vec::with_capacity(items.len());
    for item in items {
        centroids.push(check(op, shape, pages, rows, &item.attend)?);
        if let Some(weights) = item.row_weights {
            at_least(op, "row_weights", weights.len(), item.attend.rows.len())?;
        }
    }
    with_arena!(pages.data(), arena => run(Call { exec, shape, arena, q }, items, &centroids, out));
    Ok(())
}

/// One task of either pass: rows of an item, or a unit of it.
struct Task {
    head: usize,
    part: Range<usize>,
    first: usize,
}

fn run<T: Element>(
    call: Call<'_, T>,
    items: &[ObserveItem<'_>],
    centroids: &[Option<&CentroidState>],
    out: &mut [Vec<f32>],
) {
    let heads: Vec<Head<'_, T>> = items
        .iter()
        .zip(centroids)
        .map(|(item, centroids)| Head::new(call, &item.attend, *centroids))
        .collect();
    let (mut by_rows, mut by_units, mut states, mut work) = (Vec::new(), Vec::new(), 0, 0);
    let mut firsts = Vec::with_capacity(heads.len());
    for (head, item) in heads.iter().enumerate() {
        let rows = item.rows();
        firsts.push(states);
        if rows > 0 {
            by_rows.extend((0..rows).step_by(TILE).map(|first| Task {
                head,
                part: first..rows.min(first + TILE),
                first: states + 2 * first,
            }));
            let units = item.units_to(rows - 1);
            work += rows * units * CHUNK;
            by_units.extend((item.centroid_units..units).map(|unit| Task {
                head,
                part: unit..unit + 1,
                first: states,
            }));
        }
        states += 2 * rows;
    }
    let mut memory = vec![0.0; states];
    let shared = Shared::new(&mut memory);
    call.exec.run(by_rows.len(), work, &|i| {
        let Task { head, part, first } = &by_rows[i];
        // SAFETY: every task has rows of its own.
        normalise(&heads[*head], part.clone(), unsafe {
            shared.part(*first, 2 * part.len())
        });
    });
    let mut weights: Vec<Shared<'_, f32>> = Vec::with_capacity(out.len());
    for (out, item) in out.iter_mut().zip(items) {
        out.resize(item.attend.slots.len, 0.0);
        weights.push(Shared::new(out));
    }
    let memory = &memory;
    call.exec.run(by_units.len(), work, &|i| {
        let Task { head, part, first } = &by_units[i];
        let (item, unit) = (&heads[*head], part.start);
        let base = item.base(unit);
        // SAFETY: every task has slots of its own.
        let out = unsafe { weights[*head].part(base, CHUNK.min(item.item.slots.len - base)) };
        reduce(
            item,
            unit,
            &items[*head],
            &memory[*first..first + 2 * item.rows()],
            out,
        );
    });
}

/// What every query row of a block sees of a unit; `None` when that is nothing.
fn seen<T: Element>(
    head: &Head<'_, T>,
    unit: usize,
    block: Range<usize>,
) -> Option<[Visible; BLOCK]> {
    let mut visible = [Visible::default(); BLOCK];
    for (visible, row) in visible.iter_mut().zip(block) {
        *visible = head.visible(unit, row);
    }
    visible
        .iter()
        .any(|row| row.first < row.end)
        .then_some(visible)
}

/// Maxima and sums of query rows `rows`: for each tile of [`TILE`] rows first the maxima, then the
/// sums.
fn normalise<T: Element>(head: &Head<'_, T>, rows: Range<usize>, state: &mut [f32]) {
    let (max, sum) = state.split_at_mut(rows.len());
    max.fill(f32::NEG_INFINITY);
    with_scratch(|scratch| {
        head.pack(rows.clone(), &mut scratch.q);
        for unit in 0..head.units_to(rows.end - 1) {
            let mut bias = [0.0; CHUNK];
            let loaded = head.load(unit, true, &mut scratch.pages, &mut bias);
            let bias = (unit < head.centroid_units).then_some(&bias[..]);
            let rows = rows.clone();
            match loaded {
                Unit::Stored(chunk) => {
                    let source = Source {
                        unit,
                        chunk,
                        bias,
                        next: None,
                    };
                    normalise_unit(head, rows, source, &scratch.q, max, sum);
                }
                Unit::Single(chunk) => {
                    let source = Source {
                        unit,
                        chunk,
                        bias,
                        next: None,
                    };
                    normalise_unit(head, rows, source, &scratch.q, max, sum);
                }
            }
        }
    });
    for ((row, max), sum) in rows.zip(max).zip(sum) {
        if let Some(sink) = head.sink(row) {
            dispatch(head.call.exec.level, AddSink { sink, max, sum });
        }
    }
}

fn normalise_unit<T: Element, U: Element>(
    head: &Head<'_, T>,
    rows: Range<usize>,
    source: Source<'_, U>,
    q: &[f32],
    max: &mut [f32],
    sum: &mut [f32],
) {
    let dim = head.call.shape.head_dim;
    for first in (0..rows.len()).step_by(BLOCK) {
        let block = first..rows.len().min(first + BLOCK);
        let Some(visible) = seen(
            head,
            source.unit,
            rows.start + block.start..rows.start + block.end,
        ) else {
            continue;
        };
        let q = &q[block.start * dim..block.end * dim];
        let logits = Logits {
            q,
            dim,
            chunk: source.chunk,
            visible: &visible[..block.len()],
            bias: source.bias,
            next: source.next,
        };
        let (max, sum) = (&mut max[block.clone()], &mut sum[block.clone()]);
        with_block!(head.call.exec.level, block.len(), Normalise<U> { logits, max, sum });
    }
}

/// Probabilities of the slots of one unit, reduced over the rows in order.
fn reduce<T: Element>(
    head: &Head<'_, T>,
    unit: usize,
    wanted: &ObserveItem<'_>,
    state: &[f32],
    out: &mut [f32],
) {
    with_scratch(|scratch| {
        let mut bias = [0.0; CHUNK];
        let unit_pages = head.load(unit, true, &mut scratch.pages, &mut bias);
        let (reduce, row_weights) = (wanted.reduce, wanted.row_weights);
        let mut into = Reduction {
            reduce,
            row_weights,
            group: head.group,
            row: [0.0; CHUNK],
            out,
        };
        for first in (0..head.rows()).step_by(TILE) {
            let rows = first..head.rows().min(first + TILE);
            head.pack(rows.clone(), &mut scratch.q);
            let (max, sum) = state[2 * first..2 * rows.end].split_at(rows.len());
            let totals = Totals { max, sum };
            let q = &scratch.q;
            match unit_pages {
                Unit::Stored(chunk) => {
                    let source = Source {
                        unit,
                        chunk,
                        bias: None,
                        next: None,
                    };
                    reduce_tile(head, rows, source, q, totals, &mut into);
                }
                Unit::Single(chunk) => {
                    let source = Source {
                        unit,
                        chunk,
                        bias: None,
                        next: None,
                    };
                    reduce_tile(head, rows, source, q, totals, &mut into);
                }
            }
        }
    });
}

/// What the first pass found of the rows of a tile.
#[derive(Clone, Copy)]
struct Totals<'a> {
    /// Largest logit of each row.
    max: &'a [f32],
    /// Sum of each row's exponentials.
    sum: &'a [f32],
}

fn reduce_tile<T: Element, U: Element>(
    head: &Head<'_, T>,
    rows: Range<usize>,
    source: Source<'_, U>,
    q: &[f32],
    totals: Totals<'_>,
    into: &mut Reduction<'_>,
) {
    let dim = head.call.shape.head_dim;
    let mut tile: LogitTile = [[0.0; CHUNK]; BLOCK];
    for first in (0..rows.len()).step_by(BLOCK) {
        let block = first..rows.len().min(first + BLOCK);
        let Some(visible) = seen(
            head,
            source.unit,
            rows.start + block.start..rows.start + block.end,
        ) else {
            continue;
        };
        let q = &q[block.start * dim..block.end * dim];
        let logits = Logits {
            q,
            dim,
            chunk: source.chunk,
            visible: &visible[..block.len()],
            bias: source.bias,
            next: source.next,
        };
        let (max, sum) = (&totals.max[block.clone()], &totals.sum[block.clone()]);
        let probabilities = &mut tile;
        let region = with_block!(
            head.call.exec.level,
            block.len(),
            Probabilities<U> { logits, max, sum, tile: probabilities }
        );
        for (row, tile) in block.zip(&tile) {
            into.add(rows.start + row, region.clone(), tile);
        }
    }
}

/// The running reduction of one unit.
struct Reduction<'a> {
    reduce: Reduce,
    row_weights: Option<&'a [f32]>,
    group: usize,
    /// Sum over the query heads of the current token row.
    row: [f32; CHUNK],
    out: &'a mut [f32],
}

impl Reduction<'_> {
    /// Adds query row `row`. Rows come in order; those that see nothing of the unit may be left
    /// out.
    fn add(&mut self, row: usize, region: Range<usize>, probabilities: &[f32; CHUNK]) {
        let region = region.start..region.end.min(self.out.len());
        let weight = self
            .row_weights
            .map_or(1.0, |weights| weights[row / self.group]);
        match self.reduce {
            Reduce::Max => {
                for (out, &p) in self.out[region.clone()]
                    .iter_mut()
                    .zip(&probabilities[region])
                {
                    let p = weight * p;
                    *out = if p > *out { p } else { *out };
                }
            }
            Reduce::Sum => {
                for (sum, &p) in self.row[region.clone()]
                    .iter_mut()
                    .zip(&probabilities[region])
                {
                    *sum += weight * p;
                }
                if row % self.group == self.group - 1 {
                    for (out, sum) in self.out.iter_mut().zip(&mut self.row) {
                        *out += *sum / self.group as f32;
                        *sum = 0.0;
                    }
                }
            }
        }
    }
}
