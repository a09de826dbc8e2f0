//! One prompt under one contract.

use crate::contracts::{entry_bytes, held};
use crate::prompt::Prompt;
use crate::stats::{argmax, log_probability};
use crate::{Error, Result, TextSide};
use palimpsest_kernels::Backend;
use palimpsest_worker::kv::Contract;
use palimpsest_worker::model::decoder::Logits;
use palimpsest_worker::runner::Runner;
use palimpsest_worker::session::Session;

/// What the teacher-forced pass gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forced {
    /// Mean log-likelihood per answer token, nats.
    pub loglik: f64,
    /// Whether greedy decoding gives the expected answer: at every token of it the expected one is the most likely.
    pub exact: bool,
    /// Mean entries per KV head when the first answer token is produced, latent memory included.
    pub held: f64,
}

/// Reads the prompt, then the expected answer, and scores the answer.
///
/// # Errors
/// Those of the rank; [`Error::NotANumber`].
pub fn forced<B: Backend>(runner: &mut Runner<B>, contract: &Contract, prompt: &Prompt) -> Result<Forced> {
    let entry_bytes = entry_bytes(runner);
    let vocabulary = runner.decoder().config().vocabulary;
    let mut session = Session::open(runner, contract.clone())?;
    let first = read(&mut session, prompt)?;
    let held = held(session.cache(), entry_bytes);
    let given = &prompt.answer[..prompt.answer.len() - 1];
    let rest = if given.is_empty() { Vec::new() } else { session.feed(given, Logits::All)? };
    session.close();
    let (mut sum, mut exact) = (0.0, true);
    for (&token, logits) in prompt.answer.iter().zip(first.chunks(vocabulary).chain(rest.chunks(vocabulary))) {
        let (log_probability, best) = log_probability(logits, token);
        sum += log_probability;
        exact &= best;
    }
    if sum.is_nan() {
        return Err(Error::NotANumber);
    }
    Ok(Forced { loglik: sum / prompt.answer.len() as f64, exact, held })
}

/// Reads the prompt and answers greedily, up to `limit` tokens or the model's end of the answer.
///
/// # Errors
/// Those of the rank.
pub fn greedy<B: Backend>(
    runner: &mut Runner<B>,
    contract: &Contract,
    prompt: &Prompt,
    limit: usize,
    side: &dyn TextSide,
) -> Result<String> {
    let mut session = Session::open(runner, contract.clone())?;
    let mut logits = read(&mut session, prompt)?;
    let mut answer = Vec::new();
    while answer.len() < limit {
        let token = argmax(&logits) as u32;
        if side.ends(token) {
            break;
        }
        answer.push(token);
        if answer.len() < limit {
            logits = session.feed(&[token], Logits::Last)?;
        }
    }
    Ok(side.decode(&answer))
}

/// Logits after the prompt's last token. Context and tail are fed apart only to show where the boundary is: the state
/// does not depend on it.
fn read<B: Backend>(session: &mut Session<'_, B>, prompt: &Prompt) -> Result<Vec<f32>> {
    session.feed(&prompt.context, Logits::None)?;
    Ok(session.feed(&prompt.tail, Logits::Last)?)
}
