//! Sampling by its definition: the whole vocabulary is sorted, and one token after the other passes
//! every filter. Likelihoods are softmax in double precision.

use std::cmp::Ordering;

use super::device::ReferenceBackend;
use crate::backend::Sampling;
use crate::error::Result;
use crate::likelihood::{self, KnownToken, Likelihood, TokenLikelihood};
use crate::sample::{LogitEdit, SampleItem, check, mass};

fn choose(logits: &mut [f32], item: &SampleItem<'_>) -> Option<u32> {
    if logits.iter().any(|logit| logit.is_nan()) {
        return None;
    }
    for edit in item.edits {
        let x = &mut logits[edit.token as usize];
        let has = |flag: u32| edit.flags & flag == flag;
        *x += if has(LogitEdit::BIAS) {
            edit.bias
        } else {
            -0.0
        };
        if has(LogitEdit::PENALTIES) {
            *x = if *x > 0.0 {
                *x / edit.repetition
            } else {
                *x * edit.repetition
            };
            *x = (*x - edit.frequency) - edit.presence;
        }
        if has(LogitEdit::BANNED) {
            *x = f32::NEG_INFINITY;
        }
    }
    for (id, logit) in logits.iter_mut().enumerate() {
        if item
            .mask
            .is_some_and(|mask| mask[id / 32] & (1 << (id % 32)) == 0)
        {
            *logit = f32::NEG_INFINITY;
        }
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    let top = logits[order[0] as usize];
    let best = (0..logits.len() as u32).find(|&id| logits[id as usize] == top)?;
    if item.temperature <= 0.0 {
        return Some(best);
    }
    let tokens = order
        .iter()
        .map(|&id| (id, mass((logits[id as usize] - top) / item.temperature)));
    let mut kept: Vec<(u32, u64)> = tokens
        .take(if item.top_k == 0 {
            usize::MAX
        } else {
            item.top_k
        })
        .collect();
    kept.retain(|&(_, mass)| mass as f64 >= f64::from(item.min_p) * (1u64 << 44) as f64);
    let total = |kept: &[(u32, u64)]| kept.iter().map(|token| token.1).sum::<u64>();
    let all = total(&kept);
    if all == 0 {
        return Some(best);
    }
    let wanted = all as f64 * f64::from(item.top_p);
    let enough = (1..=kept.len()).find(|&count| total(&kept[..count]) as f64 >= wanted);
    kept.truncate(enough.unwrap_or(kept.len()));
    let target = ((u128::from(item.uniform) * u128::from(total(&kept))) >> 53) as u64;
    let drawn = (1..=kept.len()).find(|&count| total(&kept[..count]) > target)?;
    Some(kept[drawn - 1].0)
}

fn softmax(logits: &[f32], item: &KnownToken) -> Likelihood {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    if logits.iter().any(|logit| logit.is_nan()) {
        let known = TokenLikelihood {
            token: item.token,
            logprob: f32::NAN,
        };
        return Likelihood {
            known,
            best: Vec::new(),
        };
    }
    // Zeros of both signs are equal.
    let falling = |a: &u32, b: &u32| logits[*b as usize].partial_cmp(&logits[*a as usize]);
    order.sort_by(|a, b| falling(a, b).unwrap_or(Ordering::Equal));
    let top = f64::from(logits[order[0] as usize]);
    let terms = logits.iter().map(|&x| (f64::from(x) - top).exp());
    let sum: f64 = terms.sum::<f64>().ln();
    let of = |token: u32| TokenLikelihood {
        token,
        logprob: (f64::from(logits[token as usize]) - top - sum) as f32,
    };
    Likelihood {
        known: of(item.token),
        best: order.into_iter().take(item.alternatives).map(of).collect(),
    }
}

impl Sampling for ReferenceBackend {
    fn sample(
        &self,
        logits: &mut Vec<f32>,
        vocabulary: usize,
        items: &[SampleItem<'_>],
    ) -> Result<Vec<Option<u32>>> {
        check(items, logits.len() / vocabulary.max(1), vocabulary)?;
        Ok(items
            .iter()
            .map(|item| choose(&mut logits[item.row * vocabulary..][..vocabulary], item))
            .collect())
    }

    fn likelihoods(
        &self,
        logits: &Vec<f32>,
        vocabulary: usize,
        items: &[KnownToken],
    ) -> Result<Vec<Likelihood>> {
        likelihood::check(items, logits.len() / vocabulary.max(1), vocabulary)?;
        let of = |item: &KnownToken| softmax(&logits[item.row * vocabulary..][..vocabulary], item);
        Ok(items.iter().map(of).collect())
    }
}
