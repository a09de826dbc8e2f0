//! The cache: pages of slots on the device, and what writes, rotates and copies slots.

mod latent_heap;
mod latents;

pub(super) use latents::{LatentSize, LatentStore, MovedBytes};

use super::backend::{Buffer, CudaBackend};
use super::checks::{at_least, exactly, within};
use super::descriptors::{Descriptors, Items};
use super::device::Device;
use super::launch::kernels::{ReadSlots, RotateKeys, SplitQkv as SplitKernel, WriteSlots};
use super::launch::{Item, Kernel, NONE, Ptr, PtrMut, Slots, SlotsMut};
use super::stream::StreamMemory;
use crate::backend::{Cache, RotateItem, SplitQkv};
use crate::error::{Error, Result};
use crate::shapes::{HeadPages, PageShape};

/// Pages of keys `[32, D]` and values `[32, D]`, of 8-bit integers also their scales, `[32]` each.
pub struct Pages<D: Device> {
    memory: StreamMemory<D>,
    pub(super) shape: PageShape,
    count: usize,
    /// Value and position of every slot.
    notes: StreamMemory<D>,
    /// Latent memories of the sequences whose slots these are.
    pub(super) latents: LatentStore<D>,
}

impl<D: Device> Pages<D> {
    /// Checks that the page table of `head` covers `len` slots with pages of this arena.
    pub(super) fn check(&self, op: &'static str, head: &HeadPages<'_>, len: usize) -> Result<()> {
        let want = len.div_ceil(PageShape::SLOTS);
        at_least(op, "page table", head.pages.len(), want)?;
        if head.mark.is_known() && (head.mark.highest().0 as usize) < self.count {
            return Ok(());
        }
        head.pages[..want]
            .iter()
            .try_for_each(|page| within(op, "page", page.0 as usize, self.count))
    }

    /// The slots, for a kernel that reads them.
    pub(super) fn slots(&self) -> Slots {
        Slots {
            pages: Ptr::at(self.memory.address()),
            dtype: self.shape.dtype,
        }
    }

    /// The slots, for a kernel that writes them.
    pub(super) fn slots_mut(&mut self) -> SlotsMut {
        SlotsMut {
            pages: PtrMut::at(self.memory.address()),
            dtype: self.shape.dtype,
        }
    }

    /// Notes of the slots, for a kernel that reads them.
    pub(super) fn notes(&self) -> Ptr<[u32; 2]> {
        Ptr::at(self.notes.address())
    }

    /// Notes of the slots, for a kernel that writes them.
    pub(super) fn notes_mut(&mut self) -> PtrMut<[u32; 2]> {
        PtrMut::at(self.notes.address())
    }
}

impl<D: Device> Cache for CudaBackend<D> {
    type Pages = Pages<D>;

    fn alloc_pages(&self, shape: PageShape, count: usize) -> Result<Pages<D>> {
        if shape.head_dim == 0 || !shape.head_dim.is_multiple_of(8) {
            return Err(Error::Multiple {
                op: "alloc_pages",
                what: "head_dim",
                got: shape.head_dim,
                multiple: 8,
            });
        }
        let bytes = count.checked_mul(shape.bytes()).ok_or(Error::OutOfMemory {
            what: "pages",
            bytes: usize::MAX,
        })?;
        let memory = self.stream.alloc("pages", bytes)?;
        self.stream.reserve_tables(count)?;
        let note_bytes = count * PageShape::SLOTS * PageShape::NOTE_BYTES;
        Ok(Pages {
            memory,
            shape,
            count,
            notes: self.stream.alloc("notes", note_bytes)?,
            latents: LatentStore::default(),
        })
    }

    fn split_qkv(
        &self,
        args: SplitQkv<'_, Self>,
        pages: &mut Pages<D>,
        q: &mut Buffer<D>,
    ) -> Result<()> {
        check_split(&args, pages, q)?;
        let (shape, rows) = (args.shape, args.rows);
        let Destinations { mut items, owners } = destinations(&args, pages)?;

        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_step(&self.stream);
        let on_device = items.push(&mut descriptors, &self.stream);
        let owners = descriptors.push(&owners);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let norm = args.qk_norm;
        let kernel = SplitKernel {
            qkv: args.qkv.ptr(),
            cos: args.cos.ptr(),
            sin: args.sin.ptr(),
            q_norm: norm.map_or(Ptr::NULL, |norm| norm.query.ptr()),
            k_norm: norm.map_or(Ptr::NULL, |norm| norm.key.ptr()),
            eps: norm.map_or(0.0, |norm| norm.eps),
            items: on_device.items,
            owners,
            tables: on_device.tables,
            pages: pages.slots_mut(),
            q: q.ptr_mut(),
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            dim: shape.head_dim as u32,
        };
        self.launch(kernel.grid(rows, (shape.heads + shape.kv_heads).div_ceil(4)))
    }

    fn rotate_keys(
        &self,
        pages: &mut Pages<D>,
        items: &[RotateItem<'_>],
        inv_freq: &[f32],
    ) -> Result<()> {
        let (op, dim) = ("rotate_keys", pages.shape.head_dim);
        exactly(op, "inv_freq", inv_freq.len(), dim / 2)?;
        let mut all = Items::default();
        for RotateItem { slots, delta } in items {
            pages.check(op, slots, slots.len)?;
            exactly(op, "delta", delta.len(), slots.len)?;
            let table = all.table(slots, slots.len);
            all.items.push(Item {
                len: slots.len as u32,
                extra: all.floats.len() as u32,
                table,
                ..Item::padding()
            });
            all.floats.extend_from_slice(delta);
        }

        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_call(&self.stream);
        let on_device = all.push(&mut descriptors, &self.stream);
        let inv_freq = descriptors.push(inv_freq);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let kernel = RotateKeys {
            pages: pages.slots_mut(),
            items: on_device.items,
            tables: on_device.tables,
            deltas: on_device.floats,
            inv_freq,
            dim: dim as u32,
        };
        let launch = kernel.grid(all.most_slots().min(1024), all.items.len());
        self.launch(launch.with_shared(size_of::<f32>() * dim))
    }

    fn read_slots(
        &self,
        pages: &Pages<D>,
        head: HeadPages<'_>,
        slots: &[u32],
        keys: &mut [f32],
        values: &mut [f32],
    ) -> Result<()> {
        let (op, dim) = ("read_slots", pages.shape.head_dim);
        pages.check(op, &head, head.len)?;
        exactly(op, "keys", keys.len(), slots.len() * dim)?;
        exactly(op, "values", values.len(), slots.len() * dim)?;
        for &slot in slots {
            within(op, "slot", slot as usize, head.len)?;
        }
        if slots.is_empty() {
            return Ok(());
        }

        let mut all = Items::default();
        all.table(&head, head.len);
        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_call(&self.stream);
        let on_device = all.push(&mut descriptors, &self.stream);
        let list = descriptors.push(slots);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let bytes = size_of_val(keys);
        let out = self
            .stream
            .reserve(&mut work.scratch, "slots read", 2 * bytes)?;
        let kernel = ReadSlots {
            pages: pages.slots(),
            table: on_device.tables,
            slots: list,
            dim: dim as u32,
            keys: PtrMut::at(out),
            values: PtrMut::at(out + bytes as u64),
        };
        self.launch(kernel.blocks(slots.len()))?;
        let memory = work.scratch.memory()?;
        self.stream
            .download(memory, 0, bytemuck::cast_slice_mut(keys))?;
        self.stream
            .download(memory, bytes, bytemuck::cast_slice_mut(values))
    }

    fn write_slots(
        &self,
        pages: &mut Pages<D>,
        head: HeadPages<'_>,
        first: usize,
        keys: &[f32],
        values: &[f32],
    ) -> Result<()> {
        let (op, dim) = ("write_slots", pages.shape.head_dim);
        if !keys.len().is_multiple_of(dim) {
            return Err(Error::Multiple {
                op,
                what: "keys",
                got: keys.len(),
                multiple: dim,
            });
        }
        exactly(op, "values", values.len(), keys.len())?;
        let count = keys.len() / dim;
        pages.check(op, &head, first + count)?;

        let mut all = Items::default();
        all.table(&head, first + count);
        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_call(&self.stream);
        let on_device = all.push(&mut descriptors, &self.stream);
        let (keys, values) = (descriptors.push(keys), descriptors.push(values));
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let kernel = WriteSlots {
            pages: pages.slots_mut(),
            table: on_device.tables,
            first: first as u32,
            dim: dim as u32,
            keys,
            values,
        };
        self.launch(kernel.blocks(count))
    }

    fn save_slots(&self, pages: &Pages<D>, heads: &[HeadPages<'_>], out: &mut [u8]) -> Result<()> {
        self.save(pages, heads, out)
    }

    fn load_slots(&self, pages: &mut Pages<D>, heads: &[HeadPages<'_>], from: &[u8]) -> Result<()> {
        self.load(pages, heads, from)
    }
}

/// Checks the sizes of a split's arrays.
fn check_split<D: Device>(
    args: &SplitQkv<'_, CudaBackend<D>>,
    pages: &Pages<D>,
    q: &Buffer<D>,
) -> Result<()> {
    let (op, shape, rows) = ("split_qkv", args.shape, args.rows);
    let (dim, half) = (shape.head_dim, shape.head_dim / 2);
    exactly(op, "a head of the pages", pages.shape.head_dim, dim)?;
    at_least(op, "qkv", args.qkv.len, rows.saturating_mul(shape.width()))?;
    at_least(op, "cos", args.cos.len, rows.saturating_mul(half))?;
    at_least(op, "sin", args.sin.len, rows.saturating_mul(half))?;
    at_least(op, "q", q.len, rows.saturating_mul(shape.heads * dim))?;
    if let Some(norm) = args.qk_norm {
        exactly(op, "q norm", norm.query.len, dim)?;
        exactly(op, "k norm", norm.key.len, dim)?;
    }
    Ok(())
}

/// Where a split writes keys and values.
struct Destinations<'a> {
    items: Items<'a>,
    /// For each row and KV head the item that takes it, or [`NONE`].
    owners: Vec<u32>,
}

/// The destinations of a split, checked.
fn destinations<'a, D: Device>(
    args: &SplitQkv<'a, CudaBackend<D>>,
    pages: &Pages<D>,
) -> Result<Destinations<'a>> {
    let (op, kv_heads) = ("split_qkv", args.shape.kv_heads);
    let mut items = Items::default();
    let mut owners = vec![NONE; args.rows * kv_heads];
    for item in args.items {
        within(op, "KV head", item.kv_head, kv_heads)?;
        at_least(op, "rows", args.rows, item.rows.end)?;
        let slots = item.slots.len + item.rows.len();
        pages.check(op, &item.slots, slots)?;

        let index = items.items.len() as u32;
        for row in item.rows.clone() {
            owners[row * kv_heads + item.kv_head] = index;
        }
        let table = items.known_table(&item.slots, item.slots.len, slots);
        items.items.push(Item {
            len: table.skipped,
            table: table.index,
            ..Item::new(&item.rows, item.kv_head)
        });
    }
    Ok(Destinations { items, owners })
}
