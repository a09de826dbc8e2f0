//! What eviction costs: the loss of answers, how far predictions of the text are from those of the
//! full cache, and the slopes of both.
//!
//! Both are cross entropies, whose slopes at the logits are known: probabilities less those wanted.
//! In one pass over each row of logits, that is; candle's operations would make a dozen, most of
//! them on one thread.

use candle_core::{Device, Result, Tensor, Var};
use palimpsest_kernels::cpu::{SimdLevel, exp_minus};
use rayon::prelude::*;

use super::documents::Document;
use super::model::{Model, values};

/// Rows whose logits are in memory at a time.
const LOGIT_ROWS: usize = 256;
/// Positions of the text at which predictions are compared, at most.
const TEXT_ROWS: usize = 1024;

/// Mean nats per token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Losses {
    /// Of the answers.
    pub answers: f64,
    /// Of the answers with the full cache.
    pub full: f64,
    /// Divergence of the text's predictions from those with the full cache.
    pub text: f64,
}

/// Outputs of the last layer `[n, E]` for one document.
#[derive(Debug, Clone, Copy)]
pub struct Outputs<'a> {
    /// Read with the full cache.
    pub full: &'a Tensor,
    /// Read with eviction.
    pub output: &'a Tensor,
}

impl Losses {
    /// Losses of a reading, and their slopes at its last layer's output `[n, E]`, the text weighed
    /// by `text_weight`.
    ///
    /// # Errors
    /// Those of candle.
    pub fn of(
        model: &Model,
        document: &Document,
        outputs: Outputs<'_>,
        text_weight: f64,
    ) -> Result<(Self, Tensor)> {
        let Outputs { full, output } = outputs;
        let second_half = document.length / 2..document.length;
        let text: Vec<usize> = second_half
            .step_by((document.length / TEXT_ROWS).max(1))
            .collect();
        let mut slopes = output.zeros_like()?;
        let mut mean = |at: &[usize], weight: f64, row: Row<'_>| -> Result<(f64, f64)> {
            let (mut sums, count) = ((0.0, 0.0), at.len() as f64);
            for at in at.chunks(LOGIT_ROWS) {
                let before: Vec<u32> = at.iter().map(|&position| position as u32 - 1).collect();
                let before = Tensor::new(before, &Device::Cpu)?;
                let rows = Var::from_tensor(&output.index_select(&before, 0)?)?;
                let logits = model.logits(&rows)?;
                let full = values(&model.logits(&full.index_select(&before, 0)?)?)?;
                let mut slopes_of_logits = values(&logits)?;
                let width = logits.dim(1)?;
                let pairs = slopes_of_logits
                    .par_chunks_mut(width)
                    .zip(full.par_chunks(width))
                    .zip(at);
                let found: Vec<(f64, f64)> = pairs
                    .map(|((logits, full), &at)| row(at, logits, full))
                    .collect();
                sums = found
                    .iter()
                    .fold(sums, |sums, found| (sums.0 + found.0, sums.1 + found.1));
                let of_logits =
                    (Tensor::from_vec(slopes_of_logits, logits.shape(), &Device::Cpu)?
                        * (weight / count))?;
                let grads = (logits * of_logits)?.sum_all()?.backward()?;
                slopes = slopes.index_add(
                    &before,
                    grads.get(&rows).expect("logits depend on their rows"),
                    0,
                )?;
            }
            Ok((sums.0 / count, sums.1 / count))
        };
        let (answers, full) = mean(&document.answers, 1.0, &|at, logits, full| {
            surprisals(document.ids[at], logits, full)
        })?;
        let (text, _) = mean(&text, text_weight, &|_, logits, full| {
            (divergence(logits, full), 0.0)
        })?;
        Ok((
            Self {
                answers,
                full,
                text,
            },
            slopes,
        ))
    }
}

/// Losses of a position with its logits and with those of the full cache; the former become the
/// slopes of the first loss.
type Row<'a> = &'a (dyn Fn(usize, &mut [f32], &[f32]) -> (f64, f64) + Sync);

/// Of a token.
fn surprisals(token: u32, logits: &mut [f32], full: &[f32]) -> (f64, f64) {
    let token = token as usize;
    let (logit, floor) = (
        f64::from(logits[token]),
        log_softmax(&mut full.to_vec()) - f64::from(full[token]),
    );
    let loss = log_softmax(logits) - logit;
    logits[token] -= 1.0;
    (loss, floor)
}

/// Kullback and Leibler's, of the predictions from those of the full cache.
fn divergence(logits: &mut [f32], full: &[f32]) -> f64 {
    let mut wanted = full.to_vec();
    let of_full = log_softmax(&mut wanted);
    let further = wanted.iter().zip(full.iter().zip(logits.iter()));
    let further: f64 = further
        .map(|(share, (full, logit))| f64::from(share * (full - logit)))
        .sum();
    let of_logits = log_softmax(logits);
    logits
        .iter_mut()
        .zip(&wanted)
        .for_each(|(share, wanted)| *share -= wanted);
    further - of_full + of_logits
}

/// Makes probabilities of logits; returns the logarithm of the sum of their exponentials.
fn log_softmax(logits: &mut [f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum = exp_minus(SimdLevel::detect(), logits, most);
    logits.iter_mut().for_each(|logit| *logit /= sum);
    f64::from(most) + f64::from(sum).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against definitions in f64, and slopes against differences.
    #[test]
    fn rows_have_the_losses_and_slopes_of_their_definitions() {
        let full: Vec<f32> = (0..21).map(|i| ((i * 7) % 11) as f32 * 0.6 - 2.0).collect();
        let logits: Vec<f32> = (0..21).map(|i| ((i * 5) % 13) as f32 * 0.5 - 3.0).collect();
        let logs = |row: &[f32]| {
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            row.iter()
                .map(|&x| f64::from(x) - sum.ln())
                .collect::<Vec<f64>>()
        };
        let surprisal = |row: &[f32]| -logs(row)[4];
        let away = |row: &[f32]| {
            let (have, want) = (logs(row), logs(&full));
            want.iter()
                .zip(have)
                .map(|(want, have)| want.exp() * (want - have))
                .sum::<f64>()
        };
        let mut slopes = [logits.clone(), logits.clone()];
        let (loss, floor) = surprisals(4, &mut slopes[0], &full);
        let text = divergence(&mut slopes[1], &full);
        for (got, want) in [
            (loss, surprisal(&logits)),
            (floor, surprisal(&full)),
            (text, away(&logits)),
        ] {
            assert!((got - want).abs() < 1e-5, "{got} is not {want}");
        }
        for index in 0..logits.len() {
            let moved = |by: f32| {
                let mut row = logits.clone();
                row[index] += by;
                [surprisal(&row), away(&row)]
            };
            let (up, down) = (moved(1e-2), moved(-1e-2));
            for loss in 0..2 {
                let (got, want) = (slopes[loss][index], (up[loss] - down[loss]) / 2e-2);
                assert!(
                    (f64::from(got) - want).abs() < 1e-4,
                    "loss {loss}, {index}: {got} is not {want}"
                );
            }
        }
    }
}
