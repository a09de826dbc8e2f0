//! The reconstruction target: how much attention every key of a context receives while the model repeats it, weighted by
//! how much it takes to know what is repeated.
//!
//! Source: KVzip (arXiv 2505.23416) takes the largest attention of the repetition. There every token counts alike, and at
//! small budgets words that the model would have guessed crowd out those it could not know. Here a row that predicts a
//! token counts as much as that token surprised the model when it was first read: `max_t surprisal(x_{t+1}) * A[t, j]`.
//! Learned scorers are trained to predict its logarithm; the evaluation's oracle ranks by it.

use crate::error::Result;
use crate::kv::Contract;
use crate::model::decoder::Logits;
use crate::policy::oracle::{MaxAttention, RowWeights, ScoreTable};
use crate::runner::Runner;
use crate::session::Session;
use palimpsest_kernels::Backend;
use std::sync::{Arc, RwLock};

/// Asks the model to repeat the context: the queries of the repetition look back at what it needs.
pub const INSTRUCTION: &str = "\n\nRepeat the previous context exactly:\n";
/// Smallest weighted probability that a target distinguishes.
pub const LEAST: f32 = 1e-8;
/// Bounds of a token's surprisal, nats: no token counts for nothing, none for more than about ten others.
pub const SURPRISAL: (f32, f32) = (0.05, 10.0);

/// Reads contexts and repeats them.
pub struct Reconstruction {
    weights: Arc<RwLock<RowWeights>>,
    instruction: Vec<u32>,
}

impl Reconstruction {
    /// Makes the observing policy known to a runner. `instruction`: the tokens of [`INSTRUCTION`].
    pub fn new<B: Backend>(runner: &mut Runner<B>, instruction: Vec<u32>) -> Self {
        let policy = MaxAttention::default();
        let weights = policy.weights();
        runner.add_policy(Arc::new(policy));
        Self { weights, instruction }
    }

    /// Positions that a context of `tokens` takes.
    pub fn positions(&self, tokens: usize) -> usize {
        2 * tokens + self.instruction.len()
    }

    /// A session for [`Self::read`].
    ///
    /// # Errors
    /// Those of the engine.
    pub fn open<'a, B: Backend>(&self, runner: &'a mut Runner<B>) -> Result<Session<'a, B>> {
        *self.weights.write().expect("no reader panics") = RowWeights::default();
        Session::open(runner, Contract { policy: MaxAttention::NAME.into(), ..Contract::full() })
    }

    /// Reads a context. Returns what each of its tokens but the first cost, nats.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn read<B: Backend>(&self, session: &mut Session<'_, B>, context: &[u32]) -> Result<Vec<f32>> {
        let vocabulary = session.runner().decoder().config().vocabulary;
        let mut surprisals = Vec::with_capacity(context.len());
        // A stride at a time, because logits are large.
        for start in (0..context.len()).step_by(session.stride()) {
            let end = context.len().min(start + session.stride());
            let logits = session.feed(&context[start..end], Logits::All)?;
            let next = &context[start + 1..context.len().min(end + 1)];
            surprisals.extend(logits.chunks_exact(vocabulary).zip(next).map(|(row, &token)| surprisal(row, token)));
        }
        Ok(surprisals)
    }

    /// Reads the instruction and the context again. Returns per head and position the logarithm of the largest weighted
    /// attention probability that the key received meanwhile.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn repeat<B: Backend>(
        &self,
        session: &mut Session<'_, B>,
        context: &[u32],
        surprisals: &[f32],
    ) -> Result<ScoreTable> {
        let (least, most) = SURPRISAL;
        let bounded = surprisals.iter().map(|s| s.clamp(least, most)).collect();
        session.feed(&self.instruction, Logits::None)?;
        let first = session.cache().seen;
        *self.weights.write().expect("no reader panics") = RowWeights { first, weights: bounded };
        session.feed(context, Logits::None)?;
        let cache = session.cache();
        let log = |mass: &[f32]| mass[..context.len()].iter().map(|m| m.max(LEAST).ln()).collect();
        Ok(ScoreTable { kv_heads: cache.kv_heads, heads: cache.heads.iter().map(|head| log(&head.mass)).collect() })
    }
}

/// `-ln softmax(logits)[token]`.
fn surprisal(logits: &[f32], token: u32) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|l| (l - max).exp()).sum();
    max + sum.ln() - logits[token as usize]
}
