//! What ends an answer.

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::Stopping;

use crate::config::Config;
use crate::model::ServedModel;

/// Stop strings of one request.
pub const MAX_STOP_STRINGS: usize = 16;
/// Bytes of one stop string.
pub const MAX_STOP_BYTES: usize = 256;
/// Token ids that end an answer, of one request.
pub const MAX_STOP_IDS: usize = 16;

const STOP: &str = "stopping.stop";
const STOP_IDS: &str = "stopping.stop_token_ids";

/// What ends an answer before its largest length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct End {
    /// None of them empty.
    pub stop: Vec<String>,
    /// Tokens beside the model's own end of sequence.
    pub stop_ids: Vec<u32>,
    /// Go on past the end of sequence.
    pub ignore_eos: bool,
    /// Nothing ends it before so many tokens.
    pub min_tokens: u32,
}

/// How long an answer may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    Tokens(u32),
    /// As long as the model's context has room.
    Context,
}

impl Limit {
    /// Tokens of an answer to a prompt of so many.
    pub(super) fn tokens(self, prompt: u64, model: &ServedModel) -> u32 {
        match self {
            Self::Tokens(tokens) => tokens,
            Self::Context => {
                let room = model.info.context_length.saturating_sub(prompt).max(1);
                u32::try_from(room).unwrap_or(u32::MAX)
            }
        }
    }
}

/// How long an answer may become.
pub(super) fn limit(stopping: &Stopping, config: &Config) -> Limit {
    match stopping.max_tokens {
        Some(tokens) => Limit::Tokens(tokens),
        None if stopping.fill_context => Limit::Context,
        None => Limit::Tokens(config.default_max_tokens),
    }
}

/// Checks what ends an answer of at most `limit`.
pub(super) fn validate(
    stopping: Stopping,
    limit: Limit,
    model: &ServedModel,
) -> Result<End, RequestError> {
    if stopping.stop.len() > MAX_STOP_STRINGS {
        let count = stopping.stop.len();
        let message = format!("{count} stop strings, over the limit of {MAX_STOP_STRINGS}");
        return Err(bad(STOP, message));
    }
    let allowed = 1..=MAX_STOP_BYTES;
    let mut stops = stopping.stop.iter().enumerate();
    if let Some((index, stop)) = stops.find(|(_, stop)| !allowed.contains(&stop.len())) {
        let message = format!(
            "stop string {index} has {} bytes, it must have 1 to {MAX_STOP_BYTES}",
            stop.len()
        );
        return Err(bad(STOP, message));
    }
    if stopping.stop_token_ids.len() > MAX_STOP_IDS {
        let count = stopping.stop_token_ids.len();
        let message = format!("{count} stop_token_ids, over the limit of {MAX_STOP_IDS}");
        return Err(bad(STOP_IDS, message));
    }
    let vocabulary = model.info.vocabulary;
    let mut ids = stopping.stop_token_ids.iter();
    if let Some(id) = ids.find(|id| u64::from(**id) >= vocabulary) {
        let message =
            format!("stop_token_ids has {id}, which is not below the vocabulary of {vocabulary}");
        return Err(bad(STOP_IDS, message));
    }
    if let Limit::Tokens(most @ 1..) = limit {
        check_least(stopping.min_tokens, most)?;
    }
    Ok(End {
        stop: stopping.stop,
        stop_ids: stopping.stop_token_ids,
        ignore_eos: stopping.ignore_eos,
        min_tokens: stopping.min_tokens,
    })
}

/// Refuses an answer that must be longer than it may be.
pub(super) fn check_least(least: u32, most: u32) -> Result<(), RequestError> {
    if least <= most || most == 0 {
        return Ok(());
    }
    let message = format!("min_tokens is {least}, over max_tokens, which is {most}");
    Err(bad("stopping.min_tokens", message))
}

fn bad(path: &'static str, message: String) -> RequestError {
    RequestError::new(Reason::BadStopping, message).in_field(path)
}
