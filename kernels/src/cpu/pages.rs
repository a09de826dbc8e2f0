//! The slot arena and everything that only moves or rotates slots.
//!
//! A page holds 32 slots: keys as `[D][32]`, so that eight slots are one vector and a dot product
//! runs over `D` in order, then values as `[32][D]`, then, for scaled elements, the scales of 32
//! keys and of 32 values. The arena is zeroed by the operating system: a page costs memory once
//! written.

use super::SimdLevel;
use super::element::{Element, page_len, scale};
use super::exp::sin_cos;
use super::lanes::{Kernel, Lanes, Shared, WIDTH, dispatch};
use super::notes::Notes;
use super::pool::Pool;
use crate::backend::{HeadPages, KvType, PageId, PageShape, RotateItem};
use crate::error::{Error, Result};
use crate::latent::{HostLatent, Latents};
use crate::select::KeptLists;

/// Slots of one page.
pub(crate) const SLOTS: usize = PageShape::SLOTS;

/// Where kernels run: the threads and the instructions.
#[derive(Clone, Copy)]
pub(crate) struct Exec<'a> {
    /// Threads of the backend.
    pub(crate) pool: &'a Pool,
    /// Instructions that were found, or asked for.
    pub(crate) level: SimdLevel,
}

impl Exec<'_> {
    /// Runs `tasks` tasks on the pool when `work` values make that worth it, else here, in order.
    pub(crate) fn run(&self, tasks: usize, work: usize, task: &(dyn Fn(usize) + Sync)) {
        /// Below this many values waking the threads costs more than it gains.
        const WORTH: usize = 16 * 1024;
        if tasks > 1 && work > WORTH {
            self.pool.run(tasks, task)
        } else {
            (0..tasks).for_each(task)
        }
    }
}

/// Zeroed memory whose first element lies on a cache line.
pub(crate) struct Arena<T> {
    values: Vec<T>,
    first: usize,
}

impl<T: Element> Arena<T> {
    fn zeroed(len: usize) -> Result<Self> {
        let spare = 64 / size_of::<T>();
        let too_large = || Error::OutOfMemory {
            what: "pages",
            bytes: len.saturating_mul(size_of::<T>()),
        };
        let total = len.checked_add(spare).ok_or_else(too_large)?;
        let layout = std::alloc::Layout::array::<T>(total).map_err(|_| too_large())?;
        // SAFETY: the layout is not empty, `spare` elements at least.
        let start = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<T>();
        if start.is_null() {
            return Err(too_large());
        }
        // SAFETY: allocated by the global allocator with the layout of `total` elements, and
        // all-zero bits are a valid value of every element type.
        let values = unsafe { Vec::from_raw_parts(start, total, total) };
        let first = values.as_ptr().align_offset(64);
        Ok(Self {
            values,
            first: if first < spare { first } else { 0 },
        })
    }

    /// First element of the first page.
    pub(crate) fn start(&self) -> *const T {
        self.values[self.first..].as_ptr()
    }

    fn shared(&mut self) -> Shared<'_, T> {
        Shared::new(&mut self.values[self.first..])
    }
}

/// Pages of any element type.
pub(crate) enum PageData {
    Q8(Arena<i8>),
    F16(Arena<u16>),
    F32(Arena<f32>),
}

/// The arena of the CPU backend.
pub struct CpuPages {
    shape: PageShape,
    count: usize,
    data: PageData,
    notes: Notes,
    latents: Latents<HostLatent>,
}

/// Evaluates an expression for the arena's element type.
macro_rules! with_arena {
    ($data:expr, $arena:ident => $body:expr) => {
        match $data {
            $crate::cpu::pages::PageData::Q8($arena) => $body,
            $crate::cpu::pages::PageData::F16($arena) => $body,
            $crate::cpu::pages::PageData::F32($arena) => $body,
        }
    };
}
pub(crate) use with_arena;

impl CpuPages {
    /// A zeroed arena of `count` pages; `D` is a multiple of 8.
    pub(crate) fn alloc(shape: PageShape, count: usize) -> Result<Self> {
        let op = "alloc_pages";
        if shape.head_dim == 0 || !shape.head_dim.is_multiple_of(WIDTH) {
            return Err(Error::Multiple {
                op,
                what: "head_dim",
                got: shape.head_dim,
                multiple: WIDTH,
            });
        }
        let too_large = Error::OutOfMemory {
            what: "pages",
            bytes: usize::MAX,
        };
        let page = shape
            .head_dim
            .checked_mul(4 * SLOTS)
            .map(|_| shape.bytes() / shape.dtype.bytes());
        let Some(len) = page.and_then(|page| page.checked_mul(count)) else {
            return Err(too_large);
        };
        let data = match shape.dtype {
            KvType::Q8 => PageData::Q8(Arena::zeroed(len)?),
            KvType::F16 => PageData::F16(Arena::zeroed(len)?),
            KvType::F32 => PageData::F32(Arena::zeroed(len)?),
        };
        Ok(Self {
            shape,
            count,
            data,
            notes: Notes::zeroed(count),
            latents: Latents::default(),
        })
    }

    /// `D`.
    pub(crate) fn head_dim(&self) -> usize {
        self.shape.head_dim
    }

    /// The arena.
    pub(crate) fn data(&self) -> &PageData {
        &self.data
    }

    /// Notes beside the pages.
    pub(crate) fn notes(&self) -> &Notes {
        &self.notes
    }

    /// The same, to be changed.
    pub(crate) fn notes_mut(&mut self) -> &mut Notes {
        &mut self.notes
    }

    /// Latent memories beside the pages.
    pub(crate) fn latents(&self) -> &Latents<HostLatent> {
        &self.latents
    }

    /// The same, to be changed.
    pub(crate) fn latents_mut(&mut self) -> &mut Latents<HostLatent> {
        &mut self.latents
    }

    /// Checks that the page table of `head` covers `len` slots with pages of this arena.
    pub(crate) fn check(&self, op: &'static str, head: &HeadPages<'_>, len: usize) -> Result<()> {
        let want = len.div_ceil(SLOTS);
        if head.pages.len() < want {
            return Err(Error::Shape {
                op,
                what: "page table",
                got: head.pages.len(),
                want,
            });
        }
        match head.pages[..want]
            .iter()
            .find(|page| page.0 as usize >= self.count)
        {
            Some(page) => Err(Error::Index {
                op,
                what: "page",
                index: page.0 as usize,
                len: self.count,
            }),
            None => Ok(()),
        }
    }

    /// The arena for writing, as one writer per element type.
    pub(crate) fn writer(&mut self) -> PageWriter<'_> {
        let dim = self.shape.head_dim;
        match &mut self.data {
            PageData::Q8(arena) => PageWriter::Q8(Writer {
                arena: arena.shared(),
                dim,
            }),
            PageData::F16(arena) => PageWriter::F16(Writer {
                arena: arena.shared(),
                dim,
            }),
            PageData::F32(arena) => PageWriter::F32(Writer {
                arena: arena.shared(),
                dim,
            }),
        }
    }
}

/// [`Writer`] of any element type.
pub(crate) enum PageWriter<'a> {
    Q8(Writer<'a, i8>),
    F16(Writer<'a, u16>),
    F32(Writer<'a, f32>),
}

/// Evaluates an expression for the writer's element type.
macro_rules! with_writer {
    ($writer:expr, $name:ident => $body:expr) => {
        match $writer {
            $crate::cpu::pages::PageWriter::Q8($name) => $body,
            $crate::cpu::pages::PageWriter::F16($name) => $body,
            $crate::cpu::pages::PageWriter::F32($name) => $body,
        }
    };
}
pub(crate) use with_writer;

/// Element of a slot's first key; the others follow at distance [`SLOTS`].
fn key_offset<T: Element>(dim: usize, pages: &[PageId], slot: usize) -> usize {
    pages[slot / SLOTS].0 as usize * page_len::<T>(dim) + slot % SLOTS
}

/// Element of a slot's first value; the others follow.
fn value_offset<T: Element>(dim: usize, pages: &[PageId], slot: usize) -> usize {
    pages[slot / SLOTS].0 as usize * page_len::<T>(dim) + (SLOTS + slot % SLOTS) * dim
}

/// Element where the scale of a slot's key is stored, of scaled elements; that of its value is
/// [`SLOTS`] halves behind.
fn scale_offset<T: Element>(dim: usize, pages: &[PageId], slot: usize) -> usize {
    let half = size_of::<u16>() / size_of::<T>();
    pages[slot / SLOTS].0 as usize * page_len::<T>(dim) + 2 * SLOTS * dim + slot % SLOTS * half
}

/// Scattered writes to the pages of heads. All methods are unsafe in the same way: page tables were
/// checked with [`CpuPages::check`] for the slots used, and no other thread touches the pages
/// meanwhile.
pub(crate) struct Writer<'a, T> {
    arena: Shared<'a, T>,
    dim: usize,
}

impl<T: Element> Writer<'_, T> {
    unsafe fn key(&self, pages: &[PageId], slot: usize) -> *mut T {
        // SAFETY: the page exists by the contract of the type.
        unsafe {
            self.arena
                .start()
                .add(key_offset::<T>(self.dim, pages, slot))
        }
    }

    unsafe fn value(&self, pages: &[PageId], slot: usize) -> *mut T {
        // SAFETY: the page exists by the contract of the type.
        unsafe {
            self.arena
                .start()
                .add(value_offset::<T>(self.dim, pages, slot))
        }
    }

    /// The scales of key and value; only scaled elements have them.
    unsafe fn scales(&self, pages: &[PageId], slot: usize) -> (*mut u16, *mut u16) {
        // SAFETY: the page exists by the contract of the type, and of scaled elements it ends with
        // two halves a slot.
        unsafe {
            let key = self
                .arena
                .start()
                .add(scale_offset::<T>(self.dim, pages, slot))
                .cast::<u16>();
            (key, key.add(SLOTS))
        }
    }

    /// Writes one slot from f32, `D` values each.
    ///
    /// # Safety
    /// See [`Writer`].
    #[inline(always)]
    pub(crate) unsafe fn write<L: Lanes>(
        &self,
        pages: &[PageId],
        slot: usize,
        key: &[f32],
        value: &[f32],
    ) {
        assert!(value.len() == self.dim, "a slot holds D values");
        let scale = if T::SCALED {
            scale::<L>(value)
        } else {
            half::f16::ONE
        };
        // SAFETY: the slot's page exists and is ours; `D` is a multiple of eight, so all vectors
        // lie inside.
        unsafe {
            if T::SCALED {
                *self.scales(pages, slot).1 = scale.to_bits();
            }
            let values = self.value(pages, slot);
            for d in (0..self.dim).step_by(WIDTH) {
                T::store(
                    L::load(value.as_ptr().add(d)),
                    scale.to_f32(),
                    values.add(d),
                );
            }
            self.write_key::<L>(pages, slot, key);
        }
    }

    /// Writes the key of one slot from f32, `D` values.
    ///
    /// # Safety
    /// See [`Writer`].
    #[inline(always)]
    unsafe fn write_key<L: Lanes>(&self, pages: &[PageId], slot: usize, key: &[f32]) {
        assert!(key.len() == self.dim, "a slot holds a key of D elements");
        let scale = if T::SCALED {
            scale::<L>(key)
        } else {
            half::f16::ONE
        };
        // SAFETY: as in `write`.
        unsafe {
            if T::SCALED {
                *self.scales(pages, slot).0 = scale.to_bits();
            }
            let keys = self.key(pages, slot);
            for d in (0..self.dim).step_by(WIDTH) {
                let mut lanes = [T::default(); WIDTH];
                T::store(
                    L::load(key.as_ptr().add(d)),
                    scale.to_f32(),
                    lanes.as_mut_ptr(),
                );
                for (i, &x) in lanes.iter().enumerate() {
                    *keys.add((d + i) * SLOTS) = x;
                }
            }
        }
    }

    /// Moves slots `keep` to the front. In place is safe in ascending order: kept slot `i` comes
    /// from `keep[i] >= i`.
    unsafe fn compact(&self, pages: &[PageId], keep: &[u32]) {
        let still = keep
            .iter()
            .enumerate()
            .take_while(|&(i, &slot)| i == slot as usize)
            .count();
        let mut first = still;
        while first < keep.len() {
            let end = keep.len().min((first / SLOTS + 1) * SLOTS);
            let moved = &keep[first..end];
            // SAFETY: by the contract of the type; source and destination of a value row may be the
            // same row.
            unsafe {
                let to = self.key(pages, first);
                let mut from = [to.cast_const(); SLOTS];
                for (from, &slot) in from.iter_mut().zip(moved) {
                    *from = self.key(pages, slot as usize);
                }
                for d in 0..self.dim {
                    for (i, from) in from[..moved.len()].iter().enumerate() {
                        *to.add(d * SLOTS + i) = *from.add(d * SLOTS);
                    }
                }
                for (i, &slot) in moved.iter().enumerate() {
                    self.value(pages, slot as usize)
                        .copy_to(self.value(pages, first + i), self.dim);
                    if T::SCALED {
                        let (from, to) = (
                            self.scales(pages, slot as usize),
                            self.scales(pages, first + i),
                        );
                        (*to.0, *to.1) = (*from.0, *from.1);
                    }
                }
            }
            first = end;
        }
    }

    /// Rotates the keys of slots `0 .. delta.len()`, slot by slot: a scale is known only when all
    /// of a key is.
    #[inline(always)]
    unsafe fn rotate_scaled<L: Lanes>(&self, pages: &[PageId], delta: &[f32], inv_freq: &[f32]) {
        let half = self.dim / 2;
        let (mut key, mut value) = (vec![0.0; self.dim], vec![0.0; self.dim]);
        for (slot, &tokens) in delta
            .iter()
            .enumerate()
            .filter(|(_, tokens)| **tokens != 0.0)
        {
            // SAFETY: by the contract of the type.
            unsafe {
                read_slot::<T, L>(
                    self.arena.start(),
                    self.dim,
                    pages,
                    slot,
                    (&mut key, &mut value),
                )
            };
            for (i, &frequency) in inv_freq[..half].iter().enumerate() {
                let (sin, cos) = sin_cos(f64::from(tokens) * f64::from(frequency));
                let (x, y) = (key[i], key[i + half]);
                (key[i], key[i + half]) = (x * cos - y * sin, y * cos + x * sin);
            }
            // SAFETY: by the contract of the type.
            unsafe { self.write_key::<L>(pages, slot, &key) };
        }
    }

    /// Rotates the keys of slots `0 .. delta.len()`.
    #[inline(always)]
    unsafe fn rotate<L: Lanes>(&self, pages: &[PageId], delta: &[f32], inv_freq: &[f32]) {
        let half = self.dim / 2;
        if T::SCALED {
            // SAFETY: by the contract of the type.
            return unsafe { self.rotate_scaled::<L>(pages, delta, inv_freq) };
        }
        for (page, delta) in delta.chunks(SLOTS).enumerate() {
            if delta.iter().all(|&tokens| tokens == 0.0) {
                continue;
            }
            // Lanes without an entry turn by nothing, which leaves their bits.
            let mut tokens = [0.0; SLOTS];
            tokens[..delta.len()].copy_from_slice(delta);
            for (i, &frequency) in inv_freq[..half].iter().enumerate() {
                let (mut sin, mut cos) = ([0.0f32; SLOTS], [0.0f32; SLOTS]);
                for lane in 0..SLOTS {
                    (sin[lane], cos[lane]) =
                        sin_cos(f64::from(tokens[lane]) * f64::from(frequency));
                }
                // SAFETY: by the contract of the type; both rows of 32 lie in the page's keys.
                unsafe {
                    let low = self.key(pages, page * SLOTS).add(i * SLOTS);
                    let high = low.add(half * SLOTS);
                    for lane in (0..SLOTS).step_by(WIDTH) {
                        let (s, c) = (
                            L::load(sin.as_ptr().add(lane)),
                            L::load(cos.as_ptr().add(lane)),
                        );
                        let (x, y) = (T::load::<L>(low.add(lane)), T::load::<L>(high.add(lane)));
                        T::store(x.mul(c).sub(y.mul(s)), 1.0, low.add(lane));
                        T::store(y.mul(c).add(x.mul(s)), 1.0, high.add(lane));
                    }
                }
            }
        }
    }
}

/// Whether no page occurs twice, so that items may be worked on at the same time.
pub(crate) fn disjoint<'a>(tables: impl Iterator<Item = &'a [PageId]>) -> bool {
    let mut pages: Vec<PageId> = tables.flatten().copied().collect();
    pages.sort_unstable();
    pages.windows(2).all(|pair| pair[0] != pair[1])
}

/// Runs `task` for every item, in parallel unless items share pages (then in order, the later one
/// wins).
fn for_items(exec: Exec<'_>, items: usize, apart: bool, task: &(dyn Fn(usize) + Sync)) {
    if apart {
        exec.pool.run(items, task)
    } else {
        (0..items).for_each(task)
    }
}

/// See [`crate::Backend::compact`].
pub(crate) fn compact(
    exec: Exec<'_>,
    pages: &mut CpuPages,
    heads: &[HeadPages<'_>],
    kept: &KeptLists,
) -> Result<()> {
    let op = "compact";
    kept.check(op, heads)?;
    for head in heads {
        pages.check(op, head, head.len)?;
    }
    let apart = disjoint(
        heads
            .iter()
            .map(|head| &head.pages[..head.len.div_ceil(SLOTS)]),
    );
    let writer = pages.writer();
    for_items(exec, heads.len(), apart, &|i| {
        // SAFETY: tables were checked, lists are within them, and items run at the same time only
        // when they share no page.
        with_writer!(&writer, w => unsafe { w.compact(heads[i].pages, &kept.lists()[i]) });
    });
    heads
        .iter()
        .zip(kept.lists())
        .for_each(|(head, keep)| pages.notes.compact(head.pages, keep));
    Ok(())
}

/// One item of `rotate_keys`.
struct Rotate<'a, 'b> {
    writer: &'a PageWriter<'b>,
    item: &'a RotateItem<'a>,
    inv_freq: &'a [f32],
}

impl Kernel for Rotate<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self {
            writer,
            item,
            inv_freq,
        } = self;
        // SAFETY: `rotate_keys` checked the tables and runs items at the same time only when they
        // share no page.
        with_writer!(writer, w => unsafe { w.rotate::<L>(item.slots.pages, item.delta, inv_freq) });
    }
}

/// See [`crate::Backend::rotate_keys`]. The angle is a product in f64.
pub(crate) fn rotate_keys(
    exec: Exec<'_>,
    pages: &mut CpuPages,
    items: &[RotateItem<'_>],
    inv_freq: &[f32],
) -> Result<()> {
    let op = "rotate_keys";
    let want = pages.head_dim() / 2;
    if inv_freq.len() != want {
        return Err(Error::Shape {
            op,
            what: "inv_freq",
            got: inv_freq.len(),
            want,
        });
    }
    for item in items {
        pages.check(op, &item.slots, item.slots.len)?;
        if item.delta.len() != item.slots.len {
            return Err(Error::Shape {
                op,
                what: "delta",
                got: item.delta.len(),
                want: item.slots.len,
            });
        }
    }
    let apart = disjoint(
        items
            .iter()
            .map(|item| &item.slots.pages[..item.slots.len.div_ceil(SLOTS)]),
    );
    let writer = pages.writer();
    for_items(exec, items.len(), apart, &|i| {
        dispatch(
            exec.level,
            Rotate {
                writer: &writer,
                item: &items[i],
                inv_freq,
            },
        );
    });
    Ok(())
}

/// Arguments of `write_slots`, checked.
struct Write<'a> {
    writer: PageWriter<'a>,
    pages: &'a [PageId],
    first: usize,
    keys: &'a [f32],
    values: &'a [f32],
}

impl Kernel for Write<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        with_writer!(&self.writer, w => {
            for (i, (key, value)) in self.keys.chunks_exact(w.dim).zip(self.values.chunks_exact(w.dim)).enumerate() {
                // SAFETY: `write_slots` checked the table and holds the arena exclusively.
                unsafe { w.write::<L>(self.pages, self.first + i, key, value) };
            }
        });
    }
}

/// Arguments of `read_slots`, checked.
struct Read<'a> {
    pages: &'a CpuPages,
    table: &'a [PageId],
    slots: &'a [u32],
    keys: &'a mut [f32],
    values: &'a mut [f32],
}

impl Kernel for Read<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let dim = self.pages.head_dim();
        with_arena!(&self.pages.data, arena => {
            let rows = self.keys.chunks_exact_mut(dim).zip(self.values.chunks_exact_mut(dim));
            for (&slot, (key, value)) in self.slots.iter().zip(rows) {
                // SAFETY: `read_slots` checked the table.
                unsafe { read_slot::<_, L>(arena.start(), dim, self.table, slot as usize, (key, value)) };
            }
        });
    }
}

/// Reads one slot as f32, `D` values each.
///
/// # Safety
/// The slot's page is in the table and in the arena that begins at `start`; key and value have
/// `dim` values.
#[inline(always)]
unsafe fn read_slot<T: Element, L: Lanes>(
    start: *const T,
    dim: usize,
    table: &[PageId],
    slot: usize,
    (key, value): (&mut [f32], &mut [f32]),
) {
    // SAFETY: by the caller's contract; `dim` is a multiple of eight, so all vectors lie inside.
    unsafe {
        let keys = start.add(key_offset::<T>(dim, table, slot));
        let values = start.add(value_offset::<T>(dim, table, slot));
        let (mut key_scale, mut value_scale) = (1.0, 1.0);
        if T::SCALED {
            let scales = start.add(scale_offset::<T>(dim, table, slot)).cast::<u16>();
            key_scale = half::f16::from_bits(*scales).to_f32();
            value_scale = half::f16::from_bits(*scales.add(SLOTS)).to_f32();
        }
        for d in (0..dim).step_by(WIDTH) {
            T::load::<L>(values.add(d))
                .mul(L::splat(value_scale))
                .store(value.as_mut_ptr().add(d));
            let mut lanes = [T::default(); WIDTH];
            for (i, x) in lanes.iter_mut().enumerate() {
                *x = *keys.add((d + i) * SLOTS);
            }
            T::load::<L>(lanes.as_ptr())
                .mul(L::splat(key_scale))
                .store(key.as_mut_ptr().add(d));
        }
    }
}

/// See [`crate::Backend::write_slots`].
pub(crate) fn write_slots(
    exec: Exec<'_>,
    pages: &mut CpuPages,
    head: HeadPages<'_>,
    first: usize,
    (keys, values): (&[f32], &[f32]),
) -> Result<()> {
    let op = "write_slots";
    let dim = pages.head_dim();
    if !keys.len().is_multiple_of(dim) {
        return Err(Error::Multiple {
            op,
            what: "length of keys",
            got: keys.len(),
            multiple: dim,
        });
    }
    if values.len() != keys.len() {
        return Err(Error::Shape {
            op,
            what: "values",
            got: values.len(),
            want: keys.len(),
        });
    }
    let end = first.saturating_add(keys.len() / dim);
    pages.check(op, &head, end)?;
    let writer = pages.writer();
    dispatch(
        exec.level,
        Write {
            writer,
            pages: head.pages,
            first,
            keys,
            values,
        },
    );
    Ok(())
}

/// See [`crate::Backend::read_slots`].
pub(crate) fn read_slots(
    exec: Exec<'_>,
    pages: &CpuPages,
    head: HeadPages<'_>,
    slots: &[u32],
    (keys, values): (&mut [f32], &mut [f32]),
) -> Result<()> {
    let op = "read_slots";
    let want = slots.len() * pages.head_dim();
    for (what, got) in [("keys", keys.len()), ("values", values.len())] {
        if got != want {
            return Err(Error::Shape {
                op,
                what,
                got,
                want,
            });
        }
    }
    pages.check(op, &head, head.len)?;
    if let Some(&slot) = slots.iter().find(|&&slot| slot as usize >= head.len) {
        return Err(Error::Index {
            op,
            what: "slot",
            index: slot as usize,
            len: head.len,
        });
    }
    dispatch(
        exec.level,
        Read {
            pages,
            table: head.pages,
            slots,
            keys,
            values,
        },
    );
    Ok(())
}
