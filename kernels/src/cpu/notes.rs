//! Notes of slots, and scores by them and by keys.

use std::sync::Mutex;

use super::elementwise::at_least;
use super::pages::{CpuPages, Exec, SLOTS, read_slots};
use crate::backend::{HeadPages, PageId};
use crate::error::Result;
use crate::score::{
    NoteItem, ScoreItem, ScoreRule, either, fading, key_direction, key_norm, note_of_two,
};

/// Note and position of every slot of an arena: slot `s` of page `p` at `p * 32 + s`.
pub(crate) struct Notes(Vec<[u32; 2]>);

impl Notes {
    /// Zeroed by the operating system, as pages are.
    pub(crate) fn zeroed(pages: usize) -> Self {
        Self(vec![[0; 2]; pages * SLOTS])
    }

    fn at(table: &[PageId], slot: usize) -> usize {
        table[slot / SLOTS].0 as usize * SLOTS + slot % SLOTS
    }

    fn get(&self, table: &[PageId], slot: usize) -> (u32, u32) {
        let [note, position] = self.0[Self::at(table, slot)];
        (note, position)
    }

    /// Moves the notes of slots `keep` to the front.
    pub(crate) fn compact(&mut self, table: &[PageId], keep: &[u32]) {
        for (to, &from) in keep
            .iter()
            .enumerate()
            .skip_while(|&(to, &from)| to == from as usize)
        {
            self.0[Self::at(table, to)] = self.0[Self::at(table, from as usize)];
        }
    }
}

/// See [`crate::Backend::note`].
pub(crate) fn note(
    pages: &mut CpuPages,
    values: &[f32],
    width: usize,
    items: &[NoteItem<'_>],
) -> Result<()> {
    let op = "note";
    for item in items {
        item.check(op, width)?;
        at_least(
            op,
            "values",
            values.len(),
            item.rows.end.saturating_mul(width),
        )?;
        pages.check(op, &item.slots, item.slots.len + item.rows.len())?;
    }
    let notes = pages.notes_mut();
    for NoteItem {
        rows,
        kv_head,
        second,
        slots,
        position,
    } in items
    {
        for (i, row) in rows.clone().enumerate() {
            let first = values[row * width + kv_head];
            let note = second.map_or(first.to_bits(), |second| {
                note_of_two(first, values[row * width + second])
            });
            notes.0[Notes::at(slots.pages, slots.len + i)] = [note, position + i as u32];
        }
    }
    Ok(())
}

/// See [`crate::Backend::read_notes`].
pub(crate) fn read_notes(pages: &CpuPages, head: HeadPages<'_>) -> Result<Vec<u32>> {
    pages.check("read_notes", &head, head.len)?;
    Ok((0..head.len)
        .map(|slot| pages.notes().get(head.pages, slot).0)
        .collect())
}

/// See [`crate::Backend::score`].
pub(crate) fn score(
    exec: Exec<'_>,
    pages: &CpuPages,
    at: u32,
    items: &[ScoreItem<'_>],
    out: &mut [f32],
) -> Result<()> {
    let (op, dim) = ("score", pages.head_dim());
    let want = items.iter().map(|item| item.slots.len).sum();
    at_least(op, "out", out.len(), want)?;
    items
        .iter()
        .try_for_each(|item| pages.check(op, &item.slots, item.slots.len))?;
    let (mut rest, mut tasks) = (out, Vec::with_capacity(items.len()));
    for item in items {
        let (own, others) = rest.split_at_mut(item.slots.len);
        rest = others;
        tasks.push(Mutex::new(own));
    }
    exec.run(tasks.len(), want * dim, &|index| {
        let ScoreItem { slots, rule } = items[index];
        let mut scores = tasks[index].lock().expect("no task panics");
        let notes = (0..slots.len).map(|slot| pages.notes().get(slots.pages, slot));
        match rule {
            ScoreRule::Fading { rate, scale } => {
                return fading((rate, scale), at, notes, &mut scores);
            }
            ScoreRule::Either { rate, scale } => {
                return either((rate, scale), at, notes, &mut scores);
            }
            ScoreRule::KeyNorm | ScoreRule::KeyDirection => {}
        }
        let all: Vec<u32> = (0..slots.len as u32).collect();
        let (mut keys, mut values) = (vec![0.0; slots.len * dim], vec![0.0; slots.len * dim]);
        read_slots(exec, pages, slots, &all, (&mut keys, &mut values))
            .expect("slots of a table that was checked");
        match rule {
            ScoreRule::KeyNorm => key_norm(&keys, dim, &mut scores),
            _ => key_direction(&keys, dim, &mut scores),
        }
    });
    Ok(())
}
