//! The slot arena on the device and everything that writes, moves, rotates or copies slots.

use super::items::{Item, Items, NONE};
use super::memory::Latent;
use super::room::Room;
use super::{Arg, Buffer, CudaBackend, Device, Held, Launch, Pack, at_least, exactly};
use crate::backend::{HeadPages, KvType, PageShape, RotateItem, SplitQkv};
use crate::error::{Error, Result};
use crate::latent::Latents;

/// Pages of keys `[32, D]` and values `[32, D]`, of 8-bit integers also their scales, `[32]` each.
pub struct Pages<D: Device> {
    pub(super) memory: Held<D>,
    pub(super) shape: PageShape,
    count: usize,
    /// Value and position of every slot.
    notes: Held<D>,
    pub(super) latents: Latents<Latent<D>>,
    /// Where they lie, once room was reserved.
    pub(super) room: Option<Room<D>>,
}

impl<D: Device> Pages<D> {
    /// Checks that the page table of `head` covers `len` slots with pages of this arena.
    pub(super) fn check(&self, op: &'static str, head: &HeadPages<'_>, len: usize) -> Result<()> {
        let want = len.div_ceil(PageShape::SLOTS);
        at_least(op, "page table", head.pages.len(), want)?;
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

    pub(super) fn arg(&self) -> Arg {
        Arg::Pointer(self.memory.address())
    }

    /// Notes of the slots.
    pub(super) fn notes(&self) -> Arg {
        Arg::Pointer(self.notes.address())
    }

    /// The kernel of this arena's element type.
    pub(super) fn kernel(&self, [q8, f16, f32]: [&'static str; 3]) -> &'static str {
        match self.shape.dtype {
            KvType::Q8 => q8,
            KvType::F16 => f16,
            KvType::F32 => f32,
        }
    }
}

impl<D: Device> CudaBackend<D> {
    pub(super) fn new_pages(&self, shape: PageShape, count: usize) -> Result<Pages<D>> {
        if shape.head_dim == 0 || !shape.head_dim.is_multiple_of(8) {
            return Err(Error::Multiple {
                op: "alloc_pages",
                what: "head_dim",
                got: shape.head_dim,
                multiple: 8,
            });
        }
        let bytes = count.checked_mul(shape.bytes());
        let bytes = bytes.ok_or(Error::OutOfMemory {
            what: "pages",
            bytes: usize::MAX,
        })?;
        let memory = self.device.alloc("pages", bytes)?;
        self.device.reserve_tables(count)?;
        let notes = self
            .device
            .alloc("notes", count * PageShape::SLOTS * PageShape::NOTE_BYTES)?;
        Ok(Pages {
            memory,
            shape,
            count,
            notes,
            latents: Latents::default(),
            room: None,
        })
    }

    pub(super) fn split(
        &self,
        args: SplitQkv<'_, Self>,
        pages: &Pages<D>,
        q: &Buffer<D>,
    ) -> Result<()> {
        let (
            op,
            SplitQkv {
                shape,
                qkv,
                rows,
                cos,
                sin,
                qk_norm,
                items,
            },
        ) = ("split_qkv", args);
        let half = shape.head_dim / 2;
        exactly(
            op,
            "a head of the pages",
            pages.shape.head_dim,
            shape.head_dim,
        )?;
        at_least(op, "qkv", qkv.len, rows.saturating_mul(shape.width()))?;
        at_least(op, "cos", cos.len, rows.saturating_mul(half))?;
        at_least(op, "sin", sin.len, rows.saturating_mul(half))?;
        at_least(
            op,
            "q",
            q.len,
            rows.saturating_mul(shape.heads * shape.head_dim),
        )?;
        for (weight, what) in qk_norm
            .iter()
            .flat_map(|norm| [(norm.query, "q norm"), (norm.key, "k norm")])
        {
            exactly(op, what, weight.len, shape.head_dim)?;
        }
        let mut all = Items::default();
        let mut owners = vec![NONE; rows * shape.kv_heads];
        for item in items {
            if item.kv_head >= shape.kv_heads {
                return Err(Error::Index {
                    op,
                    what: "KV head",
                    index: item.kv_head,
                    len: shape.kv_heads,
                });
            }
            at_least(op, "rows", rows, item.rows.end)?;
            let len = item.slots.len + item.rows.len();
            pages.check(op, &item.slots, len)?;
            let index = all.items.len() as u32;
            item.rows
                .clone()
                .for_each(|row| owners[row * shape.kv_heads + item.kv_head] = index);
            let (table, len) = all.known(&item.slots, item.slots.len, len);
            all.items.push(Item {
                len,
                table,
                ..Item::new(&item.rows, item.kv_head)
            });
        }
        let mut work = self.work();
        let mut pack = Pack::of_step(&self.device);
        let (packed, owners) = (all.pack(&mut pack, &self.device), pack.push(&owners));
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let (q_norm, k_norm, eps) = qk_norm
            .map_or((Arg::Pointer(0), Arg::Pointer(0), 0.0), |norm| {
                (norm.query.arg(), norm.key.arg(), norm.eps)
            });
        let [heads, kv_heads, dim] =
            [shape.heads, shape.kv_heads, shape.head_dim].map(|n| Arg::U32(n as u32));
        let (items, tables) = (arg(packed.items), arg(packed.tables));
        self.run(Launch {
            kernel: pages.kernel(["split_qkv_q8", "split_qkv_f16", "split_qkv_f32"]),
            grid: [
                rows as u32,
                (shape.heads + shape.kv_heads).div_ceil(4) as u32,
                1,
            ],
            threads: 128,
            shared: 0,
            args: &[
                qkv.arg(),
                cos.arg(),
                sin.arg(),
                q_norm,
                k_norm,
                Arg::F32(eps),
                items,
                arg(owners),
                tables,
                pages.arg(),
                q.arg(),
                heads,
                kv_heads,
                dim,
            ],
        })
    }

    pub(super) fn rotate(
        &self,
        pages: &Pages<D>,
        items: &[RotateItem<'_>],
        inv_freq: &[f32],
    ) -> Result<()> {
        let op = "rotate_keys";
        exactly(op, "inv_freq", inv_freq.len(), pages.shape.head_dim / 2)?;
        let mut all = Items::default();
        for RotateItem { slots, delta } in items {
            pages.check(op, slots, slots.len)?;
            exactly(op, "delta", delta.len(), slots.len)?;
            let (extra, table) = (all.floats.len() as u32, all.table(slots, slots.len));
            all.floats.extend_from_slice(delta);
            all.items.push(Item {
                len: slots.len as u32,
                table,
                extra,
                ..Item::new(&(0..0), 0)
            });
        }
        let mut work = self.work();
        let mut pack = Pack::new();
        let (packed, inv_freq) = (all.pack(&mut pack, &self.device), pack.push(inv_freq));
        let longest = all.items.iter().map(|item| item.len).max().unwrap_or(0);
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let (items, tables, deltas) = (arg(packed.items), arg(packed.tables), arg(packed.floats));
        let dim = Arg::U32(pages.shape.head_dim as u32);
        self.run(Launch {
            kernel: pages.kernel(["rotate_keys_q8", "rotate_keys_f16", "rotate_keys_f32"]),
            grid: [longest.min(1024), all.items.len() as u32, 1],
            threads: 64,
            shared: 4 * pages.shape.head_dim as u32,
            args: &[pages.arg(), items, tables, deltas, arg(inv_freq), dim],
        })
    }

    pub(super) fn read(
        &self,
        pages: &Pages<D>,
        head: HeadPages<'_>,
        slots: &[u32],
        (keys, values): (&mut [f32], &mut [f32]),
    ) -> Result<()> {
        let (op, dim) = ("read_slots", pages.shape.head_dim);
        pages.check(op, &head, head.len)?;
        exactly(op, "keys", keys.len(), slots.len() * dim)?;
        exactly(op, "values", values.len(), slots.len() * dim)?;
        if let Some(&slot) = slots.iter().find(|&&slot| slot as usize >= head.len) {
            return Err(Error::Index {
                op,
                what: "slot",
                index: slot as usize,
                len: head.len,
            });
        }
        if slots.is_empty() {
            return Ok(());
        }
        let mut all = Items::default();
        all.table(&head, head.len);
        let mut work = self.work();
        let mut pack = Pack::new();
        let (packed, list) = (all.pack(&mut pack, &self.device), pack.push(slots));
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let bytes = size_of_val(keys);
        let out = work
            .scratch
            .address(&self.device, "slots read", 2 * bytes)?;
        let (to_keys, to_values) = (Arg::Pointer(out), Arg::Pointer(out + bytes as u64));
        self.run(Launch {
            kernel: pages.kernel(["read_slots_q8", "read_slots_f16", "read_slots_f32"]),
            grid: [slots.len() as u32, 1, 1],
            threads: 64,
            shared: 0,
            args: &[
                pages.arg(),
                arg(packed.tables),
                arg(list),
                Arg::U32(dim as u32),
                to_keys,
                to_values,
            ],
        })?;
        let memory = work.scratch.memory()?;
        self.device
            .download(memory, 0, bytemuck::cast_slice_mut(keys))?;
        self.device
            .download(memory, bytes, bytemuck::cast_slice_mut(values))
    }

    pub(super) fn write(
        &self,
        pages: &Pages<D>,
        head: HeadPages<'_>,
        first: usize,
        (keys, values): (&[f32], &[f32]),
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
        let mut work = self.work();
        let mut pack = Pack::new();
        let (packed, keys, values) = (
            all.pack(&mut pack, &self.device),
            pack.push(keys),
            pack.push(values),
        );
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let (first, dim) = (Arg::U32(first as u32), Arg::U32(dim as u32));
        self.run(Launch {
            kernel: pages.kernel(["write_slots_q8", "write_slots_f16", "write_slots_f32"]),
            grid: [count as u32, 1, 1],
            threads: 64,
            shared: 0,
            args: &[
                pages.arg(),
                arg(packed.tables),
                first,
                dim,
                arg(keys),
                arg(values),
            ],
        })
    }
}
