//! From the wire to [`ValidRequest`], the only type that admission takes: every field is checked,
//! every default filled in.

mod bounds;
mod contract;
mod marks;
mod prompt;
mod sampling;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use palimpsest_proto::contract::Contract;
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::internal::v1::SpanParent;
use palimpsest_proto::v1::{GenerateRequest, KvContract, Sampling, Stopping};
use tokio::time::Instant;

pub use self::bounds::{answer_bytes, too_large};
pub use self::marks::{Cut, Marked, tokenize_marked};
pub use self::prompt::{
    MESSAGE_BYTES, check_ids, check_input, encode, encode_text, render, tokenize, weight,
};
pub use self::sampling::{MAX_BIASES, MAX_LOGPROBS};
use crate::config::Config;
use crate::flow::Flow;
use crate::ids::RequestId;
use crate::model::ServedModel;
use crate::scheduler::{Cost, Reuse};

/// Stop strings of one request.
pub const MAX_STOP_STRINGS: usize = 16;
/// Bytes of one stop string.
pub const MAX_STOP_BYTES: usize = 256;

/// Bytes of a salt.
pub const MAX_SALT_BYTES: usize = 256;
/// Positions of one prompt at which a client has states kept.
pub const MAX_MARKS: usize = 16;

/// Priorities that a client may ask for.
pub const PRIORITIES: RangeInclusive<i32> = -100..=100;

const STOP: &str = "stopping.stop";

/// A request that can be served as it stands.
#[derive(Debug, Clone)]
pub struct ValidRequest {
    /// For logs and metadata.
    pub id: RequestId,
    /// At least one token, all of them in the vocabulary.
    pub prompt: Arc<[u32]>,
    /// With the seed drawn if the client gave none.
    pub sampling: Sampling,
    /// None of them empty.
    pub stop: Vec<String>,
    /// 0: the prompt is read, and that is all.
    pub max_tokens: u32,
    /// Go on past the end of sequence.
    pub ignore_eos: bool,
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
    /// For the client, in usage.
    pub warnings: Vec<String>,
    /// What ranks are told when it is traced.
    pub trace: Option<SpanParent>,
    /// What it asks of kept states.
    pub caching: Caching,
    /// What of it may be kept and used again; `None`: nothing.
    pub reuse: Option<Reuse>,
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
}

/// A request all of whose fields but the prompt are known to be right.
#[derive(Debug, Clone)]
pub struct Checked {
    id: RequestId,
    sampling: Sampling,
    stopping: Stopping,
    max_tokens: u32,
    kv: Contract,
    arrived: Instant,
    /// When it is given up.
    pub deadline: Instant,
    /// Larger is served first.
    pub priority: i32,
    retention_report: bool,
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
    let limit = validate_deadline(request.deadline_ms, timeout, config)?;
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
    let max_tokens = validate_stopping(&stopping, config)?;
    let priority = validate_priority(request.priority)?;
    let caching = validate_caching(request.cache_salt, request.snapshot_at)?;
    let kv = contract::validate(&request.kv.unwrap_or_default(), model, config)?;
    Ok(Checked {
        id,
        sampling,
        stopping,
        max_tokens,
        kv,
        arrived,
        deadline: arrived + limit,
        priority,
        retention_report: request.retention_report,
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
    /// The same request, of which no token is asked for.
    #[must_use]
    pub fn without_answer(self) -> Self {
        Self {
            max_tokens: 0,
            ..self
        }
    }

    /// The same request, which has states kept at these positions of its prompt as well.
    #[must_use]
    pub fn marked_at(mut self, marks: &[u64]) -> Self {
        self.caching.marks.extend_from_slice(marks);
        self
    }

    /// The request with its prompt, which several choices may share.
    ///
    /// # Errors
    /// `TooLong`, `NeverFits`, `AnswerTooLarge`.
    pub fn with_prompt(
        self,
        prompt: Arc<[u32]>,
        model: &ServedModel,
        config: &Config,
    ) -> Result<ValidRequest, RequestError> {
        let max_tokens = self.max_tokens;
        let total = prompt.len() as u64 + u64::from(max_tokens);
        if total > config.max_total_tokens {
            let most = config.max_total_tokens;
            let message = format!(
                "{} prompt tokens and {max_tokens} of answer are {total}, over the limit of {most}",
                prompt.len()
            );
            return Err(RequestError::new(Reason::TooLong, message));
        }
        let cost = contract::cost(&self.kv, model, total)?;
        if self.retention_report {
            bounds::check_report(&self.kv, model, config, total)?;
        }
        Ok(ValidRequest {
            id: self.id,
            warnings: contract::warnings(&self.kv, model, total),
            prompt,
            sampling: self.sampling,
            stop: self.stopping.stop,
            max_tokens,
            ignore_eos: self.stopping.ignore_eos,
            kv: self.kv,
            cost,
            arrived: self.arrived,
            deadline: self.deadline,
            priority: self.priority,
            flow: Flow::Local,
            retention_report: self.retention_report,
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

fn validate_priority(priority: i32) -> Result<i32, RequestError> {
    if PRIORITIES.contains(&priority) {
        return Ok(priority);
    }
    let (least, most) = (PRIORITIES.start(), PRIORITIES.end());
    let message = format!("priority is {priority}, it must be {least} to {most}");
    Err(RequestError::new(Reason::BadPriority, message).in_field("priority"))
}

fn validate_deadline(
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

/// Returns the largest number of tokens to generate.
fn validate_stopping(stopping: &Stopping, config: &Config) -> Result<u32, RequestError> {
    let bad =
        |path, message: String| Err(RequestError::new(Reason::BadStopping, message).in_field(path));
    if stopping.max_tokens == Some(0) {
        let message = "max_tokens is 0, it must be at least 1".to_owned();
        return bad("stopping.max_tokens", message);
    }
    if stopping.stop.len() > MAX_STOP_STRINGS {
        return bad(
            STOP,
            format!(
                "{} stop strings, over the limit of {MAX_STOP_STRINGS}",
                stopping.stop.len()
            ),
        );
    }
    for (index, stop) in stopping.stop.iter().enumerate() {
        if stop.is_empty() || stop.len() > MAX_STOP_BYTES {
            return bad(
                STOP,
                format!(
                    "stop string {index} has {} bytes, it must have 1 to {MAX_STOP_BYTES}",
                    stop.len()
                ),
            );
        }
    }
    Ok(stopping.max_tokens.unwrap_or(config.default_max_tokens))
}
