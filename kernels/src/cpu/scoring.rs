//! Notes of new slots, and the scores of slots by notes and by keys.

use std::sync::Mutex;

use super::exec::Exec;
use super::pages::CpuPages;
use super::slots::read_slots;
use crate::backend::HeadPages;
use crate::error::{Result, at_least};
use crate::score::{
    NoteItem, ScoreItem, ScoreRule, check_notes, either, fading, key_direction, key_norm,
    note_of_two,
};

/// See [`Scoring::note`](crate::backend::Scoring::note).
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
            notes.set(slots.pages, slots.len + i, note, position + i as u32);
        }
    }
    Ok(())
}

/// See [`Scoring::read_notes`](crate::backend::Scoring::read_notes).
pub(crate) fn read_notes(pages: &CpuPages, head: HeadPages<'_>) -> Result<Vec<u32>> {
    pages.check("read_notes", &head, head.len)?;
    Ok((0..head.len)
        .map(|slot| pages.notes().get(head.pages, slot).note)
        .collect())
}

/// See [`Scoring::write_notes`](crate::backend::Scoring::write_notes).
pub(crate) fn write_notes(
    pages: &mut CpuPages,
    head: HeadPages<'_>,
    notes: &[u32],
    positions: &[u32],
) -> Result<()> {
    check_notes(head, notes, positions)?;
    pages.check("write_notes", &head, head.len)?;
    let all = pages.notes_mut();
    for (slot, (&note, &position)) in notes.iter().zip(positions).enumerate() {
        all.set(head.pages, slot, note, position);
    }
    Ok(())
}

/// See [`Scoring::score`](crate::backend::Scoring::score).
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
                return fading(rate, scale, at, notes, &mut scores);
            }
            ScoreRule::Either { rate, scale } => {
                return either(rate, scale, at, notes, &mut scores);
            }
            ScoreRule::KeyNorm | ScoreRule::KeyDirection => {}
        }
        let all: Vec<u32> = (0..slots.len as u32).collect();
        let (mut keys, mut values) = (vec![0.0; slots.len * dim], vec![0.0; slots.len * dim]);
        read_slots(exec, pages, slots, &all, &mut keys, &mut values)
            .expect("slots of a table that was checked");
        match rule {
            ScoreRule::KeyNorm => key_norm(&keys, dim, &mut scores),
            _ => key_direction(&keys, dim, &mut scores),
        }
    });
    Ok(())
}
