//! The reconstruction target: how much attention every key of a context receives while the model
//! repeats it.
//!
//! Source: KVzip (arXiv 2505.23416), the largest attention of the repetition. Learned scorers are
//! trained to predict its logarithm; the evaluation's oracle ranks by it. [`Target::Surprisal`]
//! weighs it by how much it takes to know what is repeated. Used directly as a score that kept
//! needles of digits a little better at a tenth of the cache, but scorers trained on it lost
//! needles of hexadecimal digits (EVALUATION.md), so it is not the default.

use std::sync::{Arc, RwLock};

use palimpsest_kernels::Backend;

use crate::decoder::Logits;
use crate::error::Result;
use crate::offline::OfflineSequence;
use crate::offline::oracle::{MaxAttention, RowWeights, ScoreTable};
use crate::policy;
use crate::runner::Runner;
use crate::slots::HeadSlots;

/// Asks the model to repeat the context: the queries of the repetition look back at what it needs.
pub const INSTRUCTION: &str = "\n\nRepeat the previous context exactly:\n";
/// Smallest weighted probability that a target distinguishes.
pub const LEAST: f32 = 1e-8;
/// Least surprisal of a token, nats: no token counts for nothing.
pub const LEAST_SURPRISAL: f32 = 0.05;
/// Most surprisal of a token, nats: none counts for more than about ten others.
pub const MOST_SURPRISAL: f32 = 10.0;

/// What a row of the repetition counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Target {
    /// Every row alike: `max_t A[t, j]`.
    #[default]
    Attention,
    /// As much as the token that it predicts surprised the model when it was first read:
    /// `max_t surprisal(x_{t+1}) * A[t, j]`.
    Surprisal,
}

/// Reads contexts and repeats them.
pub struct Reconstruction {
    weights: Arc<RwLock<RowWeights>>,
    instruction: Vec<u32>,
    target: Target,
}

impl Reconstruction {
    /// Makes the observing policy known to a runner. `instruction`: the tokens of [`INSTRUCTION`].
    pub fn new<B: Backend>(runner: &mut Runner<B>, instruction: Vec<u32>, target: Target) -> Self {
        let policy = MaxAttention::default();
        let weights = policy.weights();
        runner.add_policy(Arc::new(policy));
        Self {
            weights,
            instruction,
            target,
        }
    }

    /// Positions that a context of `tokens` takes.
    pub fn positions(&self, tokens: usize) -> usize {
        2 * tokens + self.instruction.len()
    }

    /// An empty sequence for [`Self::read`].
    ///
    /// # Errors
    /// Those of the engine.
    pub fn open<'a, B: Backend>(
        &self,
        runner: &'a mut Runner<B>,
    ) -> Result<OfflineSequence<'a, B>> {
        *self.weights.write().expect("no reader panics") = RowWeights::default();
        let policy = policy::find(runner.policies(), MaxAttention::NAME)?;
        OfflineSequence::watched(runner, policy)
    }

    /// Reads a context. Returns what each row of its repetition counts for.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn read<B: Backend>(
        &self,
        sequence: &mut OfflineSequence<'_, B>,
        context: &[u32],
    ) -> Result<Vec<f32>> {
        if self.target == Target::Attention {
            sequence.feed(context, Logits::None)?;
            return Ok(vec![1.0; context.len()]);
        }
        let vocabulary = sequence.runner().decoder().config().vocabulary;
        let mut surprisals = Vec::with_capacity(context.len());
        // A stride at a time, because logits are large.
        for start in (0..context.len()).step_by(sequence.stride()) {
            let end = context.len().min(start + sequence.stride());
            let logits = sequence.feed(&context[start..end], Logits::All)?;
            let next = &context[start + 1..context.len().min(end + 1)];
            surprisals.extend(
                logits
                    .chunks_exact(vocabulary)
                    .zip(next)
                    .map(|(row, &token)| surprisal(row, token)),
            );
        }
        Ok(surprisals
            .into_iter()
            .map(|s| s.clamp(LEAST_SURPRISAL, MOST_SURPRISAL))
            .collect())
    }

    /// Reads the instruction and the context again. Returns per head and position the logarithm of
    /// the largest weighted attention probability that the key received meanwhile.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn repeat<B: Backend>(
        &self,
        sequence: &mut OfflineSequence<'_, B>,
        context: &[u32],
        weights: Vec<f32>,
    ) -> Result<ScoreTable> {
        sequence.feed(&self.instruction, Logits::None)?;
        let first = sequence.cache().seen;
        *self.weights.write().expect("no reader panics") = RowWeights { first, weights };
        sequence.feed(context, Logits::None)?;
        let cache = sequence.cache();
        let log = |mass: f32| mass.max(LEAST).ln();
        // The policy observes maxima.
        let most = |head: &HeadSlots, slot: usize| {
            head.mass.iter().map(|mass| mass[slot]).fold(0.0, f32::max)
        };
        let heads = cache.heads.iter().map(|head| {
            (0..context.len())
                .map(|slot| log(most(head, slot)))
                .collect()
        });
        Ok(ScoreTable {
            kv_heads: cache.layout.kv_heads.len(),
            heads: heads.collect(),
        })
    }
}

/// `-ln softmax(logits)[token]`.
fn surprisal(logits: &[f32], token: u32) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|l| (l - max).exp()).sum();
    max + sum.ln() - logits[token as usize]
}
