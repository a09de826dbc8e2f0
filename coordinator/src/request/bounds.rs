//! What an answer may become, by arithmetic on its request.

use palimpsest_proto::contract::Contract;
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::Sampling;

use crate::config::Config;
use crate::model::ServedModel;

/// Bytes of retention reports of all running sequences together, in what a rank answers to a step:
/// half of what is read of such an answer (256 MiB).
const REPORTS_BYTES: u64 = 128 << 20;
/// A position in a report, as a varint of a u32 at most.
const POSITION_BYTES: u64 = 5;
/// Maps of what is retained that a request has, about.
const MAPS: u64 = 128;
/// A token with its log-probability as JSON: its text and its bytes as numbers, both short.
const LOGPROB_BYTES: u64 = 96;

/// Tokens from one map of what is retained to the next, in a sequence of `total` tokens at most: a
/// map has a byte for each token, so all maps of a long sequence would have many.
pub(super) fn map_every(total: u64, stride: u64) -> u64 {
    stride * total.div_ceil(stride.saturating_mul(MAPS)).max(1)
}

/// Refuses a report, asked for by `field`, that could be larger than a sequence's share of a rank's
/// answer.
pub(super) fn check_report(
    field: &'static str,
    contract: &Contract,
    model: &ServedModel,
    config: &Config,
    total: u64,
) -> Result<(), RequestError> {
    let held = match contract {
        Contract::Full => total,
        // Between two boundaries a head holds up to a stride beyond its budget. Budgets that are
        // pooled over heads move positions between heads and do not add any.
        Contract::Bounded(bounded) => total.min(u64::from(bounded.budget) + model.geometry.stride),
    };
    let needed = model
        .all_heads()
        .saturating_mul(held)
        .saturating_mul(POSITION_BYTES);
    let share = REPORTS_BYTES / config.max_running.max(1) as u64;
    if needed <= share {
        return Ok(());
    }
    let message = format!(
        "a retention report of {} heads with {held} positions each takes {needed} bytes, over the \
         limit of {share}: lower kv.budget, or leave {field} out",
        model.all_heads()
    );
    Err(RequestError::new(Reason::AnswerTooLarge, message).in_field(field))
}

/// Refuses log-probabilities of a prompt of `tokens` tokens that are more than is held of an
/// answer.
pub(super) fn check_prompt_logprobs(
    sampling: &Sampling,
    tokens: usize,
    config: &Config,
) -> Result<(), RequestError> {
    let Some(top) = sampling.prompt_logprobs else {
        return Ok(());
    };
    let from = sampling.prompt_logprobs_from;
    if from > 0 && from >= tokens as u64 {
        let message = format!(
            "prompt_logprobs_from is {from}, and the prompt has {tokens} tokens: name one of them"
        );
        let error = RequestError::new(Reason::BadSampling, message);
        return Err(error.in_field("sampling.prompt_logprobs_from"));
    }
    let tokens = tokens as u64 - from;
    let needed = answer_bytes(1, tokens, u64::from(top));
    let most = config.max_answer_bytes as u64;
    if needed <= most {
        return Ok(());
    }
    let message = format!(
        "log-probabilities of {tokens} prompt tokens with {top} alternatives each take about \
         {needed} bytes, over the limit of {most} for one answer: send the prompt in parts, or ask \
         for fewer alternatives"
    );
    let error = RequestError::new(Reason::AnswerTooLarge, message);
    Err(error.in_field("sampling.prompt_logprobs"))
}

/// Why an answer ends that has become larger than what is held of one.
pub fn too_large(most: usize) -> RequestError {
    let message = format!(
        "the answer has passed {most} bytes, the most that is held of one: ask for a stream, or \
         for fewer tokens"
    );
    RequestError::new(Reason::AnswerTooLarge, message)
}

/// Bytes of log-probabilities in an answer of `choices` times `max_tokens` tokens, each with `top`
/// alternatives, as JSON and roughly.
pub fn answer_bytes(choices: u64, max_tokens: u64, top: u64) -> u64 {
    choices
        .saturating_mul(max_tokens)
        .saturating_mul(top + 1)
        .saturating_mul(LOGPROB_BYTES)
}
