//! From the wire to [`ValidRequest`], the only type that admission takes: every field is checked,
//! every default filled in.

mod bounds;
mod chat;
mod contract;
mod guide;
mod marks;
mod prompt;
mod sampling;
mod stopping;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use palimpsest_proto::contract::Contract;
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::internal::v1::{CallGuide, SpanParent};
use palimpsest_proto::v1::{GenerateRequest, Guide, KvContract, Pooling, Sampling, Stopping};
use tokio::time::Instant;

pub use self::bounds::{answer_bytes, too_large};
pub use self::chat::MAX_TOOLS;
pub use self::guide::{GuidedCalls, compile as compile_guide, compile_calls};
pub use self::marks::{Cut, Marked, all_cuts, tokenize_marked};
pub use self::prompt::{
    MESSAGE_BYTES, Prompt, answer_format, check_ids, check_input, encode, encode_behind,
    encode_rendered, encode_text, infilling, render, tokenize, weight,
};
pub use self::sampling::{MAX_BIASES, MAX_LOGPROBS};
use self::stopping::Limit;
pub use self::stopping::{End, MAX_STOP_BYTES, MAX_STOP_IDS, MAX_STOP_STRINGS};
use crate::config::Config;
use crate::flow::Flow;
use crate::ids::RequestId;
use crate::model::ServedModel;
use crate::scheduler::{Cost, Reuse};
use crate::text::AnswerFormat;

/// Bytes of a salt.
pub const MAX_SALT_BYTES: usize = 256;
/// Positions of one prompt at which a client has states kept.
pub const MAX_MARKS: usize = 16;

/// Priorities that a client may ask for.
pub const PRIORITIES: RangeInclusive<i32> = -100..=100;

/// A request that can be served as it stands.
#[derive(Debug, Clone)]
pub struct ValidRequest {
    /// For logs and metadata.
    pub id: RequestId,
    /// At least one token, all of them in the vocabulary.
    pub prompt: Arc<[u32]>,
    /// With the seed drawn if the client gave none.
    pub sampling: Sampling,
    /// What ends the answer before that.
    pub end: End,
    /// 0: the prompt is read, and that is all.
    pub max_tokens: u32,
    /// What the answer must be; it was compiled once.
    pub guide: Option<Guide>,
    /// What its calls must be, and what is no call beside them; never beside `guide`.
    pub calls: Option<Arc<CallGuide>>,
    /// What is shown of the answer.
    pub show: Show,
    /// How the answer is read; `None`: as text.
    pub format: Option<Arc<AnswerFormat>>,
    /// What the sequence may hold.
    pub kv: Contract,
    /// What it reserves on each rank; fits an empty arena.
    pub cost: Cost,
    /// When it came.
    pub arrived: Instant,
    /// When it is given up.
    pub deadline: Instant,
    /// Larger is served first.
    pub priority: i32,
    /// Whose it is.
    pub flow: Flow,
    /// Report retained positions at the end.
    pub retention_report: bool,
    /// Report them too at every multiple of this many tokens, and where the prompt ends; 0: not.
    pub map_every: u64,
    /// What the final states of the prompt's tokens become, if that is asked for.
    pub embedding: Pooling,
    /// For the client, in usage, whatever comes of it: see [`Self::warnings_after`].
    pub warnings: Vec<String>,
    /// What ranks are told when it is traced.
    pub trace: Option<SpanParent>,
    /// What it asks of kept states.
    pub caching: Caching,
    /// What of it may be kept and used again; `None`: nothing.
    pub reuse: Option<Reuse>,
}

/// What a client sees of an answer beside its text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Show {
    /// The text of control tokens.
    pub special_tokens: bool,
    /// The stop string that ended it.
    pub stop: bool,
    /// Token ids of prompt and answer.
    pub token_ids: bool,
}

/// What a request asks of kept states.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caching {
    /// Only requests of the same salt begin with its states.
    pub salt: String,
    /// Positions of its prompt at which states are kept.
    pub marks: Vec<u64>,
}

impl ValidRequest {
    /// Largest number of tokens that the sequence can reach.
    pub fn max_total_tokens(&self) -> u64 {
        self.prompt.len() as u64 + u64::from(self.max_tokens)
    }

    /// What the client should know once `read` tokens were read, those of the answer among them.
    /// What the answer might have become is no reason to warn.
    pub fn warnings_after(&self, read: u64, model: &ServedModel) -> Vec<String> {
        let beyond = contract::beyond_trained(&self.kv, model, read);
        beyond.into_iter().chain(self.warnings.clone()).collect()
    }

    /// Whether it begins with the same kept states as another request of the same prompt.
    pub fn has_states_of(&self, other: &Self) -> bool {
        self.kv == other.kv && self.caching == other.caching
    }
}

/// A request all of whose fields but the prompt are known to be right.
#[derive(Debug, Clone)]
pub struct Checked {
    id: RequestId,
    sampling: Sampling,
    end: End,
    limit: Limit,
    /// What the answer must be.
    pub guide: Option<Guide>,
    /// What was left out of the guide.
    pub guide_warnings: Vec<String>,
    /// What its calls must be.
    calls: Option<Arc<CallGuide>>,
    /// Tokens of the prompt that are kept, from its end.
    truncate: Option<u64>,
    show: Show,
    kv: Contract,
    arrived: Instant,
    /// When it is given up.
    pub deadline: Instant,
    /// Larger is served first.
    pub priority: i32,
    retention_report: bool,
    retention_map: bool,
    embedding: Pooling,
    caching: Caching,
}

/// Checks all of a request but its input, in time that does not grow with the prompt. It came at
/// `arrived`; `timeout` is the transport's deadline, from arrival.
///
/// # Errors
/// What is wrong with the request, with numbers, for the client.
pub fn check(
    request: GenerateRequest,
    timeout: Option<Duration>,
    arrived: Instant,
    model: &ServedModel,
    config: &Config,
) -> Result<Checked, RequestError> {
    let time = time_limit(request.deadline_ms, timeout, config)?;
    let id = RequestId::parse(&request.request_id).ok_or_else(|| {
        let message = format!(
            "request_id must be at most {} printable ASCII characters",
            RequestId::MAX_BYTES
        );
        RequestError::new(Reason::BadRequestId, message)
    })?;
    model.check_name(&request.model)?;
    let sampling = sampling::validate(request.sampling.unwrap_or_default(), model.info.vocabulary)?;
    let stopping = request.stopping.unwrap_or_default();
    let embedding = validate_embedding(request.embedding, &stopping)?;
    let limit = if embedding == Pooling::Unspecified {
        stopping::limit(&stopping, config)
    } else {
        Limit::Tokens(0)
    };
    if let Some(guide) = &request.guide {
        guide::validate(guide, &stopping)?;
    }
    let end = stopping::validate(stopping, limit, model)?;
    let truncate = validate_truncation(request.truncate_prompt_tokens, &request.session_id)?;
    let priority = validate_priority(request.priority)?;
    let caching = validate_caching(request.cache_salt, request.snapshot_at)?;
    let kv = contract::validate(&request.kv.unwrap_or_default(), model, config)?;
    Ok(Checked {
        id,
        sampling,
        guide: request.guide,
        guide_warnings: Vec::new(),
        calls: None,
        end,
        limit,
        truncate,
        show: Show {
            special_tokens: request.show_special_tokens,
            stop: request.include_stop,
            token_ids: request.return_token_ids,
        },
        kv,
        arrived,
        deadline: arrived + time,
        priority,
        retention_report: request.retention_report,
        retention_map: request.retention_map,
        embedding,
        caching,
    })
}

/// The contract that was asked for, with every default filled in, if this server can keep it.
///
/// # Errors
/// `BadContract`, with the field.
pub fn contract(
    asked: &KvContract,
    model: &ServedModel,
    config: &Config,
) -> Result<Contract, RequestError> {
    contract::validate(asked, model, config)
}

impl Checked {
    /// Whether a beginning of the prompt may be left out.
    pub const fn truncates(&self) -> bool {
        self.truncate.is_some()
    }

    /// The same request, of which no token is asked for.
    #[must_use]
    pub fn without_answer(self) -> Self {
        Self {
            limit: Limit::Tokens(0),
            ..self
        }
    }

    /// The same request, which has states kept at these positions of its prompt as well.
    #[must_use]
    pub fn marked_at(mut self, marks: &[u64]) -> Self {
        self.caching.marks.extend_from_slice(marks);
        self
    }

    /// The same request, whose calls are guided so. A guide of the answer is part of that.
    ///
    /// # Errors
    /// `BadStopping` for what keeps a guided answer from its end.
    pub fn calling(mut self, calls: GuidedCalls) -> Result<Self, RequestError> {
        if calls.guide.is_some() {
            let End {
                ignore_eos,
                min_tokens,
                ..
            } = self.end;
            guide::check_end(ignore_eos, min_tokens, "calls that follow schemas")?;
        }
        self.calls = calls.guide;
        self.guide_warnings.extend(calls.warnings);
        Ok(self)
    }

    /// The request with its prompt, which several choices may share.
    ///
    /// # Errors
    /// `TooLong`, `NeverFits`, `AnswerTooLarge`.
    pub fn with_prompt(
        self,
        prompt: Prompt,
        model: &ServedModel,
        config: &Config,
    ) -> Result<ValidRequest, RequestError> {
        let Prompt {
            ids,
            format,
            end: ends,
        } = prompt;
        // What a guide alone guides is the answer itself: no thought comes before it, and no call.
        let format = format.filter(|_| self.guide.is_none() || self.calls.is_some());
        let guide = self.guide.filter(|_| self.calls.is_none());
        let mut end = self.end;
        if !end.ignore_eos {
            let of_format = format.iter().map(|format| format.ends());
            let of_format = of_format.flat_map(|ends| model.tokenizer.control_ids(ends));
            end.stop_ids.extend(of_format.chain(ends));
        }
        let prompt = truncated(ids, self.truncate);
        let max_tokens = self.limit.tokens(prompt.len() as u64, model);
        stopping::check_least(end.min_tokens, max_tokens)?;
        let total = prompt.len() as u64 + u64::from(max_tokens);
        if total > config.max_total_tokens {
            let most = config.max_total_tokens;
            let message = format!(
                "{} prompt tokens and {max_tokens} of answer are {total}, over the limit of {most}",
                prompt.len()
            );
            return Err(RequestError::new(Reason::TooLong, message));
        }
        bounds::check_prompt_logprobs(&self.sampling, prompt.len(), config)?;
        let cost = contract::cost(&self.kv, model, total)?;
        let reports = [
            ("retention_report", self.retention_report),
            ("retention_map", self.retention_map),
        ];
        if let Some((field, _)) = reports.into_iter().find(|(_, asked)| *asked) {
            bounds::check_report(field, &self.kv, model, config, total)?;
        }
        let map_every = match self.retention_map {
            true => bounds::map_every(total, model.geometry.stride),
            false => 0,
        };
        Ok(ValidRequest {
            id: self.id,
            warnings: self.guide_warnings,
            prompt,
            sampling: self.sampling,
            end,
            max_tokens,
            guide,
            calls: self.calls,
            show: self.show,
            format,
            kv: self.kv,
            cost,
            arrived: self.arrived,
            deadline: self.deadline,
            priority: self.priority,
            flow: Flow::Local,
            retention_report: self.retention_report,
            map_every,
            embedding: self.embedding,
            trace: None,
            caching: self.caching,
            reuse: None,
        })
    }
}

fn validate_caching(salt: String, marks: Vec<u64>) -> Result<Caching, RequestError> {
    let bad = |path, message| Err(RequestError::new(Reason::BadReuse, message).in_field(path));
    if salt.len() > MAX_SALT_BYTES {
        let bytes = salt.len();
        let message = format!("cache_salt has {bytes} bytes, the most is {MAX_SALT_BYTES}");
        return bad("cache_salt", message);
    }
    if marks.len() > MAX_MARKS {
        let count = marks.len();
        let message = format!("snapshot_at has {count} positions, the most is {MAX_MARKS}");
        return bad("snapshot_at", message);
    }
    Ok(Caching { salt, marks })
}

fn validate_embedding(asked: i32, stopping: &Stopping) -> Result<Pooling, RequestError> {
    let bad = |message| Err(RequestError::new(Reason::BadEmbedding, message).in_field("embedding"));
    let Ok(pooling) = Pooling::try_from(asked) else {
        let message = format!("embedding is {asked}, which is no pooling: send MEAN or LAST");
        return bad(message);
    };
    let tokens = stopping.max_tokens.unwrap_or(0);
    if pooling != Pooling::Unspecified && tokens > 0 {
        let message = format!(
            "an embedding is asked for, and an answer of {tokens} tokens: leave one of them out"
        );
        return bad(message);
    }
    Ok(pooling)
}

fn validate_priority(priority: i32) -> Result<i32, RequestError> {
    if PRIORITIES.contains(&priority) {
        return Ok(priority);
    }
    let (least, most) = (PRIORITIES.start(), PRIORITIES.end());
    let message = format!("priority is {priority}, it must be {least} to {most}");
    Err(RequestError::new(Reason::BadPriority, message).in_field("priority"))
}

/// The time that a request has, from its arrival: the least of what it says, of its transport's
/// deadline and of what this server gives any.
///
/// # Errors
/// `DeadlineInQueue` if there is none.
pub fn time_limit(
    deadline_ms: u64,
    timeout: Option<Duration>,
    config: &Config,
) -> Result<Duration, RequestError> {
    let own = (deadline_ms > 0).then(|| Duration::from_millis(deadline_ms));
    let limit = own
        .into_iter()
        .chain(timeout)
        .chain([config.request_limit])
        .min()
        .unwrap_or(config.request_limit);
    if limit.is_zero() {
        return Err(RequestError::new(
            Reason::DeadlineInQueue,
            "the deadline had passed when the request came",
        ));
    }
    Ok(limit)
}

/// Tokens of a prompt that are kept, if that is asked for and can be done.
fn validate_truncation(asked: Option<u64>, session: &str) -> Result<Option<u64>, RequestError> {
    let bad = |message| {
        let error = RequestError::new(Reason::TooLong, message);
        Err(error.in_field("truncate_prompt_tokens"))
    };
    match asked {
        Some(0) => bad("truncate_prompt_tokens is 0, it must be at least 1"),
        Some(_) if !session.is_empty() => {
            bad("a session keeps all of its log: leave truncate_prompt_tokens out")
        }
        asked => Ok(asked),
    }
}

/// The last tokens of a prompt, as many as are kept.
fn truncated(prompt: Arc<[u32]>, kept: Option<u64>) -> Arc<[u32]> {
    let kept = kept.and_then(|kept| usize::try_from(kept).ok());
    match kept {
        Some(kept) if kept < prompt.len() => prompt[prompt.len() - kept..].into(),
        _ => prompt,
    }
}
