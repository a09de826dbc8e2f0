//! A choice of an answer that is sent whole.

use palimpsest_proto::v1::{Delta, Started, TokenLogprob, ToolCall, ToolCallDelta, Usage};
use serde_json::{Value, json};

use super::dialect::{Dialect, write_json};
use super::logprobs::{Logprobs, text};

/// A choice as far as it has come.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Text so far, where the answer is sent whole.
    text: String,
    /// What the model thought, likewise.
    reasoning: String,
    /// What it called, likewise.
    calls: Vec<ToolCall>,
    /// Log-probabilities so far, where the answer is sent whole.
    pub(super) logprobs: Logprobs,
    /// Elements of `prompt_logprobs`, if the request has that, with commas between them.
    prompt: Vec<u8>,
    /// Token ids of prompt and answer, where the client asks for them.
    ids: Option<TokenIds>,
    /// Characters so far, where the answer is a stream with log-probabilities.
    pub characters: usize,
    /// Why it ended.
    pub finish: Option<&'static str>,
    /// What it cost.
    pub usage: Usage,
}

#[derive(Debug, Clone, Default)]
struct TokenIds {
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

impl Choice {
    /// Takes what is known before the first token.
    pub fn begin(&mut self, started: Started) {
        if !started.prompt_token_ids.is_empty() {
            self.ids = Some(TokenIds {
                prompt: started.prompt_token_ids,
                answer: Vec::new(),
            });
        }
    }

    /// Adds a piece of the answer.
    pub fn add(&mut self, dialect: Dialect, delta: &Delta) {
        self.text.push_str(&delta.text);
        self.reasoning.push_str(&delta.reasoning);
        for call in &delta.tool_calls {
            self.add_call(call);
        }
        for token in &delta.tokens {
            self.logprobs.add(dialect, token);
        }
        if let Some(ids) = &mut self.ids {
            ids.answer.extend(&delta.token_ids);
        }
    }

    /// Adds what is known of the prompt, as vLLM tells it.
    pub fn add_prompt(&mut self, tokens: &[TokenLogprob]) {
        for token in tokens {
            if !self.prompt.is_empty() {
                self.prompt.push(b',');
            }
            if token.logprob.is_nan() {
                self.prompt.extend_from_slice(b"null");
                continue;
            }
            let told = |one: &TokenLogprob| {
                let value = json!({"logprob": one.logprob, "decoded_token": text(one)});
                (one.id.to_string(), value)
            };
            let all: serde_json::Map<_, _> = token.top.iter().chain([token]).map(told).collect();
            write_json(&mut self.prompt, &Value::Object(all));
        }
    }

    fn add_call(&mut self, piece: &ToolCallDelta) {
        let index = piece.index as usize;
        if index == self.calls.len() {
            self.calls.push(ToolCall {
                id: piece.id.clone(),
                name: piece.name.clone(),
                arguments: String::new(),
            });
        }
        if let Some(call) = self.calls.get_mut(index) {
            call.arguments.push_str(&piece.arguments);
        }
    }

    /// Bytes that are held of the answer.
    pub fn bytes(&self) -> usize {
        let calls = self.calls.iter();
        let calls = calls.map(|call| call.id.len() + call.name.len() + call.arguments.len());
        let ids = self.ids.as_ref();
        let ids = ids.map_or(0, |ids| ids.answer.len() + ids.prompt.len());
        let texts = self.text.len() + self.reasoning.len() + calls.sum::<usize>();
        texts + self.logprobs.bytes() + self.prompt.len() + ids * size_of::<u32>()
    }

    /// What is told of the prompt, as fields behind others, which is then given away.
    pub(super) fn take_prompt(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_prompt(&mut out);
        self.prompt = Vec::new();
        if let Some(ids) = &mut self.ids {
            ids.prompt = Vec::new();
        }
        out
    }

    fn write_prompt(&self, out: &mut Vec<u8>) {
        if !self.prompt.is_empty() {
            out.extend_from_slice(br#","prompt_logprobs":["#);
            out.extend_from_slice(&self.prompt);
            out.push(b']');
        }
        if let Some(ids) = &self.ids {
            write_prompt_ids(out, &ids.prompt);
        }
    }

    /// Writes the text of a completion, or the message of a chat.
    pub(super) fn write(&self, out: &mut Vec<u8>, dialect: Dialect) {
        if dialect == Dialect::Completion {
            self.write_prompt(out);
        }
        match dialect {
            Dialect::Chat => {
                out.extend_from_slice(br#","message":{"role":"assistant","content":"#);
                if self.text.is_empty() && !self.calls.is_empty() {
                    out.extend_from_slice(b"null");
                } else {
                    write_json(out, &self.text);
                }
                if !self.reasoning.is_empty() {
                    write_reasoning(out, &self.reasoning);
                }
                if !self.calls.is_empty() {
                    let calls: Vec<Value> = self.calls.iter().map(call_object).collect();
                    out.extend_from_slice(br#","tool_calls":"#);
                    write_json(out, &calls);
                }
                out.extend_from_slice(br#","refusal":null}"#);
            }
            Dialect::Completion => {
                out.extend_from_slice(br#","text":"#);
                write_json(out, &self.text);
            }
        }
        if let Some(ids) = &self.ids {
            out.extend_from_slice(br#","token_ids":"#);
            write_json(out, &ids.answer);
        }
    }
}

/// Adds the ids of the prompt behind another field, if there are any.
pub(super) fn write_prompt_ids(out: &mut Vec<u8>, ids: &[u32]) {
    if !ids.is_empty() {
        out.extend_from_slice(br#","prompt_token_ids":"#);
        write_json(out, &ids);
    }
}

/// Adds what the model thinks, by both names that clients know.
pub(super) fn write_reasoning(out: &mut Vec<u8>, reasoning: &str) {
    for name in [
        br#","reasoning_content":"#.as_slice(),
        br#","reasoning":"#.as_slice(),
    ] {
        out.extend_from_slice(name);
        write_json(out, reasoning);
    }
}

fn call_object(call: &ToolCall) -> Value {
    json!({
        "id": call.id, "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    })
}

/// A piece of a call as a chunk has it: only the first has an id and a name.
pub(super) fn call_piece(piece: &ToolCallDelta) -> Value {
    if piece.name.is_empty() {
        return json!({"index": piece.index, "function": {"arguments": piece.arguments}});
    }
    json!({
        "index": piece.index, "id": piece.id, "type": "function",
        "function": {"name": piece.name, "arguments": piece.arguments},
    })
}
