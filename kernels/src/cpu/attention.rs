//! Attention over centroids and slots, and the observation of its probabilities.
//!
//! A row's keys are cut into units: the centroids first (128 at a time), then chunks of 128 slots
//! that begin at multiples of 128. Units are reduced one by one and merged in order (see
//! [`attention_block`](super::attention_block)), so the work may be cut anywhere between units
//! without changing a bit:
//! ```text
//! few rows (decode):    one task per (item, unit), straight from the pages ▸ merge in unit order
//! many rows (prefill):  one task per (item, 96 query rows): each chunk is widened to f32 once, then used by 16 blocks
//! ```

use std::cell::RefCell;
use std::ops::Range;

use super::attention_block::{
    Accumulate, BLOCK, CHUNK, CHUNK_PAGES, Chunk, ChunkPages, Finish, Logits, Merge, State,
    Visible, with_block,
};
use super::element::{Element, page_len};
use super::elementwise::{at_least, check_item};
use super::lanes::{Kernel, Lanes, Shared, WIDTH, dispatch};
use super::pages::{Arena, CpuPages, Exec, SLOTS, with_arena};
use crate::backend::{AttentionItem, QkvShape};
use crate::centroids::CentroidState;
use crate::error::{Error, Result};

/// Query rows (token rows times `G`) of one prefill task.
const TILE: usize = 96;
/// Up to this many query rows an item is cut by units instead of rows.
const FEW: usize = 2 * BLOCK;

/// Memory of one thread, reused from call to call.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Packed queries of a tile, scaled.
    pub(crate) q: Vec<f32>,
    /// Pages of one chunk as f32.
    pub(crate) pages: Vec<f32>,
    /// State of a tile: maxima, sums, values.
    state: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Runs `f` with this thread's scratch memory.
pub(crate) fn with_scratch<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(f)
}

/// What all items of a call share.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a, T> {
    pub(crate) exec: Exec<'a>,
    pub(crate) shape: QkvShape,
    pub(crate) arena: &'a Arena<T>,
    pub(crate) q: &'a [f32],
}

/// One item with its units.
pub(crate) struct Head<'a, T> {
    pub(crate) call: Call<'a, T>,
    pub(crate) item: &'a AttentionItem<'a>,
    /// Memory of evicted entries, unless it holds nothing.
    centroids: Option<&'a CentroidState>,
    /// `G`.
    pub(crate) group: usize,
    /// Units of centroids.
    pub(crate) centroid_units: usize,
    /// First chunk that some row sees.
    first_chunk: usize,
}

/// Where the keys of a unit are.
pub(crate) enum Unit<T> {
    /// In the pages.
    Stored(Chunk<T>),
    /// In scratch memory, in pages of f32, or in those of centroids.
    Single(Chunk<f32>),
}

impl<'a, T: Element> Head<'a, T> {
    pub(crate) fn new(
        call: Call<'a, T>,
        (item, centroids): (&'a AttentionItem<'a>, Option<&'a CentroidState>),
    ) -> Self {
        let first = item
            .first_visible
            .and_then(|first| first.iter().min())
            .map_or(0, |&slot| slot as usize);
        Self {
            call,
            item,
            centroids,
            group: call.shape.heads / call.shape.kv_heads,
            centroid_units: centroids.map_or(0, |view| view.bias().len().div_ceil(CHUNK)),
            first_chunk: first / CHUNK,
        }
    }

    /// Query rows: token rows times `G`.
    pub(crate) fn rows(&self) -> usize {
        self.item.rows.len() * self.group
    }

    /// Units up to the last slot that query row `row` sees.
    pub(crate) fn units_to(&self, row: usize) -> usize {
        self.centroid_units + self.end(row / self.group).div_ceil(CHUNK) - self.first_chunk
    }

    /// Slots before this one are visible to token row `i` of the item.
    fn end(&self, i: usize) -> usize {
        self.item.slots.len - self.item.rows.len() + i + 1
    }

    /// First slot of a unit of slots.
    pub(crate) fn base(&self, unit: usize) -> usize {
        (unit - self.centroid_units + self.first_chunk) * CHUNK
    }

    /// What query row `row` sees of a unit.
    pub(crate) fn visible(&self, unit: usize, row: usize) -> Visible {
        if unit < self.centroid_units {
            let all = self.centroids.map_or(0, |view| view.bias().len());
            return Visible {
                first: 0,
                end: (all - unit * CHUNK).min(CHUNK),
            };
        }
        let (i, base) = (row / self.group, self.base(unit));
        let first = self.item.first_visible.map_or(0, |first| first[i] as usize);
        Visible {
            first: first.saturating_sub(base).min(CHUNK),
            end: self.end(i).saturating_sub(base).min(CHUNK),
        }
    }

    /// First element of query row `row` in `q` and `out`.
    fn offset(&self, row: usize) -> usize {
        let QkvShape {
            heads, head_dim, ..
        } = self.call.shape;
        let head = self.item.kv_head * self.group + row % self.group;
        ((self.item.rows.start + row / self.group) * heads + head) * head_dim
    }

    /// Packs query rows into blocks `[D][M]`, scaled by `log2(e) / sqrt(D)`.
    pub(crate) fn pack(&self, rows: Range<usize>, packed: &mut Vec<f32>) {
        let dim = self.call.shape.head_dim;
        let scale = std::f32::consts::LOG2_E / (dim as f32).sqrt();
        packed.resize(rows.len() * dim, 0.0);
        for (block, packed) in packed.chunks_mut(BLOCK * dim).enumerate() {
            let count = packed.len() / dim;
            for m in 0..count {
                let q = &self.call.q[self.offset(rows.start + block * BLOCK + m)..][..dim];
                for (packed, q) in packed[m..].iter_mut().step_by(count).zip(q) {
                    *packed = q * scale;
                }
            }
        }
    }

    /// First page of a unit of slots; null past the end.
    fn first_page(&self, unit: usize) -> *const T {
        let page_len = page_len::<T>(self.call.shape.head_dim);
        match self.item.slots.pages[..self.item.slots.len.div_ceil(SLOTS)]
            .get(self.base(unit) / SLOTS)
        {
            // SAFETY: the page table was checked for `slots.len` slots.
            Some(id) => unsafe { self.call.arena.start().add(id.0 as usize * page_len) },
            None => std::ptr::null(),
        }
    }

    /// The pages of a unit, as f32 in `scratch` when `widen` asks for it; those of centroids are
    /// f32. Also fills the biases of centroids, in units of log2.
    pub(crate) fn load(
        &self,
        unit: usize,
        widen: bool,
        scratch: &mut Vec<f32>,
        bias: &mut [f32; CHUNK],
    ) -> Unit<T> {
        let dim = self.call.shape.head_dim;
        let single_len = page_len::<f32>(dim);
        if let (true, Some(view)) = (unit < self.centroid_units, self.centroids) {
            let mut pages = [std::ptr::null(); CHUNK_PAGES];
            let of_unit = view
                .pages()
                .chunks_exact(single_len)
                .skip(unit * CHUNK_PAGES);
            pages
                .iter_mut()
                .zip(of_unit)
                .for_each(|(to, page)| *to = page.as_ptr());
            let biases = bias.iter_mut().zip(&view.bias()[unit * CHUNK..]);
            biases.for_each(|(to, bias)| *to = bias * std::f32::consts::LOG2_E);
            return Unit::Single(Chunk {
                pages,
                scales: None,
            });
        }
        let stored = self.stored(unit);
        if !widen {
            return Unit::Stored(stored);
        }
        let Chunk { pages, scales } = stored;
        if T::as_single(pages[0]).is_some() {
            return Unit::Single(Chunk {
                pages: pages.map(<*const T>::cast::<f32>),
                scales,
            });
        }
        scratch.resize(CHUNK_PAGES * single_len + 16, 0.0);
        let pages = dispatch(
            self.call.exec.level,
            Widen {
                pages,
                page_len: single_len,
                scratch,
            },
        );
        Unit::Single(Chunk { pages, scales })
    }

    /// The pages of a unit of slots, as they are.
    fn stored(&self, unit: usize) -> Chunk<T> {
        let (dim, pages) = (self.call.shape.head_dim, &self.item.slots.pages);
        let (first, used) = (self.base(unit) / SLOTS, self.item.slots.len.div_ceil(SLOTS));
        let mut chunk = Chunk {
            pages: [std::ptr::null(); CHUNK_PAGES],
            scales: None,
        };
        let mut scales = [std::ptr::null(); CHUNK_PAGES];
        for ((page, scales), id) in chunk
            .pages
            .iter_mut()
            .zip(&mut scales)
            .zip(&pages[first.min(used)..used])
        {
            // SAFETY: the page table was checked for `slots.len` slots; scales, if any, follow keys
            // and values.
            unsafe {
                *page = self
                    .call
                    .arena
                    .start()
                    .add(id.0 as usize * page_len::<T>(dim));
                *scales = page.add(2 * SLOTS * dim).cast::<u16>();
            }
        }
        chunk.scales = T::SCALED.then_some(scales);
        chunk
    }
}

/// Widens the elements of a chunk to f32, without scales.
struct Widen<'a, T> {
    pages: ChunkPages<T>,
    /// Elements of a page but for scales.
    page_len: usize,
    scratch: &'a mut [f32],
}

impl<T: Element> Kernel for Widen<'_, T> {
    type Output = ChunkPages<f32>;
    #[inline(always)]
    fn run<L: Lanes>(self) -> ChunkPages<f32> {
        let mut single = [std::ptr::null(); CHUNK_PAGES];
        let first = self.scratch.as_ptr().align_offset(64).min(16);
        let pages = self.pages.iter().take_while(|page| !page.is_null());
        for ((single, page), out) in single
            .iter_mut()
            .zip(pages)
            .zip(self.scratch[first..].chunks_exact_mut(self.page_len))
        {
            for (i, out) in out.chunks_exact_mut(WIDTH).enumerate() {
                // SAFETY: `Head::load` passes whole pages of the arena.
                unsafe { T::load::<L>(page.add(i * WIDTH)) }.write(out);
            }
            *single = out.as_ptr();
        }
        single
    }
}

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

/// See [`crate::Backend::attention`].
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
    let heads: Vec<_> = items.iter().zip(centroids).collect();
    let out = Shared::new(out);
    with_arena!(pages.data(), arena => {
        let call = Call { exec, shape, arena, q };
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

fn run<T: Element>(
    call: Call<'_, T>,
    items: &[(&AttentionItem<'_>, Option<&CentroidState>)],
    out: Shared<'_, f32>,
) {
    let dim = call.shape.head_dim;
    let heads: Vec<Head<'_, T>> = items.iter().map(|&item| Head::new(call, item)).collect();
    let (mut tasks, mut merges, mut states, mut work) = (Vec::new(), Vec::new(), 0, 0);
    let few = heads.iter().filter(|head| (1..=FEW).contains(&head.rows()));
    let per_task = few
        .map(|head| head.units_to(head.rows() - 1))
        .sum::<usize>()
        / (4 * call.exec.pool.threads());
    let per_task = per_task.clamp(1, 8);
    for (index, head) in heads.iter().enumerate().filter(|(_, head)| head.rows() > 0) {
        let rows = head.rows();
        let units = head.units_to(rows - 1);
        work += rows * units * CHUNK * dim / WIDTH;
        if rows <= FEW {
            merges.push(Partials {
                head: index,
                first: states,
                units,
            });
            tasks.extend((0..units).step_by(per_task).map(|unit| {
                let partial = Some(states + unit * rows);
                Task {
                    head: index,
                    rows: 0..rows,
                    units: unit..units.min(unit + per_task),
                    partial,
                }
            }));
            states += units * rows;
        } else {
            let step = (TILE / head.group).max(1) * head.group;
            tasks.extend((0..rows).step_by(step).map(|first| {
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
    let mut partials = vec![0.0; states * (dim + 2)];
    let shared = Shared::new(&mut partials);
    call.exec.run(tasks.len(), work, &|i| {
        let Task {
            head,
            rows,
            units,
            partial,
        } = &tasks[i];
        let head = &heads[*head];
        with_scratch(|scratch| match partial {
            Some(first) => {
                let len = rows.len() * (dim + 2);
                for (i, unit) in units.clone().enumerate() {
                    // SAFETY: every task has states of its own.
                    let state = unsafe { shared.part(first * (dim + 2) + i * len, len) };
                    accumulate(head, rows.clone(), unit..unit + 1, scratch, state);
                }
            }
            None => {
                let mut state = std::mem::take(&mut scratch.state);
                state.clear();
                state.resize(rows.len() * (dim + 2), 0.0);
                accumulate(head, rows.clone(), units.clone(), scratch, &mut state);
                finish(head, rows.clone(), &mut state, out);
                scratch.state = state;
            }
        });
    });
    call.exec.run(merges.len(), 2 * states * dim, &|i| {
        let Partials { head, first, units } = merges[i];
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
        match head.load(unit, widen, pages, &mut bias) {
            Unit::Stored(chunk) => {
                let next = (!widen).then(|| head.first_page(unit + 1));
                blocks(
                    head,
                    rows.clone(),
                    unit,
                    (chunk, &bias, next),
                    q,
                    &mut state,
                );
            }
            Unit::Single(chunk) => blocks(
                head,
                rows.clone(),
                unit,
                (chunk, &bias, None),
                q,
                &mut state,
            ),
        }
    }
}

/// All blocks of a tile against one unit.
fn blocks<T: Element, U: Element>(
    head: &Head<'_, T>,
    rows: Range<usize>,
    unit: usize,
    (chunk, bias, next): (Chunk<U>, &[f32; CHUNK], Option<*const U>),
    q: &[f32],
    state: &mut State<'_>,
) {
    let dim = head.call.shape.head_dim;
    let bias = (unit < head.centroid_units).then_some(&bias[..]);
    for first in (0..rows.len()).step_by(BLOCK) {
        let block = first..rows.len().min(first + BLOCK);
        let mut visible = [Visible::default(); BLOCK];
        for (visible, row) in visible.iter_mut().zip(block.clone()) {
            *visible = head.visible(unit, rows.start + row);
        }
        let visible = &visible[..block.len()];
        if visible.iter().all(|row| row.first >= row.end) {
            continue;
        }
        let values = block.start * dim..block.end * dim;
        let logits = Logits {
            q: &q[values.clone()],
            dim,
            chunk,
            visible,
            bias,
            next,
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
    let state = state_of(memory, rows.len());
    for ((row, values), &mut sum) in rows.zip(state.values.chunks_exact(dim)).zip(state.sum) {
        // SAFETY: rows of different items and tasks are disjoint, which `attention` checked.
        let out = unsafe { out.part(head.offset(row), dim) };
        dispatch(head.call.exec.level, Finish { sum, values, out });
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
