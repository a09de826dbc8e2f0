//! Which fields of a body are read, ignored and refused.

use serde_json::{Map, Value};

use crate::api::http::error::HttpError;

/// Sent by clients, and without effect on an answer.
pub(super) const IGNORED: [&str; 10] = [
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
/// A field that is not supported, and what to say of it.
struct Unsupported {
    name: &'static str,
    why: &'static str,
}

impl Unsupported {
    const fn new(name: &'static str, why: &'static str) -> Self {
        Self { name, why }
    }
}

/// Fields of OpenAI's that would change the answer; refused unless they ask for what is done
/// anyway.
const UNSUPPORTED: [Unsupported; 14] = [
    Unsupported::new("tools", "tool calls are not supported"),
    Unsupported::new("tool_choice", "tool calls are not supported"),
    Unsupported::new("functions", "function calls are not supported"),
    Unsupported::new("function_call", "function calls are not supported"),
    Unsupported::new("response_format", "only the format `text` is supported"),
    Unsupported::new("modalities", "only the modality `text` is supported"),
    Unsupported::new("audio", "audio is not supported"),
    Unsupported::new("prediction", "predicted outputs are not supported"),
    Unsupported::new("web_search_options", "web search is not supported"),
    Unsupported::new("best_of", "use `n` instead"),
    Unsupported::new("echo", "the prompt is not repeated"),
    Unsupported::new("suffix", "insertion is not supported"),
    Unsupported::new("guided_json", "guided decoding is not supported"),
    Unsupported::new("structured_outputs", "guided decoding is not supported"),
];

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

/// Checks the fields of a body that no type reads.
///
/// # Errors
/// Names the first that would change the answer, or that nobody knows.
pub(super) fn check(rest: &Map<String, Value>) -> Result<(), HttpError> {
    for (name, value) in rest {
        if let Some(unsupported) = UNSUPPORTED.iter().find(|one| one.name == name) {
            if !is_default(name, value) {
                let message = format!("`{name}`: {}", unsupported.why);
                return Err(HttpError::invalid(name, message));
            }
        } else if !IGNORED.contains(&name.as_str()) && !COMMON.contains(&name.as_str()) {
            return Err(HttpError::invalid(name, format!("unknown field `{name}`")));
        }
    }
    Ok(())
}

/// Fields of [`Common`](super::Common): serde gives a flattened map the fields of its flattened
/// neighbour too.
pub(super) const COMMON: [&str; 21] = [
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
