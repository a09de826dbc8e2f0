//! Choosing the next token, on the host: what `Sampling::sample` means,
//! bit for bit.
//!
//! Best first is falling logit, then rising token. Every filter keeps a prefix of that order, and
//! probabilities are integers ([`mass`]), so they add up to the same sum in any order: a device
//! that adds in another one draws the same token.

use std::cmp::Ordering;

use bytemuck::{Pod, Zeroable};

use crate::error::{Error, Result};

/// How the next token of one row of logits is chosen.
#[derive(Debug, Clone, Copy)]
pub struct SampleItem<'a> {
    /// Row of the logits; no two items have the same.
    pub row: usize,
    /// 0 or less: the best token, the first of equals.
    pub temperature: f32,
    /// Best tokens that may be drawn; 0: all.
    pub top_k: usize,
    /// Least share of the mass that the best tokens together must have to be enough.
    pub top_p: f32,
    /// Least probability, relative to the best token.
    pub min_p: f32,
    /// 53 random bits.
    pub uniform: u64,
    /// Changes before the choice, one per token at most.
    pub edits: &'a [LogitEdit],
    /// The tokens that may be chosen, see [`mask_words`]; `None`: all.
    pub mask: Option<&'a [u32]>,
}

/// Words of a mask over `vocabulary` tokens: bit `t % 32` of word `t / 32` is 1 where token `t` may
/// be chosen. The bits beyond the vocabulary are not read.
pub const fn mask_words(vocabulary: usize) -> usize {
    vocabulary.div_ceil(32)
}

/// Changes of one token's logit: bias, penalties (as in OpenAI's API; repetition as in CTRL, arXiv
/// 1909.05858), ban.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct LogitEdit {
    /// Token id.
    pub token: u32,
    /// Added first.
    pub bias: f32,
    /// Divides a positive logit, multiplies another.
    pub repetition: f32,
    /// Subtracted: times generated, times the penalty.
    pub frequency: f32,
    /// Subtracted.
    pub presence: f32,
    /// Which of these apply: [`Self::BIAS`], [`Self::PENALTIES`], [`Self::BANNED`].
    pub flags: u32,
}

impl LogitEdit {
    /// `bias` applies.
    pub const BIAS: u32 = 1;
    /// `repetition`, `frequency` and `presence` apply.
    pub const PENALTIES: u32 = 2;
    /// The token is never chosen.
    pub const BANNED: u32 = 4;

    /// No change of `token`.
    pub fn none(token: u32) -> Self {
        Self {
            token,
            repetition: 1.0,
            ..Self::zeroed()
        }
    }

    fn apply(&self, logit: f32) -> f32 {
        let mut x = logit;
        if self.flags & Self::BIAS != 0 {
            x += self.bias;
        }
        if self.flags & Self::PENALTIES != 0 {
            x = if x > 0.0 {
                x / self.repetition
            } else {
                x * self.repetition
            };
            x -= self.frequency;
            x -= self.presence;
        }
        if self.flags & Self::BANNED != 0 {
            f32::NEG_INFINITY
        } else {
            x
        }
    }
}

/// `floor(2^44 exp(x))` for `x <= 0`, made of operations that round the same on every device; 0
/// below -31 and for NaN.
pub fn mass(x: f32) -> u64 {
    /// 1.5 * 2^52: adding it rounds to an integer.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// ln 2 in two parts, the first with zeros at its end.
    const LN_2: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];
    let x = f64::from(x);
    // NaN is not above.
    if !matches!(x.partial_cmp(&-31.0), Some(Ordering::Greater)) {
        return 0;
    }
    let n = (x * std::f64::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let p = (1..=13)
        .rev()
        .fold(1.0, |p, k| 1.0 + (r * p) / f64::from(k));
    // 2^(n + 44), by its bits.
    let power = f64::from_bits(((1023 + 44 + n as i64) as u64) << 52);
    (p * power) as u64
}

/// The mass that `min_p` asks of a token.
pub(crate) fn least_mass(min_p: f32) -> u64 {
    (f64::from(min_p) * (1u64 << 44) as f64).ceil() as u64
}

/// Checks the items of a call over `rows` rows.
pub(crate) fn check(items: &[SampleItem<'_>], rows: usize, vocabulary: usize) -> Result<()> {
    let op = "sample";
    let mut seen = vec![false; rows];
    for item in items {
        if item.row >= rows || std::mem::replace(&mut seen[item.row], true) {
            return Err(Error::Index {
                op,
                what: "row (or twice)",
                index: item.row,
                len: rows,
            });
        }
        let words = mask_words(vocabulary);
        if let Some(mask) = item.mask.filter(|mask| mask.len() != words) {
            return Err(Error::Shape {
                op,
                what: "mask",
                got: mask.len(),
                want: words,
            });
        }
        if let Some(edit) = item
            .edits
            .iter()
            .find(|edit| edit.token as usize >= vocabulary)
        {
            return Err(Error::Index {
                op,
                what: "edited token",
                index: edit.token as usize,
                len: vocabulary,
            });
        }
    }
    Ok(())
}

/// Chooses from `logits` (`[V]`, changed in place); `None` when one of them is not a number. Where
/// no token of the mask has a probability, the choice is any token.
pub fn choose(logits: &mut [f32], item: &SampleItem<'_>) -> Option<u32> {
    if logits.iter().any(|logit| logit.is_nan()) {
        return None;
    }
    for edit in item.edits {
        let logit = &mut logits[edit.token as usize];
        *logit = edit.apply(*logit);
    }
    if let Some(mask) = item.mask {
        forbid_others(logits, mask);
    }
    let best = argmax(logits);
    Some(if item.temperature > 0.0 {
        draw(logits, best, item)
    } else {
        best
    })
}

/// Takes its probability from every token that the mask does not have.
fn forbid_others(logits: &mut [f32], mask: &[u32]) {
    for (logits, &word) in logits.chunks_mut(32).zip(mask) {
        match word {
            0 => logits.fill(f32::NEG_INFINITY),
            u32::MAX => {}
            _ => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

fn draw(logits: &[f32], best: u32, item: &SampleItem<'_>) -> u32 {
    let top = logits[best as usize];
    let limit = if item.top_k == 0 {
        logits.len()
    } else {
        item.top_k
    };
    let least = least_mass(item.min_p);
    // Without top-k what has no mass need not be sorted: it cannot be drawn.
    let mut kept: Vec<(u32, u64)> = Vec::new();
    let mut total = 0;
    for id in best_first(logits, limit) {
        let mass = mass((logits[id as usize] - top) / item.temperature);
        if mass < least || mass == 0 {
            break;
        }
        total += mass;
        kept.push((id, total));
    }
    if total == 0 {
        return best;
    }
    if item.top_p < 1.0 {
        let wanted = ((total as f64 * f64::from(item.top_p)).ceil() as u64).clamp(1, total);
        total = kept[kept.partition_point(|&(_, sum)| sum < wanted)].1;
    }
    let target = ((u128::from(item.uniform) * u128::from(total)) >> 53) as u64;
    kept[kept.partition_point(|&(_, sum)| sum <= target)].0
}

/// Token ids by falling logit, ties to the smaller id; at least the best `count` are in order and
/// nothing else is returned.
pub fn best_first(logits: &[f32], count: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| -> Ordering {
        logits[*b as usize]
            .total_cmp(&logits[*a as usize])
            .then(a.cmp(b))
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if count > 0 && count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// Index of the largest value, the first of equals; NaN never wins.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.0 {
            best = (logit, id as u32);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masses_are_those_of_exp() {
        assert_eq!(
            (
                mass(0.0),
                mass(-0.0),
                mass(f32::NEG_INFINITY),
                mass(f32::NAN)
            ),
            (1 << 44, 1 << 44, 0, 0)
        );
        let mut last = u64::MAX;
        for i in 0..40_000 {
            let x = -(i as f32) / 1250.0;
            let (got, want) = (mass(x), f64::from(x).exp() * (1u64 << 44) as f64);
            if x > -31.0 {
                assert!(
                    (got as f64 - want).abs() <= 1.0 + want * 1e-14,
                    "{x}: {got}, {want}"
                );
            }
            assert!(got <= last, "{x}");
            last = got;
        }
    }
}
