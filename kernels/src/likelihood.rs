//! How likely tokens are that are known already, such as those of a prompt, on the host: what
//! `Sampling::likelihoods` means.

use crate::cpu::{SimdLevel, exp_sum};
use crate::error::{Error, Result};

/// A token whose log-probability is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownToken {
    /// Row of the logits.
    pub row: usize,
    /// Token id.
    pub token: u32,
    /// Best tokens of the row that are told of beside it.
    pub alternatives: usize,
}

/// How likely a token is under a row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLikelihood {
    /// Token id.
    pub token: u32,
    /// Natural logarithm of its probability; NaN where the row does not consist of numbers.
    pub logprob: f32,
}

/// What is told of a known token.
#[derive(Debug, Clone, PartialEq)]
pub struct Likelihood {
    /// Of the token itself.
    pub known: TokenLikelihood,
    /// Of the best tokens of its row, by falling logit, ties to the smaller id.
    pub best: Vec<TokenLikelihood>,
}

/// Checks the items of a call over `rows` rows.
pub(crate) fn check(items: &[KnownToken], rows: usize, vocabulary: usize) -> Result<()> {
    let outside = |what, index, len| Error::Index {
        op: "likelihoods",
        what,
        index,
        len,
    };
    for item in items {
        if item.row >= rows {
            return Err(outside("row", item.row, rows));
        }
        if item.token as usize >= vocabulary {
            return Err(outside("token", item.token as usize, vocabulary));
        }
    }
    Ok(())
}

/// What is told of `item` by its row of `logits` (`[V]`).
pub fn likelihood(logits: &[f32], item: &KnownToken) -> Likelihood {
    let sum = log_sum_exp(logits);
    let of = |token: u32| TokenLikelihood {
        token,
        logprob: logits[token as usize] - sum,
    };
    Likelihood {
        known: of(item.token),
        best: best(logits, item.alternatives)
            .into_iter()
            .map(of)
            .collect(),
    }
}

/// Values that are looked at together, so that the compiler has vectors for them.
const TOGETHER: usize = 32;

/// `ln Σ exp(x)`, NaN if one of them is: exponentials in single precision, their sums in double.
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    const BLOCK: usize = 1024;
    let Some(top) = largest(logits).filter(|top| top.is_finite()) else {
        return f32::NAN;
    };
    let level = SimdLevel::detect();
    let sums = logits.chunks(BLOCK);
    let sums = sums.map(|values| f64::from(exp_sum(level, values, top)));
    top + sums.sum::<f64>().ln() as f32
}

/// The largest value; `None` where one is not a number.
fn largest(values: &[f32]) -> Option<f32> {
    let mut most = [f32::NEG_INFINITY; TOGETHER];
    let mut has_nan = [false; TOGETHER];
    for values in values.chunks(TOGETHER) {
        for ((&x, most), has_nan) in values.iter().zip(&mut most).zip(&mut has_nan) {
            *most = if x > *most { x } else { *most };
            *has_nan |= x.is_nan();
        }
    }
    let most = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
    (!has_nan.contains(&true)).then_some(most)
}

/// The `count` tokens of the largest logits, by falling logit, ties to the smaller id.
pub fn best(logits: &[f32], count: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(count.min(logits.len()) + 1);
    if count == 0 {
        return best;
    }
    for (block, values) in logits.chunks(TOGETHER).enumerate() {
        let worst = best.last().filter(|_| best.len() == count);
        let worst = worst.map(|&id| logits[id as usize]);
        let is_passed = |worst: f32| !values.iter().fold(false, |any, &x| any | (x > worst));
        if worst.is_some_and(is_passed) {
            continue;
        }
        for (id, &logit) in (block * TOGETHER..).zip(values) {
            let worst = best.last().map(|&id| logits[id as usize]);
            if best.len() == count && !worst.is_some_and(|worst| logit > worst) {
                continue;
            }
            let at = best.partition_point(|&other| logits[other as usize] >= logit);
            best.insert(at, id as u32);
            best.truncate(count);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::exp_minus;
    use crate::sample;

    fn values(count: usize, steps: u64) -> Vec<f32> {
        let mut state = 1u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((state >> 33) % steps) as f32 / 16.0 - 12.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn the_best_are_those_of_a_sort_and_sums_those_of_double_precision() {
        for length in [1, 31, 32, 33, 3000] {
            let logits = values(length, 400);
            for count in [0, 1, 5, 20] {
                let mut sorted = sample::best_first(&logits, logits.len());
                sorted.truncate(count);
                assert_eq!(best(&logits, count), sorted, "{count} of {length}");
            }
            let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            assert!((f64::from(log_sum_exp(&logits)) - sum.ln()).abs() < 1e-5);
        }
        assert!(log_sum_exp(&[0.0, f32::NAN]).is_nan());
        assert!(log_sum_exp(&[0.0, f32::INFINITY]).is_nan());
        assert!(log_sum_exp(&[f32::NEG_INFINITY; 3]).is_nan());
        assert!(log_sum_exp(&[]).is_nan());
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY, 2.0]), 2.0);
    }

    /// Answers keep their bits: the sum is that of blocks of 1024 exponentials, which were once
    /// written down before they were added.
    #[test]
    fn sums_are_added_in_one_order() {
        let logits = values(5000, 300);
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut copy = logits.clone();
        let blocks = copy.chunks_mut(1024);
        let sum: f64 = blocks
            .map(|block| f64::from(exp_minus(SimdLevel::Portable, block, top)))
            .sum();
        let expected = top + sum.ln() as f32;
        assert_eq!(log_sum_exp(&logits).to_bits(), expected.to_bits());
    }
}
