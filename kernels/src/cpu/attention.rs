//! Attention over centroids and slots, and the observation of its probabilities.
//!
//! A row's keys are cut into units: the centroids first (128 at a time), then chunks of 128 slots
//! that begin at multiples of 128. Units are reduced one by one and merged in order (see
//! [`attention_block`](super::attention_block)), so the work may be cut anywhere between units
//! without changing a bit:
//! ```text
//! few rows (decode):    one task per (item, unit), straight from the pages ▸ merge in unit order
//! many rows (prefill):  one task per (item, 96 query rows): each chunk is widened to f32 once,
//!                       then used by 16 blocks
//! ```

use std::ops::Range;

use super::attention_block::{
    Accumulate, AddSink, BLOCK, CHUNK, Finish, Logits, Merge, State, Visible, with_block,
};
use super::attention_head::{Call, Head, Scratch, Source, Unit, with_scratch};
use super::checks::check_item;
use super::element::Element;
use super::exec::Exec;
use super::lanes::{Shared, WIDTH, dispatch};
use super::pages::{CpuPages, with_arena};
use crate::backend::{AttentionItem, QkvShape};
use crate::centroids::CentroidState;
use crate::error::{Error, Result, at_least};

/// Query rows (token rows times `G`) of one prefill task.
const TILE: usize = 96;
/// Up to this many query rows an item is cut by units instead of rows.
const FEW: usize = 2 * BLOCK;

/// Checks an item of an attention call and finds its centroids; `rows` is the number of rows of
/// `q`.
pub(crate) fn check<'a>(
    op: &'static str,
    shape: QkvShape,
    pages: &'a CpuPages,
    rows: usize,
    item: &AttentionItem<'_>,
) -> Result<Option<&'a CentroidState>> {
    let QkvShape {
        heads,
        kv_heads,
        head_dim,
    } = shape;
    if head_dim != pages.head_dim() {
        return Err(Error::Shape {
            op,
            what: "a slot of the pages",
            got: pages.head_dim(),
            want: head_dim,
        });
    }
    if !heads.is_multiple_of(kv_heads.max(1)) {
        return Err(Error::Multiple {
            op,
            what: "number of heads",
            got: heads,
            multiple: kv_heads,
        });
    }
    check_item(op, &item.rows, rows, item.kv_head, kv_heads)?;
    pages.check(op, &item.slots, item.slots.len)?;
    at_least(op, "slots", item.slots.len, item.rows.len())?;
    if let Some(first) = item.first_visible {
        if first.len() != item.rows.len() {
            return Err(Error::Shape {
                op,
                what: "first_visible",
                got: first.len(),
                want: item.rows.len(),
            });
        }
        for (i, &first) in first.iter().enumerate() {
            let (index, len) = (first as usize, item.slots.len - item.rows.len() + i + 1);
            if index >= len {
                return Err(Error::Index {
                    op,
                    what: "first visible slot",
                    index,
                    len,
                });
            }
        }
    }
    if let Some(sinks) = item.sinks {
        let (got, want) = (sinks.len(), heads / kv_heads.max(1));
        if got != want {
            return Err(Error::Shape {
                op,
                what: "sinks",
                got,
                want,
            });
        }
    }
    pages.latents().centroids(op, item.centroids)
}

/// Whether no two items of one KV head share a row.
fn rows_apart(items: &[AttentionItem<'_>]) -> bool {
    let mut spans: Vec<_> = items
        .iter()
        .map(|item| (item.kv_head, item.rows.start, item.rows.end))
        .collect();
    spans.retain(|&(_, start, end)| start < end);
    spans.sort_unstable();
    spans
        .windows(2)
        .all(|pair| pair[0].0 != pair[1].0 || pair[0].2 <= pair[1].1)
}

/// See [`Attention::attention`](crate::backend::Attention::attention).
pub(crate) fn attention(
    exec: Exec<'_>,
    shape: QkvShape,
    pages: &CpuPages,
    q: &[f32],
    items: &[AttentionItem<'_>],
    out: &mut [f32],
) -> Result<()> {
    let width = shape.heads * shape.head_dim;
    if items.is_empty() || width == 0 {
        return Ok(());
    }
    let rows = (q.len() / width).min(out.len() / width);
    let centroids: Vec<_> = items
        .iter()
        .map(|item| check("attention", shape, pages, rows, item))
        .collect::<Result<_>>()?;
    let out = Shared::new(out);
    with_arena!(pages.data(), arena => {
        let call = Call { exec, shape, arena, q };
        let heads: Vec<_> = items
            .iter()
            .zip(centroids)
            .map(|(item, centroids)| Head::new(call, item, centroids))
            .collect();
        if rows_apart(items) {
            run(call, &heads, out);
        } else {
            // Not what the contract asks for: in order, the later item wins.
            heads.iter().for_each(|head| run(call, std::slice::from_ref(head), out));
        }
    });
    Ok(())
}

/// One task: query rows against units; the state goes to `partial`, or is finished.
struct Task {
    head: usize,
    rows: Range<usize>,
    units: Range<usize>,
    partial: Option<usize>,
}

/// Partial states of one item: `units * rows` of them from `first`, unit by unit.
struct Partials {
    head: usize,
    first: usize,
    units: usize,
}

/// How the items of a call are cut into tasks.
#[derive(Default)]
struct Plan {
    tasks: Vec<Task>,
    merges: Vec<Partials>,
    /// Partial states of all items.
    states: usize,
    /// Vector operations, about.
    work: usize,
}

impl Plan {
    fn new<T: Element>(heads: &[Head<'_, T>], dim: usize, threads: usize) -> Self {
        let few = heads.iter().filter(|head| (1..=FEW).contains(&head.rows()));
        let per_task = few
            .map(|head| head.units_to(head.rows() - 1))
            .sum::<usize>()
            / (4 * threads);
        let per_task = per_task.clamp(1, 8);
        let mut plan = Self::default();
        for (index, head) in heads.iter().enumerate().filter(|(_, head)| head.rows() > 0) {
            let rows = head.rows();
            let units = head.units_to(rows - 1);
            plan.work += rows * units * CHUNK * dim / WIDTH;
            if rows <= FEW {
                plan.cut_by_units(index, rows, units, per_task);
            } else {
                plan.cut_by_rows(index, head);
            }
        }
        plan
    }

    /// Cuts an item of few rows into tasks of `per_task` units.
    fn cut_by_units(&mut self, head: usize, rows: usize, units: usize, per_task: usize) {
        let first = self.states;
        self.merges.push(Partials { head, first, units });
        self.tasks
            .extend((0..units).step_by(per_task).map(|unit| Task {
                head,
                rows: 0..rows,
                units: unit..units.min(unit + per_task),
                partial: Some(first + unit * rows),
            }));
        self.states += units * rows;
    }

    /// Cuts an item of many rows into tiles, each against all units that it sees.
    fn cut_by_rows<T: Element>(&mut self, index: usize, head: &Head<'_, T>) {
        let rows = head.rows();
        let step = (TILE / head.group).max(1) * head.group;
        self.tasks.extend((0..rows).step_by(step).map(|first| {
            let end = rows.min(first + step);
            Task {
                head: index,
                rows: first..end,
                units: 0..head.units_to(end - 1),
                partial: None,
            }
        }));
    }
}

/// Carries out a call whose items are apart.
fn run<T: Element>(call: Call<'_, T>, heads: &[Head<'_, T>], out: Shared<'_, f32>) {
    let dim = call.shape.head_dim;
    let plan = Plan::new(heads, dim, call.exec.pool.threads());
    let mut partials = vec![0.0; plan.states * (dim + 2)];
    let shared = Shared::new(&mut partials);
    call.exec.run(plan.tasks.len(), plan.work, &|i| {
        let task = &plan.tasks[i];
        let head = &heads[task.head];
        with_scratch(|scratch| match task.partial {
            Some(first) => {
                let len = task.rows.len() * (dim + 2);
                for (i, unit) in task.units.clone().enumerate() {
                    // SAFETY: every task has states of its own.
                    let state = unsafe { shared.part(first * (dim + 2) + i * len, len) };
                    accumulate(head, task.rows.clone(), unit..unit + 1, scratch, state);
                }
            }
            None => {
                let mut state = std::mem::take(&mut scratch.state);
                state.clear();
                state.resize(task.rows.len() * (dim + 2), 0.0);
                accumulate(
                    head,
                    task.rows.clone(),
                    task.units.clone(),
                    scratch,
                    &mut state,
                );
                finish(head, task.rows.clone(), &mut state, out);
                scratch.state = state;
            }
        });
    });
    let work = 2 * plan.states * dim;
    call.exec.run(plan.merges.len(), work, &|i| {
        let Partials { head, first, units } = plan.merges[i];
        let head = &heads[head];
        let len = head.rows() * (dim + 2);
        // SAFETY: every item has states of its own, and nobody writes them any more.
        let states = unsafe { shared.part(first * (dim + 2), units * len) };
        merge(head, states, out);
    });
}

/// The state of `rows` query rows inside `memory`, `D + 2` values a row.
fn state_of(memory: &mut [f32], rows: usize) -> State<'_> {
    let (max, rest) = memory.split_at_mut(rows);
    let (sum, values) = rest.split_at_mut(rows);
    State { max, sum, values }
}

/// Reduces `units` for query rows `rows` into `memory`, which is zeroed.
fn accumulate<T: Element>(
    head: &Head<'_, T>,
    rows: Range<usize>,
    units: Range<usize>,
    scratch: &mut Scratch,
    memory: &mut [f32],
) {
    let widen = rows.len() > FEW;
    let mut state = state_of(memory, rows.len());
    state.max.fill(f32::NEG_INFINITY);
    let Scratch { q, pages, .. } = scratch;
    head.pack(rows.clone(), q);
    for unit in units {
        let mut bias = [0.0; CHUNK];
        let loaded = head.load(unit, widen, pages, &mut bias);
        let bias = (unit < head.centroid_units).then_some(&bias[..]);
        match loaded {
            Unit::Stored(chunk) => {
                let next = (!widen).then(|| head.first_page(unit + 1));
                let source = Source {
                    unit,
                    chunk,
                    bias,
                    next,
                };
                blocks(head, rows.clone(), source, q, &mut state);
            }
            Unit::Single(chunk) => {
                let source = Source {
                    unit,
                    chunk,
                    bias,
                    next: None,
                };
                blocks(head, rows.clone(), source, q, &mut state);
            }
        }
    }
}

/// All blocks of a tile against one unit.
fn blocks<T: Element, U: Element>(
    head: &Head<'_, T>,
    rows: Range<usize>,
    source: Source<'_, U>,
    q: &[f32],
    state: &mut State<'_>,
) {
    let dim = head.call.shape.head_dim;
    for first in (0..rows.len()).step_by(BLOCK) {
        let block = first..rows.len().min(first + BLOCK);
        let mut visible = [Visible::default(); BLOCK];
        for (visible, row) in visible.iter_mut().zip(block.clone()) {
            *visible = head.visible(source.unit, rows.start + row);
        }
        let visible = &visible[..block.len()];
        if visible.iter().all(|row| row.first >= row.end) {
            continue;
        }
        let values = block.start * dim..block.end * dim;
        let logits = Logits {
            q: &q[values.clone()],
            dim,
            chunk: source.chunk,
            visible,
            bias: source.bias,
            next: source.next,
        };
        let state = State {
            max: &mut state.max[block.clone()],
            sum: &mut state.sum[block.clone()],
            values: &mut state.values[values],
        };
        with_block!(head.call.exec.level, block.len(), Accumulate<U> { logits, state });
    }
}

/// Writes `values / sum` of query rows to `out`.
fn finish<T: Element>(
    head: &Head<'_, T>,
    rows: Range<usize>,
    memory: &mut [f32],
    out: Shared<'_, f32>,
) {
    let dim = head.call.shape.head_dim;
    let State { max, sum, values } = state_of(memory, rows.len());
    let level = head.call.exec.level;
    let rows = rows.zip(values.chunks_exact_mut(dim)).zip(max);
    for (((row, values), max), sum) in rows.zip(sum) {
        if let Some(sink) = head.sink(row) {
            let factor = dispatch(level, AddSink { sink, max, sum });
            values.iter_mut().for_each(|value| *value *= factor);
        }
        let sum = *sum;
        // SAFETY: rows of different items and tasks are disjoint, which `attention` checked.
        let out = unsafe { out.part(head.offset(row), dim) };
        dispatch(level, Finish { sum, values, out });
    }
}

/// Merges the states of an item's units, in order, and finishes them.
fn merge<T: Element>(head: &Head<'_, T>, states: &mut [f32], out: Shared<'_, f32>) {
    let (dim, rows) = (head.call.shape.head_dim, head.rows());
    let (first, others) = states.split_at_mut(rows * (dim + 2));
    let into = state_of(first, rows);
    for other in others.chunks_exact_mut(rows * (dim + 2)) {
        let other = state_of(other, rows);
        for row in 0..rows {
            let values = row * dim..(row + 1) * dim;
            let into = State {
                max: &mut into.max[row..row + 1],
                sum: &mut into.sum[row..row + 1],
                values: &mut into.values[values.clone()],
            };
            let (max, sum, values) = (other.max[row], other.sum[row], &other.values[values]);
            dispatch(
                head.call.exec.level,
                Merge {
                    into,
                    max,
                    sum,
                    values,
                },
            );
        }
    }
    finish(head, 0..rows, first, out);
}
