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
use std::time::Instant;

/// How a greedily decoded answer is judged.
pub struct Decoding<'a> {
    /// Between ids and text.
    pub side: &'a dyn TextSide,
    /// Tokens at most.
    pub limit: usize,
    /// Score of a text, from 0 to 1.
    pub score: &'a dyn Fn(&str) -> f64,
    /// Whether the score can fall when text is added at the end, so that every answer must be decoded to its end.
    pub whole: bool,
}

/// What a prompt gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Mean log-likelihood per answer token, nats, teacher-forced.
    pub loglik: f64,
    /// Whether greedy decoding gives the expected answer: at every token of it the expected one is the most likely.
    pub exact: bool,
    /// Mean entries per KV head when the first answer token is produced, latent memory included.
    pub held: f64,
    /// What was decoded, and its score; `None` when the expected answer is decoded, which needs no second pass.
    pub decoded: Option<(String, f64)>,
    /// Seconds: reading the prompt, the expected answer, decoding.
    pub seconds: [f64; 3],
}

/// Reads the prompt, scores the expected answer, and decodes one greedily if `decoding` is given and the first pass has not
/// shown that it is the expected one. The prompt is read once, unless answers reach the next boundary.
///
/// # Errors
/// Those of the rank; [`Error::NotANumber`].
pub fn measure<B: Backend>(
    runner: &mut Runner<B>,
    contract: &Contract,
    prompt: &Prompt,
    decoding: Option<&Decoding<'_>>,
) -> Result<Measured> {
    let started = Instant::now();
    let entry_bytes = entry_bytes(runner);
    let vocabulary = runner.decoder().config().vocabulary;
    let mut session = Session::open(runner, contract.clone())?;
    let first = read(&mut session, prompt)?;
    let held = held(session.cache(), entry_bytes);
    let read_seconds = started.elapsed().as_secs_f64();
    let mark = session.mark();
    let given = &prompt.answer[..prompt.answer.len() - 1];
    let rest = if given.is_empty() { Vec::new() } else { session.feed(given, Logits::All)? };
    let (mut sum, mut exact) = (0.0, true);
    for (&token, logits) in prompt.answer.iter().zip(first.chunks(vocabulary).chain(rest.chunks(vocabulary))) {
        let (log_probability, best) = log_probability(logits, token);
        sum += log_probability;
        exact &= best;
    }
    if sum.is_nan() {
        return Err(Error::NotANumber);
    }
    let forced_seconds = started.elapsed().as_secs_f64() - read_seconds;
    let decoded = match decoding.filter(|d| d.whole || !exact) {
        None => None,
        Some(decoding) => {
            let logits = if session.rewind(&mark) {
                first
            } else {
                session.close();
                session = Session::open(runner, contract.clone())?;
                read(&mut session, prompt)?
            };
            Some(greedy(&mut session, logits, decoding)?)
        }
    };
    let all = started.elapsed().as_secs_f64();
    let seconds = [read_seconds, forced_seconds, all - read_seconds - forced_seconds];
    Ok(Measured { loglik: sum / prompt.answer.len() as f64, exact, held, decoded, seconds })
}

/// Answers greedily, up to the limit or the model's end of the answer, or as soon as nothing can be gained any more.
fn greedy<B: Backend>(
    session: &mut Session<'_, B>,
    mut logits: Vec<f32>,
    decoding: &Decoding<'_>,
) -> Result<(String, f64)> {
    let mut answer = Vec::new();
    let (mut text, mut score) = (String::new(), 0.0);
    let done = |answer: &[u32], score: f64| answer.len() >= decoding.limit || (score >= 1.0 && !decoding.whole);
    while !done(&answer, score) {
        let token = argmax(&logits) as u32;
        if decoding.side.ends(token) {
            break;
        }
        answer.push(token);
        if !decoding.whole {
            text = decoding.side.decode(&answer);
            score = (decoding.score)(&text);
        }
        if !done(&answer, score) {
            logits = session.feed(&[token], Logits::Last)?;
        }
    }
    if decoding.whole {
        text = decoding.side.decode(&answer);
        score = (decoding.score)(&text);
    }
    Ok((text, score))
}

/// Logits after the prompt's last token. Context and tail are fed apart only to show where the boundary is: the state
/// does not depend on it.
fn read<B: Backend>(session: &mut Session<'_, B>, prompt: &Prompt) -> Result<Vec<f32>> {
    session.feed(&prompt.context, Logits::None)?;
    Ok(session.feed(&prompt.tail, Logits::Last)?)
}
