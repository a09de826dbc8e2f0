//! Notes and scores by their definitions, in f64.

use super::cache::ReferencePages;
use super::device::ReferenceBackend;
use crate::backend::{HeadPages, Scoring};
use crate::error::{Result, at_least};
use crate::score::{NoteItem, ScoreItem, ScoreRule, check_notes};

fn note(
    pages: &mut ReferencePages,
    values: &[f32],
    width: usize,
    items: &[NoteItem<'_>],
) -> Result<()> {
    let op = "note";
    for item @ NoteItem {
        rows,
        kv_head,
        second,
        slots,
        position,
    } in items
    {
        item.check(op, width)?;
        for (i, row) in rows.clone().enumerate() {
            let entry = pages.entry(op, slots.pages, slots.len + i)?;
            let value = |column: usize| values[row * width + column];
            let half = |column: usize| u32::from(half::f16::from_f32(value(column)).to_bits());
            let note = second.map_or(value(*kv_head).to_bits(), |second| {
                half(second) << 16 | half(*kv_head)
            });
            pages.notes[entry] = (note, position + i as u32);
        }
    }
    Ok(())
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn score(pages: &ReferencePages, at: u32, items: &[ScoreItem<'_>], out: &mut [f32]) -> Result<()> {
    let mut scores = Vec::new();
    for ScoreItem { slots, rule } in items {
        let entry = |slot| pages.entry("score", slots.pages, slot);
        let entries: Vec<usize> = (0..slots.len).map(entry).collect::<Result<_>>()?;
        let keys: Vec<Vec<f64>> = entries
            .iter()
            .map(|&entry| pages.keys[entry].iter().map(|&k| f64::from(k)).collect())
            .collect();
        match *rule {
            ScoreRule::Fading { rate, scale } => scores.extend(entries.iter().map(|&entry| {
                let (note, position) = pages.notes[entry];
                let age = f64::from(at.saturating_sub(position));
                (f64::from(f32::from_bits(note))
                    + f64::from(rate) * (age / f64::from(scale)).ln_1p()) as f32
            })),
            ScoreRule::Either { rate, scale } => scores.extend(entries.iter().map(|&entry| {
                let (note, position) = pages.notes[entry];
                let half = |bits: u32| half::f16::from_bits((bits & 0xffff) as u16).to_f64();
                let faded = half(note >> 16)
                    + f64::from(rate) * f64::from(at.saturating_sub(position)) / f64::from(scale);
                half(note).max(faded) as f32
            })),
            ScoreRule::KeyNorm => scores.extend(keys.iter().map(|key| -norm(key) as f32)),
            ScoreRule::KeyDirection => {
                let mean = |d: usize| {
                    keys.iter().map(|key| key[d] / norm(key)).sum::<f64>() / keys.len() as f64
                };
                let mean: Vec<f64> = (0..pages.shape.head_dim).map(mean).collect();
                let dot = |key: &[f64]| key.iter().zip(&mean).map(|(k, m)| k * m).sum::<f64>();
                scores.extend(
                    keys.iter()
                        .map(|key| (-dot(key) / (norm(key) * norm(&mean))) as f32),
                );
            }
        }
    }
    at_least("score", "out", out.len(), scores.len())?;
    out[..scores.len()].copy_from_slice(&scores);
    Ok(())
}

impl Scoring for ReferenceBackend {
    fn note(
        &self,
        pages: &mut ReferencePages,
        values: &Vec<f32>,
        width: usize,
        items: &[NoteItem<'_>],
    ) -> Result<()> {
        note(pages, values, width, items)
    }

    fn read_notes(&self, pages: &ReferencePages, head: HeadPages<'_>) -> Result<Vec<u32>> {
        let note = |slot| Ok(pages.notes[pages.entry("read_notes", head.pages, slot)?].0);
        (0..head.len).map(note).collect()
    }

    fn write_notes(
        &self,
        pages: &mut ReferencePages,
        head: HeadPages<'_>,
        notes: &[u32],
        positions: &[u32],
    ) -> Result<()> {
        check_notes(head, notes, positions)?;
        for slot in 0..head.len {
            let entry = pages.entry("write_notes", head.pages, slot)?;
            pages.notes[entry] = (notes[slot], positions[slot]);
        }
        Ok(())
    }

    fn score(
        &self,
        pages: &ReferencePages,
        at: u32,
        items: &[ScoreItem<'_>],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        score(pages, at, items, out)
    }
}
