//! What a slot is worth by what lies with it on the device: the scores that
//! `Boundary::select` ranks by, and how the CPU computes them.
//!
//! A *note* is what a policy keeps with a slot, beside the slot's absolute position: 32 bits that
//! hold one f32, or two f16. It moves with the slot when the head is compacted. All sums run from
//! the first on, in f32; the CUDA kernels (`kernels/cu/score.cu`) add alike.

use std::ops::Range;

use half::f16;

use crate::error::{Error, Result};
use crate::shapes::HeadPages;

/// How the slots of a head are scored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ScoreRule {
    /// `note + rate * ln(1 + age / scale)`, where age is the distance from the slot's position to
    /// the last one read; the note alone without a rate.
    Fading {
        /// At most 0.
        rate: f32,
        /// Tokens, above 0.
        scale: f32,
    },
    /// `max(first, second + rate * age / scale)` of notes of two numbers: worth as much as the
    /// better of two reasons to keep it, of which one passes.
    Either {
        /// At most 0.
        rate: f32,
        /// Tokens, above 0.
        scale: f32,
    },
    /// `-|k|` (arXiv 2406.11430).
    KeyNorm,
    /// Negative cosine to the mean direction of the head's keys (KeyDiff, arXiv 2504.15364); norms
    /// are at least 1e-12.
    KeyDirection,
}

/// One KV head whose slots are scored.
#[derive(Debug, Clone, Copy)]
pub struct ScoreItem<'a> {
    /// Its slots.
    pub slots: HeadPages<'a>,
    /// By what.
    pub rule: ScoreRule,
}

/// Notes of new slots of one KV head of one sequence.
#[derive(Debug, Clone)]
pub struct NoteItem<'a> {
    /// Token rows of this sequence in the step.
    pub rows: Range<usize>,
    /// KV head of this rank: the column of the notes.
    pub kv_head: usize,
    /// Column of a second number, for notes of two.
    pub second: Option<usize>,
    /// The head's slots; row `rows.start + i` belongs to slot `slots.len + i`.
    pub slots: HeadPages<'a>,
    /// Absolute position of the first row; the others follow.
    pub position: u32,
}

impl NoteItem<'_> {
    /// Checks that its columns are among `width`.
    pub(crate) fn check(&self, op: &'static str, width: usize) -> Result<()> {
        match [Some(self.kv_head), self.second]
            .into_iter()
            .flatten()
            .find(|&column| column >= width)
        {
            Some(index) => Err(Error::Index {
                op,
                what: "column of notes",
                index,
                len: width,
            }),
            None => Ok(()),
        }
    }
}

/// Checks that `Scoring::write_notes` has a note and a position for each slot of a head.
pub(crate) fn check_notes(head: HeadPages<'_>, notes: &[u32], positions: &[u32]) -> Result<()> {
    for (what, got) in [("notes", notes.len()), ("positions", positions.len())] {
        if got != head.len {
            return Err(Error::Shape {
                op: "write_notes",
                what,
                got,
                want: head.len,
            });
        }
    }
    Ok(())
}

/// What is kept with a slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noted {
    /// 32 bits.
    pub(crate) note: u32,
    /// Absolute.
    pub(crate) position: u32,
}

/// The note of two numbers, which end at f16's largest: the first in the low half.
pub(crate) fn note_of_two(first: f32, second: f32) -> u32 {
    let half =
        |x: f32| u32::from(f16::from_f32(x.clamp(-f16::MAX.to_f32(), f16::MAX.to_f32())).to_bits());
    half(first) | half(second) << 16
}

/// Numbers of a note of two.
pub(crate) fn two_of_note(note: u32) -> (f32, f32) {
    (
        f16::from_bits(note as u16).to_f32(),
        f16::from_bits((note >> 16) as u16).to_f32(),
    )
}

/// Smallest norm that is divided by.
const LEAST_NORM: f32 = 1e-12;

fn norm(x: &[f32]) -> f32 {
    x.iter().map(|v| v * v).sum::<f32>().sqrt()
}

/// [`ScoreRule::Fading`].
pub(crate) fn fading(
    rate: f32,
    scale: f32,
    at: u32,
    slots: impl Iterator<Item = Noted>,
    scores: &mut [f32],
) {
    for (score, Noted { note, position }) in scores.iter_mut().zip(slots) {
        let (note, age) = (f32::from_bits(note), at.saturating_sub(position) as f32);
        *score = if rate == 0.0 {
            note
        } else {
            note + rate * (age / scale).ln_1p()
        };
    }
}

/// [`ScoreRule::Either`].
pub(crate) fn either(
    rate: f32,
    scale: f32,
    at: u32,
    slots: impl Iterator<Item = Noted>,
    scores: &mut [f32],
) {
    for (score, Noted { note, position }) in scores.iter_mut().zip(slots) {
        let ((first, second), age) = (two_of_note(note), at.saturating_sub(position) as f32);
        *score = first.max(second + rate * (age / scale));
    }
}

/// [`ScoreRule::KeyNorm`] of keys `[L, D]`.
pub(crate) fn key_norm(keys: &[f32], dim: usize, scores: &mut [f32]) {
    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(dim)) {
        *score = -norm(key);
    }
}

/// [`ScoreRule::KeyDirection`] of keys `[L, D]`.
pub(crate) fn key_direction(keys: &[f32], dim: usize, scores: &mut [f32]) {
    let mut anchor = vec![0.0f32; dim];
    for key in keys.chunks_exact(dim) {
        let scale = 1.0 / norm(key).max(LEAST_NORM);
        anchor
            .iter_mut()
            .zip(key)
            .for_each(|(a, &k)| *a += k * scale);
    }
    let length = norm(&anchor).max(LEAST_NORM);
    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(dim)) {
        let dot: f32 = key.iter().zip(&anchor).map(|(k, a)| k * a).sum();
        *score = -dot / (norm(key).max(LEAST_NORM) * length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(note: u32, position: u32) -> Noted {
        Noted { note, position }
    }

    #[test]
    fn notes_fade_with_age_by_a_power_law() {
        let score = |rate| {
            let mut scores = [0.0; 2];
            let slots = [(-3.0f32, 1000), (2.0, 9192)]
                .map(|(note, position)| noted(note.to_bits(), position));
            fading(rate, 256.0, 9192, slots.into_iter(), &mut scores);
            scores
        };
        // 8,192 tokens are 32 times the scale.
        let [old, new] = score(-1.0);
        assert!(
            (old - (-3.0 - 33f32.ln())).abs() < 1e-5 && new == 2.0,
            "{old} {new}"
        );
        assert_eq!(score(0.0), [-3.0, 2.0], "without a rate nothing fades");
    }

    #[test]
    fn of_two_reasons_the_better_counts_and_one_passes() {
        let mut scores = [0.0; 3];
        // Ages 0, 256, 2,560: the second falls by a nat in 256 tokens.
        let slots = [
            noted(note_of_two(-3.0, -1.0), 3000),
            noted(note_of_two(-3.0, -1.0), 2744),
            noted(note_of_two(-3.0, -1.0), 440),
        ];
        either(-1.0, 256.0, 3000, slots.into_iter(), &mut scores);
        assert_eq!(scores, [-1.0, -2.0, -3.0]);
    }

    #[test]
    fn a_head_whose_keys_are_zero_has_no_direction_and_its_scores_are_numbers() {
        let mut scores = [f32::NAN; 50];
        key_direction(&[0.0; 50 * 8], 8, &mut scores);
        assert!(scores.iter().all(|s| s.is_finite()));
    }
}
