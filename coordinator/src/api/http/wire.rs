//! OpenAI's request bodies, and what they mean here.
//!
//! A field that we know is honoured or refused by name. Fields that clients send without expecting
//! anything of the answer are ignored; any other is refused, as OpenAI does, because a typing error
//! must not change an answer in silence.
//!
//! A body is read field by field: what is not read is skipped, and lists are held no longer than
//! they may be, so that a body takes a bounded multiple of its own bytes.

mod anthropic;
mod fields;
mod lists;
mod read;
mod responses;
mod sessions;
#[cfg(test)]
mod tests;

use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{GenerateRequest, KvContract, Sampling, Stopping, tokenize_request};
use serde::Deserialize;
use serde::de::{Error, IgnoredAny, MapAccess};

pub use self::anthropic::{CountBody, MessagesBody};
use self::fields::{COMMON, Rest};
use self::lists::{Biases, MAX_CHOICES, Messages, Positions, Prompts, Stops};
pub use self::read::{PARSE_SPEED, RequestBody, Unreadable, read_body};
pub use self::responses::{ResponseBody, ResponseRequest};
pub use self::sessions::{
    AppendBody, CloseSessionBody, CreateSessionBody, ForkBody, OpenSessionBody,
};
use super::error::{HttpError, shorten};
use crate::service::Prompted;

/// Alternatives per token at most, as in OpenAI's API.
const MAX_TOP_LOGPROBS: u32 = 20;
/// Bytes of a name at most: each choice has a copy of its own.
const MAX_NAME_BYTES: usize = 1024;

/// What both kinds of request have.
#[derive(Debug, Clone, Default)]
pub struct Common {
    model: String,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    n: Option<usize>,
    stop: Option<Stops>,
    seed: Option<i64>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    logit_bias: Option<Biases>,
    /// Whether the answer comes as server-sent events.
    pub stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    ignore_eos: bool,
    priority: i32,
    kv_budget: Option<u32>,
    kv_policy: Option<String>,
    latent_memory: Option<String>,
    cache_salt: Option<String>,
    snapshot_at: Option<Positions>,
    session_id: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Body of `/v1/chat/completions`.
#[derive(Debug, Clone, Default)]
pub struct ChatRequest {
    /// What both kinds have.
    pub common: Common,
    messages: Messages,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    rest: Rest,
}

/// Body of `/v1/completions`.
#[derive(Debug, Clone, Default)]
pub struct CompletionRequest {
    /// What both kinds have.
    pub common: Common,
    prompt: Prompts,
    logprobs: Option<u32>,
    rest: Rest,
}

/// Body of `/tokenize`.
#[derive(Debug, Clone, Default)]
pub struct TokenizeBody {
    prompt: Option<String>,
    messages: Option<Messages>,
}

/// A request as the service takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Choices {
    /// The prompts, each with its choices, in the order of their indices.
    pub prompts: Vec<Prompted>,
    /// Choices of one prompt: usage counts a prompt once.
    pub per_prompt: usize,
    /// Whether a stream ends with usage.
    pub include_usage: bool,
}

impl Choices {
    /// Answers that are asked for, over all prompts.
    pub fn count(&self) -> usize {
        self.prompts.iter().map(|asked| asked.choices.len()).sum()
    }
}

/// Reads the value of the named field into the field of the same name.
macro_rules! read_field {
    ($body:expr, $field:expr, $values:expr; $($name:ident),* $(,)?) => {
        match $field {
            $(stringify!($name) => $body.$name = $values.next_value()?,)*
            _ => _ = $values.next_value::<IgnoredAny>()?,
        }
    };
}

impl RequestBody for ChatRequest {
    const OWN: &'static [&'static str] = &["messages", "logprobs", "top_logprobs"];
    const SHARED: &'static [&'static str] = &COMMON;
    const NEEDED: Option<&'static str> = Some("messages");

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &'static str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        if !Self::OWN.contains(&field) {
            return self.common.read(field, values);
        }
        read_field!(self, field, values; messages, logprobs, top_logprobs);
        Ok(())
    }

    fn read_other<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        self.rest.read(name, values)
    }
}

impl RequestBody for CompletionRequest {
    const OWN: &'static [&'static str] = &["prompt", "logprobs"];
    const SHARED: &'static [&'static str] = &COMMON;
    const NEEDED: Option<&'static str> = Some("prompt");

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &'static str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        if !Self::OWN.contains(&field) {
            return self.common.read(field, values);
        }
        read_field!(self, field, values; prompt, logprobs);
        Ok(())
    }

    fn read_other<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        self.rest.read(name, values)
    }
}

impl RequestBody for TokenizeBody {
    const OWN: &'static [&'static str] = &["prompt", "text", "messages"];
    const SHARED: &'static [&'static str] = &[];
    const NEEDED: Option<&'static str> = None;

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &'static str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        match field {
            // Another name of the same field.
            "text" => {
                if self.prompt.is_some() {
                    return Err(A::Error::duplicate_field("prompt"));
                }
                self.prompt = values.next_value()?;
            }
            "prompt" if self.prompt.is_some() => return Err(A::Error::duplicate_field("prompt")),
            _ => read_field!(self, field, values; prompt, messages),
        }
        Ok(())
    }

    fn read_other<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        _: &mut A,
    ) -> Result<(), A::Error> {
        let name = shorten(name);
        Err(A::Error::custom(format_args!("unknown field `{name}`")))
    }
}

impl TokenizeBody {
    /// What is to be tokenised.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn input(self) -> Result<tokenize_request::Input, HttpError> {
        match (self.prompt, self.messages) {
            (Some(text), None) => Ok(tokenize_request::Input::Text(text)),
            (None, Some(messages)) => Ok(tokenize_request::Input::Chat(messages.chat()?)),
            _ => Err(HttpError::invalid(
                "prompt",
                "send either `prompt` or `messages`",
            )),
        }
    }
}

impl ChatRequest {
    /// What is asked of the service.
    ///
    /// # Errors
    /// Names the field that is wrong or not supported.
    pub fn choices(self) -> Result<Choices, HttpError> {
        self.rest.check()?;
        let chat = self.messages.chat()?;
        let logprobs = match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (true, top) => Some(check_top("top_logprobs", top.unwrap_or(0))?),
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                return Err(HttpError::invalid(
                    "top_logprobs",
                    "top_logprobs needs logprobs: true",
                ));
            }
        };
        let count = 1;
        self.common
            .choices(vec![Input::Chat(chat)], count, logprobs)
    }
}

impl CompletionRequest {
    /// What is asked of the service.
    ///
    /// # Errors
    /// Names the field that is wrong or not supported.
    pub fn choices(self) -> Result<Choices, HttpError> {
        self.rest.check()?;
        let logprobs = self
            .logprobs
            .map(|top| check_top("logprobs", top))
            .transpose()?;
        let Prompts { inputs, count } = self.prompt;
        self.common.choices(inputs, count, logprobs)
    }
}

impl Common {
    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        read_field!(
            self, field, values;
            model, max_tokens, max_completion_tokens, temperature, top_p, n, stop, seed,
            frequency_penalty, presence_penalty, logit_bias, stream, stream_options, top_k, min_p,
            repetition_penalty, ignore_eos, priority, kv_budget, kv_policy, latent_memory,
            cache_salt, snapshot_at,
            session_id,
        );
        Ok(())
    }

    /// What is asked of `inputs`, which are all the `prompts` there are unless those are too many.
    fn choices(
        self,
        inputs: Vec<Input>,
        prompts: usize,
        logprobs: Option<u32>,
    ) -> Result<Choices, HttpError> {
        let per_prompt = self.n.unwrap_or(1);
        let count = per_prompt.saturating_mul(prompts);
        if count == 0 || count > MAX_CHOICES {
            let message = format!(
                "n times the number of prompts is {count}: ask for 1 to {MAX_CHOICES} choices"
            );
            return Err(HttpError::invalid("n", message));
        }
        let include_usage = self
            .stream_options
            .as_ref()
            .is_some_and(|options| options.include_usage);
        let request = self.request(logprobs)?;
        let choice = |index: usize| {
            let mut request = request.clone();
            if let Some(seed) = request
                .sampling
                .as_mut()
                .and_then(|sampling| sampling.seed.as_mut())
            {
                // Choices of one prompt differ.
                *seed = seed.wrapping_add(index as u64);
            }
            request
        };
        let prompted = |input| Prompted {
            input: Some(input),
            choices: (0..per_prompt).map(choice).collect(),
            cuts: Vec::new(),
        };
        Ok(Choices {
            prompts: inputs.into_iter().map(prompted).collect(),
            per_prompt,
            include_usage,
        })
    }

    /// All but the input.
    fn request(self, logprobs: Option<u32>) -> Result<GenerateRequest, HttpError> {
        for (field, name) in [
            ("model", Some(&self.model)),
            ("kv_policy", self.kv_policy.as_ref()),
            ("latent_memory", self.latent_memory.as_ref()),
            ("cache_salt", self.cache_salt.as_ref()),
            ("session_id", self.session_id.as_ref()),
        ] {
            let bytes = name.map_or(0, String::len);
            if bytes > MAX_NAME_BYTES {
                let message = format!("{field} has {bytes} bytes, the most is {MAX_NAME_BYTES}");
                return Err(HttpError::invalid(field, message));
            }
        }
        let top_k = match self.top_k.unwrap_or(0) {
            // As vLLM's clients say "no limit".
            -1 => 0,
            k => u32::try_from(k)
                .map_err(|_| HttpError::invalid("top_k", "top_k must be -1, 0 or positive"))?,
        };
        let sampling = Sampling {
            // OpenAI's default; over gRPC the default is greedy.
            temperature: Some(self.temperature.unwrap_or(1.0)),
            top_k,
            top_p: self.top_p,
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            seed: self.seed.map(i64::cast_unsigned),
            logit_bias: self.logit_bias.unwrap_or_default().entries()?,
            logprobs,
        };
        let stop = self.stop.unwrap_or_default().strings()?;
        let max_tokens = self.max_completion_tokens.or(self.max_tokens);
        let kv = KvContract {
            budget: self.kv_budget.unwrap_or(0),
            policy: self.kv_policy.unwrap_or_default(),
            memory: self.latent_memory.unwrap_or_default(),
            ..Default::default()
        };
        Ok(GenerateRequest {
            model: self.model,
            sampling: Some(sampling),
            stopping: Some(Stopping {
                max_tokens,
                stop,
                ignore_eos: self.ignore_eos,
            }),
            kv: Some(kv),
            priority: self.priority,
            cache_salt: self.cache_salt.unwrap_or_default(),
            snapshot_at: self.snapshot_at.unwrap_or_default().0,
            session_id: self.session_id.unwrap_or_default(),
            ..Default::default()
        })
    }
}

fn check_top(param: &str, top: u32) -> Result<u32, HttpError> {
    if top <= MAX_TOP_LOGPROBS {
        return Ok(top);
    }
    Err(HttpError::invalid(
        param,
        format!("{param} is {top}, the most is {MAX_TOP_LOGPROBS}"),
    ))
}
