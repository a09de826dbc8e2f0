//! The reconstruction target: how much attention every key of a context receives while the model repeats it.
//!
//! Source: KVzip (arXiv 2505.23416). Learned scorers are trained to predict its logarithm; the evaluation's oracle ranks by it.

use crate::error::Result;
use crate::kv::Contract;
use crate::model::decoder::Logits;
use crate::policy::oracle::{MaxAttention, ScoreTable};
use crate::runner::Runner;
use crate::session::Session;
use palimpsest_kernels::Backend;
use std::sync::Arc;

/// Asks the model to repeat the context: the queries of the repetition look back at what it needs.
pub const INSTRUCTION: &str = "\n\nRepeat the previous context exactly:\n";
/// Smallest probability that a target distinguishes.
pub const LEAST: f32 = 1e-8;

/// Makes the observing policy known to a runner.
pub fn prepare<B: Backend>(runner: &mut Runner<B>) {
    if !runner.policies().iter().any(|p| p.name() == MaxAttention::NAME) {
        runner.add_policy(Arc::new(MaxAttention));
    }
}

/// The contract of a session that [`repeat`] can go on with.
pub fn contract() -> Contract {
    Contract { policy: MaxAttention::NAME.into(), ..Contract::full() }
}

/// Goes on with a session that has read `context` under [`contract`]: reads `instruction` and the context again. Returns
/// per head and position the logarithm of the largest attention probability that the key received meanwhile.
///
/// # Errors
/// Those of the engine.
pub fn repeat<B: Backend>(session: &mut Session<'_, B>, context: &[u32], instruction: &[u32]) -> Result<ScoreTable> {
    for head in &mut session.cache().heads {
        head.mass.fill(0.0);
    }
    session.feed(instruction, Logits::None)?;
    session.feed(context, Logits::None)?;
    let cache = session.cache();
    let log = |mass: &[f32]| mass[..context.len()].iter().map(|m| m.max(LEAST).ln()).collect();
    Ok(ScoreTable { kv_heads: cache.kv_heads, heads: cache.heads.iter().map(|head| log(&head.mass)).collect() })
}
