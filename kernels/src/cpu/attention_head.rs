//! One KV head of one sequence in an attention call: its units, what each query row sees of them,
//! and where their keys lie.

use std::cell::RefCell;
use std::ops::Range;

use super::attention_block::{BLOCK, CHUNK, CHUNK_PAGES, Chunk, ChunkPages, Visible};
use super::element::Element;
use super::exec::Exec;
use super::lanes::{Kernel, Lanes, WIDTH, dispatch};
use super::page_layout::{SLOTS, page_len};
use super::pages::Arena;
use crate::backend::{AttentionItem, QkvShape};
use crate::centroids::CentroidState;

/// Memory of one thread, reused from call to call.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Packed queries of a tile, scaled.
    pub(crate) q: Vec<f32>,
    /// Pages of one chunk as f32.
    pub(crate) pages: Vec<f32>,
    /// State of a tile: maxima, sums, values.
    pub(crate) state: Vec<f32>,
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
#[derive(Clone, Copy)]
pub(crate) enum Unit<T> {
    /// In the pages.
    Stored(Chunk<T>),
    /// In scratch memory, in pages of f32, or in those of centroids.
    Single(Chunk<f32>),
}

/// A unit that was loaded: what its blocks read.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a, T> {
    /// Number of the unit.
    pub(crate) unit: usize,
    /// Where its keys and values are.
    pub(crate) chunk: Chunk<T>,
    /// Added to the logits of centroids, in units of log2.
    pub(crate) bias: Option<&'a [f32]>,
    /// First page of the unit that comes next, for the processor to fetch early.
    pub(crate) next: Option<*const T>,
}

impl<'a, T: Element> Head<'a, T> {
    pub(crate) fn new(
        call: Call<'a, T>,
        item: &'a AttentionItem<'a>,
        centroids: Option<&'a CentroidState>,
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

    /// Logit of the sink of query row `row`, in units of log2.
    pub(crate) fn sink(&self, row: usize) -> Option<f32> {
        let sinks = self.item.sinks?;
        Some(sinks[row % self.group] * std::f32::consts::LOG2_E)
    }

    /// First element of query row `row` in `q` and `out`.
    pub(crate) fn offset(&self, row: usize) -> usize {
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
    pub(crate) fn first_page(&self, unit: usize) -> *const T {
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
