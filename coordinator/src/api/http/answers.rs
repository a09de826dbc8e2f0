//! Answers of the service as OpenAI's objects: whole, and in chunks.

mod choice;
mod dialect;
mod logprobs;
#[cfg(test)]
mod tests;
mod usage;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use palimpsest_proto::v1::{Delta, FinishReason, RetentionMap};
use serde_json::{Value, json};

pub use self::choice::Choice;
use self::choice::{call_piece, write_prompt_ids, write_reasoning};
pub use self::dialect::Dialect;
pub(super) use self::dialect::write_json;
use self::logprobs::Logprobs;
use self::usage::usage;

/// What all objects of one response share.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Which API.
    pub dialect: Dialect,
    /// `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Name of the model.
    pub model: String,
    /// What the client is told of its request.
    pub warnings: Vec<String>,
}

/// OpenAI's word for the end of an answer.
pub const fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length | FinishReason::Read => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::Eos | FinishReason::Stop | FinishReason::Unspecified => "stop",
    }
}

impl Frame {
    fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": kind, "created": self.created, "model": self.model,
            "system_fingerprint": concat!("palimpsest-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    }

    /// The whole answer. The choices are given away piece by piece: it would be held twice.
    pub fn whole(&self, mut choices: Vec<Choice>, per_prompt: usize) -> Vec<u8> {
        let usage = usage(&choices, per_prompt);
        // A chat has one prompt, of which vLLM tells beside the choices.
        let prompt = match (self.dialect, choices.first_mut()) {
            (Dialect::Chat, Some(first)) => first.take_prompt(),
            _ => Vec::new(),
        };
        let kind = match self.dialect {
            Dialect::Chat => "chat.completion",
            Dialect::Completion => "text_completion",
        };
        let mut out = self.head(kind);
        for (index, choice) in choices.into_iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.extend_from_slice(br#"{"index":"#);
            write_json(&mut out, &index);
            out.extend_from_slice(br#","finish_reason":"#);
            write_json(&mut out, &choice.finish);
            out.extend_from_slice(br#","logprobs":"#);
            choice.logprobs.write(&mut out, self.dialect);
            choice.write(&mut out, self.dialect);
            out.push(b'}');
        }
        out.extend_from_slice(br#"],"usage":"#);
        write_json(&mut out, &usage);
        out.extend(prompt);
        self.write_warnings(&mut out);
        out.push(b'}');
        out
    }

    /// Adds what the client is told, behind a field.
    fn write_warnings(&self, out: &mut Vec<u8>) {
        if !self.warnings.is_empty() {
            out.extend_from_slice(br#","warnings":"#);
            write_json(out, &self.warnings);
        }
    }

    /// An object up to its first choice.
    fn head(&self, kind: &str) -> Vec<u8> {
        let object = self.object(kind, Vec::new()).to_string();
        let head = object.strip_suffix("]}").expect("choices come last");
        head.as_bytes().to_vec()
    }

    /// What all chunks of a stream begin with, up to their only choice. It is written anew for no
    /// token.
    pub fn chunk_head(&self) -> Vec<u8> {
        let mut chunk = b"data: ".to_vec();
        chunk.extend(self.head(self.chunk_kind()));
        chunk
    }

    /// Adds a piece of choice `index` to `out`. `before`: characters of its text that went before.
    pub fn write_delta(
        &self,
        out: &mut Vec<u8>,
        head: &[u8],
        index: usize,
        delta: &Delta,
        before: usize,
    ) {
        begin(out, head, index);
        match self.dialect {
            Dialect::Chat => write_message_delta(out, delta),
            Dialect::Completion => {
                out.extend_from_slice(br#""text":"#);
                write_json(out, &delta.text);
            }
        }
        if !delta.token_ids.is_empty() {
            out.extend_from_slice(br#","token_ids":"#);
            write_json(out, &delta.token_ids);
        }
        out.extend_from_slice(br#","logprobs":"#);
        let mut logprobs = Logprobs::behind(before);
        for token in &delta.tokens {
            logprobs.add(self.dialect, token);
        }
        logprobs.write(out, self.dialect);
        out.extend_from_slice(b",\"finish_reason\":null}]}\n\n");
    }

    /// Adds the first chunk of a choice, which a chat has, and whoever asks for the prompt's ids.
    pub fn write_opening(&self, out: &mut Vec<u8>, head: &[u8], index: usize, prompt: &[u32]) {
        if self.dialect == Dialect::Completion && prompt.is_empty() {
            return;
        }
        begin(out, head, index);
        out.extend_from_slice(match self.dialect {
            Dialect::Chat => br#""delta":{"role":"assistant","content":"","refusal":null}"#,
            Dialect::Completion => br#""text":"""#,
        });
        let is_chat = self.dialect == Dialect::Chat;
        if !is_chat {
            write_prompt_ids(out, prompt);
        }
        out.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":null}]");
        if is_chat {
            write_prompt_ids(out, prompt);
        }
        out.extend_from_slice(b"}\n\n");
    }

    /// Adds the last chunk of a choice.
    pub fn write_closing(&self, out: &mut Vec<u8>, head: &[u8], index: usize, finish: &str) {
        begin(out, head, index);
        out.extend_from_slice(match self.dialect {
            Dialect::Chat => br#""delta":{}"#,
            Dialect::Completion => br#""text":"""#,
        });
        out.extend_from_slice(br#","logprobs":null,"finish_reason":"#);
        write_json(out, finish);
        out.extend_from_slice(b"}]");
        self.write_warnings(out);
        out.extend_from_slice(b"}\n\n");
    }

    /// The chunk behind all choices that says what they cost.
    pub fn usage_chunk(&self, choices: &[Choice], per_prompt: usize) -> Value {
        let mut chunk = self.object(self.chunk_kind(), Vec::new());
        chunk["usage"] = usage(choices, per_prompt);
        chunk
    }

    /// A chunk without choices that says how much is kept of each token.
    pub fn map_chunk(&self, map: &RetentionMap) -> Value {
        let mut chunk = self.object(self.chunk_kind(), Vec::new());
        chunk["retention_map"] = json!({
            "tokens": map.shares.len(), "shares": STANDARD.encode(&map.shares),
            "held_slots": map.held_slots, "held_bytes": map.held_bytes,
            "full_cache_bytes": map.full_cache_bytes,
        });
        chunk
    }

    const fn chunk_kind(&self) -> &'static str {
        match self.dialect {
            Dialect::Chat => "chat.completion.chunk",
            Dialect::Completion => "text_completion",
        }
    }
}

/// Adds what a piece adds to the message of a chat.
fn write_message_delta(out: &mut Vec<u8>, delta: &Delta) {
    let has_more = !delta.reasoning.is_empty() || !delta.tool_calls.is_empty();
    out.extend_from_slice(br#""delta":{"#);
    if !delta.text.is_empty() || !has_more {
        out.extend_from_slice(br#""content":"#);
        write_json(out, &delta.text);
    } else {
        out.extend_from_slice(br#""content":null"#);
    }
    if !delta.reasoning.is_empty() {
        write_reasoning(out, &delta.reasoning);
    }
    if !delta.tool_calls.is_empty() {
        let calls: Vec<Value> = delta.tool_calls.iter().map(call_piece).collect();
        out.extend_from_slice(br#","tool_calls":"#);
        write_json(out, &calls);
    }
    out.push(b'}');
}

/// Begins a chunk with one choice.
fn begin(out: &mut Vec<u8>, head: &[u8], index: usize) {
    out.extend_from_slice(head);
    out.extend_from_slice(br#"{"index":"#);
    write_json(out, &index);
    out.push(b',');
}

/// Adds a server-sent event with one object.
pub fn write_event(out: &mut Vec<u8>, object: &Value) {
    out.extend_from_slice(b"data: ");
    write_json(out, object);
    out.extend_from_slice(b"\n\n");
}
