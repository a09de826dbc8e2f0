//! Responses and their items as OpenAI's objects. They are written from borrowed texts: a
//! conversation would be held twice.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use crate::responses::{Cost, Message, Record, ResponseId};

/// How far a response has come.
#[derive(Debug, Clone)]
pub enum Stage {
    /// It has no answer yet.
    InProgress,
    /// Its answer has ended.
    Ended,
    /// It has failed, with OpenAI's code and what to do.
    Failed {
        /// One of OpenAI's codes.
        code: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
}

/// A response.
#[derive(Debug, Serialize)]
pub struct Response<'a> {
    id: ResponseId,
    object: &'static str,
    created_at: u64,
    completed_at: Option<u64>,
    status: &'static str,
    background: bool,
    error: Option<Value>,
    incomplete_details: Option<Value>,
    instructions: Option<&'a str>,
    max_output_tokens: Option<u32>,
    model: &'a str,
    output: Vec<Item<'a>>,
    parallel_tool_calls: bool,
    previous_response_id: Option<ResponseId>,
    reasoning: Value,
    service_tier: &'static str,
    store: bool,
    temperature: f32,
    text: Value,
    tool_choice: &'static str,
    tools: [Value; 0],
    top_logprobs: u32,
    top_p: f32,
    truncation: &'static str,
    usage: Option<Value>,
    user: Option<&'a str>,
    metadata: &'a BTreeMap<String, String>,
}

/// A message.
#[derive(Debug, Serialize)]
pub struct Item<'a> {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    status: &'static str,
    role: &'a str,
    content: Vec<Part<'a>>,
}

/// The text of a message. An answer of ours has neither annotations nor log-probabilities.
#[derive(Debug, Serialize)]
pub struct Part<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<[Value; 0]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<[Value; 0]>,
}

impl<'a> Response<'a> {
    /// The object of a response at this stage.
    pub fn of(record: &'a Record, stage: &Stage) -> Self {
        let is_ended = matches!(stage, Stage::Ended);
        let status = match stage {
            Stage::InProgress => "in_progress",
            Stage::Failed { .. } => "failed",
            Stage::Ended => end_of(record),
        };
        let error = match stage {
            Stage::Failed { code, message } => Some(json!({"code": code, "message": message})),
            Stage::InProgress | Stage::Ended => None,
        };
        let is_cut = is_ended && !record.is_complete;
        let asked = &record.asked;
        Self {
            id: record.id,
            object: "response",
            created_at: record.created,
            completed_at: (is_ended && record.is_complete).then_some(record.completed),
            status,
            background: false,
            error,
            incomplete_details: is_cut.then(|| json!({"reason": "max_output_tokens"})),
            instructions: asked.instructions.as_deref(),
            max_output_tokens: asked.max_output_tokens,
            model: &record.model,
            output: is_ended.then(|| Item::answer(record)).into_iter().collect(),
            parallel_tool_calls: true,
            previous_response_id: record.parent,
            reasoning: json!({"effort": null, "summary": null}),
            service_tier: "default",
            store: asked.store,
            temperature: asked.temperature,
            text: match &asked.format {
                Some(format) => json!({"format": format}),
                None => json!({"format": {"type": "text"}}),
            },
            tool_choice: "auto",
            tools: [],
            top_logprobs: 0,
            top_p: asked.top_p,
            truncation: "disabled",
            usage: is_ended.then(|| usage(&record.cost)),
            user: asked.user.as_deref(),
            metadata: &asked.metadata,
        }
    }
}

impl<'a> Item<'a> {
    /// The answer of a response that has ended.
    pub fn answer(record: &'a Record) -> Self {
        Self {
            id: answer_id(record.id),
            kind: "message",
            status: end_of(record),
            role: "assistant",
            content: vec![Part::answer(&record.output)],
        }
    }

    /// The answer of a response that has none yet.
    pub fn opening(id: ResponseId) -> Self {
        Self {
            id: answer_id(id),
            kind: "message",
            status: "in_progress",
            role: "assistant",
            content: Vec::new(),
        }
    }

    /// Message `index` of those that came with a response.
    pub fn message(of: ResponseId, index: usize, message: &'a Message) -> Self {
        let content = match message.role.as_str() {
            "assistant" => Part::answer(&message.text),
            _ => Part {
                kind: "input_text",
                text: &message.text,
                annotations: None,
                logprobs: None,
            },
        };
        Self {
            id: message_id(of, index),
            kind: "message",
            status: "completed",
            role: &message.role,
            content: vec![content],
        }
    }
}

impl<'a> Part<'a> {
    /// The text of an answer.
    pub fn answer(text: &'a str) -> Self {
        Self {
            kind: "output_text",
            text,
            annotations: Some([]),
            logprobs: Some([]),
        }
    }
}

/// Name of the answer of a response.
pub fn answer_id(id: ResponseId) -> String {
    format!("msg_{}", id.digits())
}

/// Name of message `index` of those that came with a response.
pub fn message_id(id: ResponseId, index: usize) -> String {
    format!("msg_{}_{index}", id.digits())
}

/// OpenAI's word for how an answer ended.
const fn end_of(record: &Record) -> &'static str {
    if record.is_complete {
        "completed"
    } else {
        "incomplete"
    }
}

/// OpenAI's figures, and ours under `kv`, as a chat has them.
fn usage(cost: &Cost) -> Value {
    json!({
        "input_tokens": cost.input_tokens,
        "input_tokens_details": {"cached_tokens": cost.cached_tokens},
        "output_tokens": cost.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": cost.input_tokens + cost.output_tokens,
        "kv": {
            "evicted_tokens": cost.evicted_tokens,
            "held_slots": cost.held_slots,
            "held_bytes": cost.held_bytes,
            "full_cache_bytes": cost.full_cache_bytes,
            "warnings": cost.warnings,
        },
    })
}

/// A value as JSON.
pub fn write_json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts and numbers have a JSON form")
}
