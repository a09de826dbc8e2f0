//! One prompt under one contract.

use std::time::Instant;

use palimpsest_engine::decoder::Logits;
use palimpsest_engine::kv::Contract;
use palimpsest_engine::offline::{Mark, OfflineSequence};
use palimpsest_kernels::Backend;

use crate::contracts::{EntrySize, held};
use crate::prompt::Prompt;
use crate::stats::{argmax, log_probability};
use crate::{Error, Result, Subject, TextSide};

/// How a greedily decoded answer is judged.
pub struct Decoding<'a> {
    /// Tokens at most.
    pub limit: usize,
    /// Score of a text, from 0 to 1.
    pub score: &'a dyn Fn(&str) -> f64,
    /// Whether the score can fall when text is added at the end, so that every answer must be
    /// decoded to its end.
    pub whole: bool,
}

/// A greedily decoded answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// Its text.
    pub text: String,
    /// From 0 to 1.
    pub score: f64,
}

/// What a prompt gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Mean log-likelihood per answer token, nats, teacher-forced.
    pub loglik: f64,
    /// Whether greedy decoding gives the expected answer: at every token of it the expected one is
    /// the most likely.
    pub exact: bool,
    /// Mean entries per KV head when the first answer token is produced, latent memory included.
    pub held: f64,
    /// What was decoded; `None` when the expected answer is decoded, which needs no second pass.
    pub decoded: Option<Decoded>,
    /// Seconds: reading the prompt, the expected answer, decoding.
    pub seconds: [f64; 3],
}

/// Reads the context that all prompts share once, and for each of them the rest; scores the
/// expected answer, and decodes one greedily unless that has shown that it is the expected one.
/// Nothing is read twice, unless an answer reaches the next boundary. `decodings`: one for each
/// prompt, or none.
///
/// # Errors
/// Those of the rank; [`Error::NotANumber`].
pub fn measure<B: Backend>(
    subject: &mut Subject<'_, B>,
    contract: &Contract,
    prompts: &[Prompt],
    decodings: &[Decoding<'_>],
) -> Result<Vec<Measured>> {
    let mut started = Instant::now();
    let Some(context) = prompts.first().map(|prompt| &*prompt.context) else {
        return Ok(Vec::new());
    };
    debug_assert!(
        prompts.iter().all(|prompt| prompt.context == context),
        "prompts share their context"
    );
    let side = subject.side;
    let mut sequence = OfflineSequence::open(subject.runner, contract.clone())?;
    sequence.feed(context, Logits::None)?;
    let mark = sequence.mark();
    let mut found = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.iter().enumerate() {
        if index > 0 {
            go_back(&mut sequence, &mark, &[context])?;
        }
        let decoding = decodings.get(index);
        found.push(ask(&mut sequence, side, prompt, decoding, started)?);
        started = Instant::now();
    }
    Ok(found)
}

/// Brings the sequence back to where `mark` was set, after it had read `read`.
fn go_back<B: Backend>(
    sequence: &mut OfflineSequence<'_, B>,
    mark: &Mark,
    read: &[&[u32]],
) -> Result<()> {
    if !sequence.rewind(mark) {
        sequence.restart()?;
        read.iter()
            .try_for_each(|tokens| sequence.feed(tokens, Logits::None).map(|_| ()))?;
    }
    Ok(())
}

/// The rest of a prompt after its context, and its answers.
fn ask<B: Backend>(
    sequence: &mut OfflineSequence<'_, B>,
    side: &dyn TextSide,
    prompt: &Prompt,
    decoding: Option<&Decoding<'_>>,
    started: Instant,
) -> Result<Measured> {
    let policy = sequence.cache().policy.name().to_string();
    let size = EntrySize::of(sequence.runner(), &policy);
    let vocabulary = sequence.runner().decoder().config().vocabulary;
    let first = sequence.feed(&prompt.tail, Logits::Last)?;
    let held = held(sequence.cache(), size);
    let read_seconds = started.elapsed().as_secs_f64();
    let mark = sequence.mark();
    let given = &prompt.answer[..prompt.answer.len() - 1];
    let rest = if given.is_empty() {
        Vec::new()
    } else {
        sequence.feed(given, Logits::All)?
    };
    let (mut sum, mut exact) = (0.0, true);
    for (&token, logits) in prompt
        .answer
        .iter()
        .zip(first.chunks(vocabulary).chain(rest.chunks(vocabulary)))
    {
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
            go_back(sequence, &mark, &[&prompt.context, &prompt.tail])?;
            Some(greedy(sequence, side, first, decoding)?)
        }
    };
    let all = started.elapsed().as_secs_f64();
    let seconds = [
        read_seconds,
        forced_seconds,
        all - read_seconds - forced_seconds,
    ];
    Ok(Measured {
        loglik: sum / prompt.answer.len() as f64,
        exact,
        held,
        decoded,
        seconds,
    })
}

/// Answers greedily, up to the limit or the model's end of the answer, or as soon as nothing can be
/// gained any more.
fn greedy<B: Backend>(
    sequence: &mut OfflineSequence<'_, B>,
    side: &dyn TextSide,
    mut logits: Vec<f32>,
    decoding: &Decoding<'_>,
) -> Result<Decoded> {
    let mut answer = Vec::new();
    let (mut text, mut score) = (String::new(), 0.0);
    let done = |answer: &[u32], score: f64| {
        answer.len() >= decoding.limit || (score >= 1.0 && !decoding.whole)
    };
    while !done(&answer, score) {
        let token = argmax(&logits) as u32;
        if side.ends(token) {
            break;
        }
        answer.push(token);
        if !decoding.whole {
            text = side.decode(&answer);
            score = (decoding.score)(&text);
        }
        if !done(&answer, score) {
            logits = sequence.feed(&[token], Logits::Last)?;
        }
    }
    if decoding.whole {
        text = side.decode(&answer);
        score = (decoding.score)(&text);
    }
    Ok(Decoded { text, score })
}
