//! OpenAI's request bodies, and what they mean here.
//!
//! A field that we know is honoured or refused by name. Fields that clients send without expecting
//! anything of the answer are ignored; any other is refused, as OpenAI does, because a typing error
//! must not change an answer in silence.

use std::collections::BTreeMap;

use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{
    Chat, ChatMessage, GenerateRequest, KvContract, Sampling, Stopping, TokenIds,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::HttpError;

/// Choices of one request at most, over all its prompts.
pub const MAX_CHOICES: usize = 16;
/// Alternatives per token at most, as in OpenAI's API.
const MAX_TOP_LOGPROBS: u32 = 20;

/// Sent by clients, and without effect on an answer.
const IGNORED: [&str; 10] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "verbosity",
    "reasoning_effort",
    "prompt_cache_retention",
];
/// Fields of OpenAI's that would change the answer; refused unless they ask for what is done
/// anyway.
const UNSUPPORTED: [(&str, &str); 14] = [
    ("tools", "tool calls are not supported"),
    ("tool_choice", "tool calls are not supported"),
    ("functions", "function calls are not supported"),
    ("function_call", "function calls are not supported"),
    ("response_format", "only the format `text` is supported"),
    ("modalities", "only the modality `text` is supported"),
    ("audio", "audio is not supported"),
    ("prediction", "predicted outputs are not supported"),
    ("web_search_options", "web search is not supported"),
    ("best_of", "use `n` instead"),
    ("echo", "the prompt is not repeated"),
    ("suffix", "insertion is not supported"),
    ("guided_json", "guided decoding is not supported"),
    ("structured_outputs", "guided decoding is not supported"),
];

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

impl ChatRequest {
    /// What is asked of the service.
    ///
    /// # Errors
    /// Names the field that is wrong or not supported.
    pub fn choices(self) -> Result<Choices, HttpError> {
        check_rest(&self.rest)?;
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
        check_rest(&self.rest)?;
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

/// Whether a value asks for what is done anyway.
fn is_default(name: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) if name == "modalities" => items.iter().all(|item| item == "text"),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text == "none" || (text == "auto" && name != "response_format"),
        Value::Object(fields) => {
            name == "response_format" && fields.get("type").is_some_and(|kind| kind == "text")
        }
        Value::Number(number) => name == "best_of" && number.as_u64() == Some(1),
        Value::Bool(true) => false,
    }
}

fn check_rest(rest: &Map<String, Value>) -> Result<(), HttpError> {
    for (name, value) in rest {
        if let Some((_, why)) = UNSUPPORTED
            .iter()
            .find(|(unsupported, _)| unsupported == name)
        {
            if !is_default(name, value) {
                return Err(HttpError::invalid(name, format!("`{name}`: {why}")));
            }
        } else if !IGNORED.contains(&name.as_str()) && !COMMON.contains(&name.as_str()) {
            return Err(HttpError::invalid(name, format!("unknown field `{name}`")));
        }
    }
    Ok(())
}

/// Fields of [`Common`]: serde gives a flattened map the fields of its flattened neighbour too.
const COMMON: [&str; 21] = [
    "model",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "stream",
    "stream_options",
    "top_k",
    "min_p",
    "repetition_penalty",
    "ignore_eos",
    "priority",
    "kv_budget",
    "kv_policy",
    "latent_memory",
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chat(extra: Value) -> Result<Choices, HttpError> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        serde_json::from_value::<ChatRequest>(body)
            .expect("well-formed")
            .choices()
    }

    #[test]
    fn every_field_reaches_the_request() {
        let choices = chat(json!({
            "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "n": 2, "stop": "x", "seed": 3, "top_k": -1,
            "frequency_penalty": 0.1, "presence_penalty": 0.2, "logit_bias": {"5": -1.0}, "logprobs": true,
            "top_logprobs": 4, "kv_budget": 512, "kv_policy": "window", "latent_memory": "none", "priority": 2,
            "stream": true, "stream_options": {"include_usage": true}, "min_p": 0.05, "user": "u", "ignore_eos": true,
        }))
        .unwrap();
        assert!(choices.include_usage && choices.per_prompt == 2 && choices.requests.len() == 2);
        let [first, second] = &choices.requests[..] else {
            panic!("two choices")
        };
        let sampling = first.sampling.clone().unwrap();
        assert_eq!(
            (
                sampling.temperature,
                sampling.seed,
                sampling.logprobs,
                sampling.top_k
            ),
            (Some(0.5), Some(3), Some(4), 0)
        );
        assert_eq!(second.sampling.clone().unwrap().seed, Some(4));
        assert_eq!(sampling.logit_bias, BTreeMap::from([(5, -1.0)]));
        let stopping = first.stopping.clone().unwrap();
        assert_eq!(
            (stopping.max_tokens, stopping.stop, stopping.ignore_eos),
            (Some(7), vec!["x".to_owned()], true)
        );
        let kv = first.kv.clone().unwrap();
        assert_eq!(
            (
                kv.budget,
                kv.policy.as_str(),
                kv.memory.as_str(),
                first.priority
            ),
            (512, "window", "none", 2)
        );
        assert_eq!(
            chat(json!({})).unwrap().requests[0]
                .sampling
                .clone()
                .unwrap()
                .temperature,
            Some(1.0)
        );
    }

    #[test]
    fn what_is_not_supported_is_named_unless_it_asks_for_nothing() {
        let cases = [
            (json!({"tools": [{"type": "function"}]}), "tools"),
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
            ),
            (json!({"best_of": 3}), "best_of"),
            (json!({"temprature": 1}), "temprature"),
            (json!({"n": 0}), "n"),
            (json!({"n": 17}), "n"),
            (json!({"top_logprobs": 3}), "top_logprobs"),
            (
                json!({"logprobs": true, "top_logprobs": 21}),
                "top_logprobs",
            ),
            (json!({"logit_bias": {"a": 1}}), "logit_bias"),
            (json!({"top_k": -2}), "top_k"),
        ];
        for (extra, field) in cases {
            let error = chat(extra.clone()).unwrap_err();
            assert_eq!(
                (error.status.as_u16(), error.body.param.as_deref()),
                (400, Some(field)),
                "{extra}"
            );
        }
        for harmless in [
            json!({"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "functions": null}),
            json!({"user": "u", "metadata": {"a": "b"}, "store": false, "parallel_tool_calls": true}),
        ] {
            assert!(chat(harmless.clone()).is_ok(), "{harmless}");
        }
        let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]});
        assert_eq!(
            chat(image).unwrap_err().body.param.as_deref(),
            Some("messages[0].content")
        );
    }

    /// The document names every field that is read or ignored, and no other.
    #[test]
    fn the_openapi_document_has_the_fields_of_these_types() {
        let document: Value = serde_json::from_str(include_str!("openapi.json")).expect("JSON");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let own: [(&str, &[&str], Value); 2] = [
            (
                "ChatRequest",
                &["messages", "logprobs", "top_logprobs"],
                json!({"messages": []}),
            ),
            (
                "CompletionRequest",
                &["prompt", "logprobs"],
                json!({"prompt": ""}),
            ),
        ];
        for (schema, own, least) in own {
            let schema = &document["components"]["schemas"][schema];
            let mut documented: Vec<&str> = schema["properties"]
                .as_object()
                .expect("properties")
                .keys()
                .map(String::as_str)
                .collect();
            let mut known: Vec<&str> = own.iter().chain(&COMMON).chain(&IGNORED).copied().collect();
            documented.sort_unstable();
            known.sort_unstable();
            assert_eq!(documented, known);
            assert_eq!(schema["additionalProperties"], false);
            // COMMON itself is held against the struct: a field that serde does not read would be
            // left in `rest`.
            for field in own.iter().chain(&COMMON) {
                let mut body = least.clone();
                body[*field] = json!({"no": ["such", "type"]});
                let is_read = serde_json::from_value::<ChatRequest>(body.clone()).is_err()
                    || serde_json::from_value::<CompletionRequest>(body).is_err();
                assert!(is_read, "{field} takes anything");
            }
        }
    }

    #[test]
    fn prompts_come_in_four_shapes() {
        let ask = |prompt: Value| {
            serde_json::from_value::<CompletionRequest>(json!({"prompt": prompt, "n": 2}))
                .unwrap()
                .choices()
                .unwrap()
        };
        assert_eq!(ask(json!("a")).requests.len(), 2);
        assert_eq!(ask(json!(["a", "b"])).requests.len(), 4);
        assert_eq!(
            ask(json!([1, 2, 3])).requests[0].input,
            Some(Input::TokenIds(TokenIds { ids: vec![1, 2, 3] }))
        );
        assert_eq!(ask(json!([[1], [2]])).requests.len(), 4);
    }
}
