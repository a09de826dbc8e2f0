//! OpenAI's request bodies, and what they mean here.
//!
//! A field that we know is honoured or refused by name. Fields that clients send without expecting
//! anything of the answer are ignored; any other is refused, as OpenAI does, because a typing error
//! must not change an answer in silence.

mod fields;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{
    Chat, ChatMessage, GenerateRequest, KvContract, Sampling, Stopping, TokenIds,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::HttpError;

/// Choices of one request at most, over all its prompts.
pub const MAX_CHOICES: usize = 16;
/// Alternatives per token at most, as in OpenAI's API.
const MAX_TOP_LOGPROBS: u32 = 20;

/// What both kinds of request have.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Common {
    #[serde(default)]
    model: String,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    n: Option<usize>,
    stop: Option<OneOrMany>,
    seed: Option<i64>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    /// Whether the answer comes as server-sent events.
    pub stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    #[serde(default)]
    ignore_eos: bool,
    #[serde(default)]
    priority: i32,
    kv_budget: Option<u32>,
    kv_policy: Option<String>,
    latent_memory: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Body of `/v1/chat/completions`.
#[derive(Debug, Clone, Deserialize)]
pub struct ChatRequest {
    /// What both kinds have.
    #[serde(flatten)]
    pub common: Common,
    messages: Vec<Message>,
    #[serde(default)]
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Clone, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Option<Content>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Clone, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: String,
}

/// Body of `/v1/completions`.
#[derive(Debug, Clone, Deserialize)]
pub struct CompletionRequest {
    /// What both kinds have.
    #[serde(flatten)]
    pub common: Common,
    prompt: Prompt,
    logprobs: Option<u32>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

/// A request as the service takes it, once for each choice, in the order of their indices.
#[derive(Debug, Clone, PartialEq)]
pub struct Choices {
    /// One for each choice.
    pub requests: Vec<GenerateRequest>,
    /// Choices of one prompt: usage counts a prompt once.
    pub per_prompt: usize,
    /// Whether a stream ends with usage.
    pub include_usage: bool,
}

/// A body that can be read field by field.
pub trait RequestBody: DeserializeOwned {
    /// The JSON of a body without anything that may be left out.
    const LEAST: &'static str;
}

impl RequestBody for ChatRequest {
    const LEAST: &'static str = r#"{"messages":[]}"#;
}

impl RequestBody for CompletionRequest {
    const LEAST: &'static str = r#"{"prompt":""}"#;
}

/// The name of the field for which a body that is JSON cannot be read as `T`, if one alone is at
/// fault.
pub fn field_at_fault<T: RequestBody>(body: &[u8]) -> Option<String> {
    let fields: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let least: Map<String, Value> = serde_json::from_str(T::LEAST).ok()?;
    let is_bad = |name: &String, value: &Value| {
        let mut body = least.clone();
        body.insert(name.clone(), value.clone());
        serde_json::from_value::<T>(Value::Object(body)).is_err()
    };
    let fault = fields.iter().find(|(name, value)| is_bad(name, value));
    fault.map(|(name, _)| name.clone())
}

impl ChatRequest {
    /// What is asked of the service.
    ///
    /// # Errors
    /// Names the field that is wrong or not supported.
    pub fn choices(self) -> Result<Choices, HttpError> {
        fields::check(&self.rest)?;
        let mut messages = Vec::with_capacity(self.messages.len());
        for (index, message) in self.messages.into_iter().enumerate() {
            messages.push(ChatMessage {
                content: text_of(message.content, index)?,
                role: message.role,
            });
        }
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
        let chat = Chat {
            messages,
            answer_prefix: String::new(),
        };
        self.common.choices(vec![Input::Chat(chat)], logprobs)
    }
}

impl CompletionRequest {
    /// What is asked of the service.
    ///
    /// # Errors
    /// Names the field that is wrong or not supported.
    pub fn choices(self) -> Result<Choices, HttpError> {
        fields::check(&self.rest)?;
        let ids = |ids| Input::TokenIds(TokenIds { ids });
        let inputs = match self.prompt {
            Prompt::Text(text) => vec![Input::Text(text)],
            Prompt::Texts(texts) => texts.into_iter().map(Input::Text).collect(),
            Prompt::Ids(list) => vec![ids(list)],
            Prompt::IdLists(lists) => lists.into_iter().map(ids).collect(),
        };
        let logprobs = self
            .logprobs
            .map(|top| check_top("logprobs", top))
            .transpose()?;
        self.common.choices(inputs, logprobs)
    }
}

impl Common {
    fn choices(self, inputs: Vec<Input>, logprobs: Option<u32>) -> Result<Choices, HttpError> {
        let per_prompt = self.n.unwrap_or(1);
        let count = per_prompt.saturating_mul(inputs.len());
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
        let with = |index: usize, input: &Input| {
            let mut request = request.clone();
            request.input = Some(input.clone());
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
        let requests = inputs
            .iter()
            .flat_map(|input| (0..per_prompt).map(move |index| (index, input)));
        let requests = requests.map(|(index, input)| with(index, input)).collect();
        Ok(Choices {
            requests,
            per_prompt,
            include_usage,
        })
    }

    /// All but the input.
    fn request(self, logprobs: Option<u32>) -> Result<GenerateRequest, HttpError> {
        let top_k = match self.top_k.unwrap_or(0) {
            // As vLLM's clients say "no limit".
            -1 => 0,
            k => u32::try_from(k)
                .map_err(|_| HttpError::invalid("top_k", "top_k must be -1, 0 or positive"))?,
        };
        let bias = |(id, bias): (String, f32)| {
            let id = id.parse().map_err(|_| {
                HttpError::invalid("logit_bias", "logit_bias has token ids for keys")
            })?;
            Ok((id, bias))
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
            logit_bias: self
                .logit_bias
                .unwrap_or_default()
                .into_iter()
                .map(bias)
                .collect::<Result<_, HttpError>>()?,
            logprobs,
        };
        let stop = match self.stop {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop],
            Some(OneOrMany::Many(stops)) => stops,
        };
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

fn text_of(content: Option<Content>, index: usize) -> Result<String, HttpError> {
    match content {
        None => Ok(String::new()),
        Some(Content::Text(text)) => Ok(text),
        Some(Content::Parts(parts)) => match parts.iter().find(|part| part.kind != "text") {
            Some(other) => {
                let message = format!(
                    "content of type `{}` is not supported, only `text`",
                    other.kind
                );
                Err(HttpError::invalid(
                    &format!("messages[{index}].content"),
                    message,
                ))
            }
            None => Ok(parts.into_iter().map(|part| part.text).collect()),
        },
    }
}
