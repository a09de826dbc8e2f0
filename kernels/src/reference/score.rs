//! Notes and scores by their definitions, in f64.

use super::ReferencePages;
use crate::error::{Error, Result};
use crate::score::{NoteItem, ScoreItem, ScoreRule};

pub(super) fn note(pages: &mut ReferencePages, values: &[f32], width: usize, items: &[NoteItem<'_>]) -> Result<()> {
    let op = "note";
    for NoteItem { rows, kv_head, slots, position } in items {
        if *kv_head >= width {
            return Err(Error::Index { op, what: "KV head", index: *kv_head, len: width });
        }
        for (i, row) in rows.clone().enumerate() {
            let entry = pages.entry(op, slots.pages, slots.len + i)?;
            pages.notes[entry] = (values[row * width + kv_head], position + i as u32);
        }
    }
    Ok(())
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

pub(super) fn score(pages: &ReferencePages, at: u32, items: &[ScoreItem<'_>], out: &mut [f32]) -> Result<()> {
    let mut scores = Vec::new();
    for ScoreItem { slots, rule } in items {
        let entry = |slot| pages.entry("score", slots.pages, slot);
        let entries: Vec<usize> = (0..slots.len).map(entry).collect::<Result<_>>()?;
        let keys: Vec<Vec<f64>> =
            entries.iter().map(|&entry| pages.keys[entry].iter().map(|&k| f64::from(k)).collect()).collect();
        match *rule {
            ScoreRule::Fading { rate, scale } => scores.extend(entries.iter().map(|&entry| {
                let (note, position) = pages.notes[entry];
                let age = f64::from(at.saturating_sub(position));
                (f64::from(note) + f64::from(rate) * (age / f64::from(scale)).ln_1p()) as f32
            })),
            ScoreRule::KeyNorm => scores.extend(keys.iter().map(|key| -norm(key) as f32)),
            ScoreRule::KeyDirection => {
                let mean = |d: usize| keys.iter().map(|key| key[d] / norm(key)).sum::<f64>() / keys.len() as f64;
                let mean: Vec<f64> = (0..pages.shape.head_dim).map(mean).collect();
                let dot = |key: &[f64]| key.iter().zip(&mean).map(|(k, m)| k * m).sum::<f64>();
                scores.extend(keys.iter().map(|key| (-dot(key) / (norm(key) * norm(&mean))) as f32));
            }
        }
    }
    super::at_least("score", "out", out.len(), scores.len())?;
    out[..scores.len()].copy_from_slice(&scores);
    Ok(())
}
