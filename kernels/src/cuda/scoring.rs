//! Notes of slots, and scores by them and by keys, which stay on the device.
//!
//! See `kernels/cu/score.cu`.

use bytemuck::Zeroable;

use super::backend::{Buffer, CudaBackend};
use super::cache::Pages;
use super::checks::at_least;
use super::descriptors::{Descriptors, Items};
use super::device::Device;
use super::launch::kernels::{Note, ReadNotes, ScoreKeys, ScoreNotes, WriteNotes};
use super::launch::{Item, Kernel, NONE, PtrMut};
use crate::backend::Scoring;
use crate::error::Result;
use crate::score::{NoteItem, ScoreItem, ScoreRule, check_notes};
use crate::shapes::HeadPages;

/// Slots of a block.
const BLOCK: usize = 256;

impl<D: Device> Scoring for CudaBackend<D> {
    fn note(
        &self,
        pages: &mut Pages<D>,
        values: &Buffer<D>,
        width: usize,
        items: &[NoteItem<'_>],
    ) -> Result<()> {
        let (op, mut all) = ("note", Items::default());
        for item in items {
            let (rows, slots) = (&item.rows, &item.slots);
            item.check(op, width)?;
            at_least(op, "values", values.len, rows.end.saturating_mul(width))?;
            pages.check(op, slots, slots.len + rows.len())?;
            let table = all.known_table(slots, slots.len, slots.len + rows.len());
            all.items.push(Item {
                len: table.skipped,
                table: table.index,
                extra: item.position,
                output: item.second.map_or(NONE, |column| column as u32),
                ..Item::new(rows, item.kv_head)
            });
        }

        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_step(&self.stream);
        let on_device = all.push(&mut descriptors, &self.stream);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let kernel = Note {
            values: values.ptr(),
            width: width as u32,
            items: on_device.items,
            tables: on_device.tables,
            notes: pages.notes_mut(),
        };
        self.launch(kernel.grid(all.most_rows().div_ceil(64), on_device.count))
    }

    fn read_notes(&self, pages: &Pages<D>, head: HeadPages<'_>) -> Result<Vec<u32>> {
        pages.check("read_notes", &head, head.len)?;
        let mut notes = vec![0u32; head.len];
        if notes.is_empty() {
            return Ok(notes);
        }

        let mut all = Items::default();
        all.table(&head, head.len);
        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_call(&self.stream);
        let on_device = all.push(&mut descriptors, &self.stream);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let values = self
            .stream
            .reserve(&mut work.scratch, "notes read", 4 * head.len)?;
        let kernel = ReadNotes {
            notes: pages.notes(),
            table: on_device.tables,
            len: head.len as u32,
            values: PtrMut::at(values),
        };
        self.launch(kernel.blocks(head.len.div_ceil(BLOCK)))?;
        let bytes = bytemuck::cast_slice_mut(&mut notes);
        self.stream.download(work.scratch.memory()?, 0, bytes)?;
        Ok(notes)
    }

    fn write_notes(
        &self,
        pages: &mut Pages<D>,
        head: HeadPages<'_>,
        notes: &[u32],
        positions: &[u32],
    ) -> Result<()> {
        check_notes(head, notes, positions)?;
        pages.check("write_notes", &head, head.len)?;
        let mut all = Items::default();
        all.table(&head, head.len);
        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_call(&self.stream);
        let on_device = all.push(&mut descriptors, &self.stream);
        let (values, positions) = (descriptors.push(notes), descriptors.push(positions));
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let kernel = WriteNotes {
            notes: pages.notes_mut(),
            table: on_device.tables,
            len: head.len as u32,
            values,
            positions,
        };
        self.launch(kernel.blocks(head.len.div_ceil(BLOCK)))
    }

    fn score(
        &self,
        pages: &Pages<D>,
        at: u32,
        items: &[ScoreItem<'_>],
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let slots = items.iter().map(|item| item.slots.len).sum();
        at_least("score", "out", out.len, slots)?;
        let Scored {
            mut by_notes,
            rates,
            by_keys,
        } = scored(pages, items)?;

        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_call(&self.stream);
        let on_device = by_notes.push(&mut descriptors, &self.stream);
        let (rates, keyed) = (descriptors.push(&rates), descriptors.push(&by_keys));
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let score_notes = ScoreNotes {
            notes: pages.notes(),
            items: on_device.items,
            tables: on_device.tables,
            rates,
            at,
            scores: out.ptr_mut(),
        };
        let blocks = by_notes.most_slots().div_ceil(BLOCK);
        self.launch(score_notes.grid(blocks, by_notes.items.len()))?;
        let dim = pages.shape.head_dim;
        let score_keys = ScoreKeys {
            pages: pages.slots(),
            items: keyed,
            tables: on_device.tables,
            dim: dim as u32,
            scores: out.ptr_mut(),
        };
        self.launch(score_keys.blocks(by_keys.len()).with_shared(4 * dim))
    }
}

/// Heads whose slots are scored.
struct Scored<'a> {
    /// Those scored by notes, and the page tables of all.
    by_notes: Items<'a>,
    /// Rate and scale of each of those.
    rates: Vec<[f32; 2]>,
    /// Those scored by keys.
    by_keys: Vec<Item>,
}

/// Parts items by their rules, after checking them.
fn scored<'a, D: Device>(pages: &Pages<D>, items: &[ScoreItem<'a>]) -> Result<Scored<'a>> {
    let mut scored = Scored {
        by_notes: Items::default(),
        rates: Vec::new(),
        by_keys: Vec::new(),
    };
    let mut output = 0;
    for ScoreItem { slots, rule } in items {
        pages.check("score", slots, slots.len)?;
        let item = Item {
            len: slots.len as u32,
            table: scored.by_notes.table(slots, slots.len),
            output,
            ..Item::zeroed()
        };
        match *rule {
            ScoreRule::Fading { rate, scale } | ScoreRule::Either { rate, scale } => {
                scored.by_notes.items.push(Item {
                    extra: scored.rates.len() as u32,
                    flags: u32::from(matches!(rule, ScoreRule::Either { .. })),
                    ..item
                });
                scored.rates.push([rate, scale]);
            }
            ScoreRule::KeyNorm => scored.by_keys.push(item),
            ScoreRule::KeyDirection => scored.by_keys.push(Item { flags: 1, ..item }),
        }
        output += item.len;
    }
    Ok(scored)
}
