//! Notes of slots, and scores by them and by keys, which stay on the device; see
//! `kernels/cu/score.cu`.

use bytemuck::Zeroable;

use super::items::{Item, Items, NONE};
use super::slots::Pages;
use super::{Arg, Buffer, CudaBackend, Device, Launch, Pack, at_least};
use crate::backend::HeadPages;
use crate::error::Result;
use crate::score::{NoteItem, ScoreItem, ScoreRule};

/// Threads of a block.
const THREADS: u32 = 256;

impl<D: Device> CudaBackend<D> {
    pub(super) fn write_notes(
        &self,
        pages: &Pages<D>,
        values: &Buffer<D>,
        width: usize,
        items: &[NoteItem<'_>],
    ) -> Result<()> {
        let (op, mut all) = ("note", Items::default());
        for item @ NoteItem {
            rows,
            kv_head,
            second,
            slots,
            position,
        } in items
        {
            item.check(op, width)?;
            at_least(op, "values", values.len, rows.end.saturating_mul(width))?;
            pages.check(op, slots, slots.len + rows.len())?;
            let (table, len) = all.known(slots, slots.len, slots.len + rows.len());
            let output = second.map_or(NONE, |column| column as u32);
            all.items.push(Item {
                len,
                table,
                extra: *position,
                output,
                ..Item::new(rows, *kv_head)
            });
        }
        let most = all.items.iter().map(|item| item.rows).max().unwrap_or(0);
        let mut work = self.work();
        let mut pack = Pack::of_step(&self.device);
        let packed = all.pack(&mut pack, &self.device);
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let (items, tables) = (arg(packed.items), arg(packed.tables));
        self.run(Launch {
            kernel: "note",
            grid: [most.div_ceil(64), packed.count, 1],
            threads: 64,
            shared: 0,
            args: &[
                values.arg(),
                Arg::U32(width as u32),
                items,
                tables,
                pages.notes(),
            ],
        })
    }

    pub(super) fn download_notes(&self, pages: &Pages<D>, head: HeadPages<'_>) -> Result<Vec<u32>> {
        pages.check("read_notes", &head, head.len)?;
        let mut notes = vec![0u32; head.len];
        if notes.is_empty() {
            return Ok(notes);
        }
        let mut all = Items::default();
        all.table(&head, head.len);
        let mut work = self.work();
        let mut pack = Pack::new();
        let packed = all.pack(&mut pack, &self.device);
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let to = work
            .scratch
            .address(&self.device, "notes read", 4 * head.len)?;
        self.run(Launch {
            kernel: "read_notes",
            grid: [head.len.div_ceil(THREADS as usize) as u32, 1, 1],
            threads: THREADS,
            shared: 0,
            args: &[
                pages.notes(),
                arg(packed.tables),
                Arg::U32(head.len as u32),
                Arg::Pointer(to),
            ],
        })?;
        self.device.download(
            work.scratch.memory()?,
            0,
            bytemuck::cast_slice_mut(&mut notes),
        )?;
        Ok(notes)
    }

    pub(super) fn score_slots(
        &self,
        pages: &Pages<D>,
        at: u32,
        items: &[ScoreItem<'_>],
        out: &Buffer<D>,
    ) -> Result<()> {
        let op = "score";
        at_least(
            op,
            "out",
            out.len,
            items.iter().map(|item| item.slots.len).sum(),
        )?;
        let (mut all, mut by_keys, mut rates, mut output) =
            (Items::default(), Vec::new(), Vec::new(), 0);
        for ScoreItem { slots, rule } in items {
            pages.check(op, slots, slots.len)?;
            let (len, table) = (slots.len as u32, all.table(slots, slots.len));
            let item = Item {
                len,
                table,
                output,
                ..Item::zeroed()
            };
            match *rule {
                ScoreRule::Fading { rate, scale } | ScoreRule::Either { rate, scale } => {
                    let flags = u32::from(matches!(rule, ScoreRule::Either { .. }));
                    all.items.push(Item {
                        extra: rates.len() as u32,
                        flags,
                        ..item
                    });
                    rates.push([rate, scale]);
                }
                ScoreRule::KeyNorm => by_keys.push(item),
                ScoreRule::KeyDirection => by_keys.push(Item { flags: 1, ..item }),
            }
            output += len;
        }
        let longest = all.items.iter().map(|item| item.len).max().unwrap_or(0);
        let mut work = self.work();
        let mut pack = Pack::new();
        let packed = all.pack(&mut pack, &self.device);
        let (rates, keyed) = (pack.push(&rates), pack.push(&by_keys));
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let (items, tables, dim) = (arg(packed.items), arg(packed.tables), pages.shape.head_dim);
        self.run(Launch {
            kernel: "score_notes",
            grid: [longest.div_ceil(THREADS), all.items.len() as u32, 1],
            threads: THREADS,
            shared: 0,
            args: &[
                pages.notes(),
                items,
                tables,
                arg(rates),
                Arg::U32(at),
                out.arg(),
            ],
        })?;
        self.run(Launch {
            kernel: pages.kernel(["score_keys_q8", "score_keys_f16", "score_keys_f32"]),
            grid: [by_keys.len() as u32, 1, 1],
            threads: THREADS,
            shared: 4 * dim as u32,
            args: &[
                pages.arg(),
                arg(keyed),
                tables,
                Arg::U32(dim as u32),
                out.arg(),
            ],
        })
    }
}
