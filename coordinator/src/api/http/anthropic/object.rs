//! A message as Anthropic's object.

use palimpsest_proto::v1::{FinishReason, Finished, Usage};
use serde_json::{Value, json};

/// What all objects of one answer share.
#[derive(Debug, Clone)]
pub struct Frame {
    /// `msg_…`.
    pub id: String,
    /// Name of the model.
    pub model: String,
    /// What the client is told of its request.
    pub warnings: Vec<String>,
}

impl Frame {
    /// A message that has begun, after a prompt of so many tokens. How many of them need not be
    /// read is not known yet.
    pub fn begun(&self, prompt_tokens: u64) -> Value {
        let usage = Usage {
            prompt_tokens,
            ..Usage::default()
        };
        self.message(json!([]), (Value::Null, Value::Null), tokens(&usage))
    }

    /// A message that has ended, with its blocks.
    pub fn ended(&self, content: Value, finished: &Finished) -> Value {
        self.message(content, end(finished), self.usage(finished))
    }

    /// What the last event but one says of a message.
    pub fn last_delta(&self, finished: &Finished) -> Value {
        let (reason, sequence) = end(finished);
        json!({
            "type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": self.usage(finished),
        })
    }

    /// Anthropic's figures, and ours under `kv`.
    fn usage(&self, finished: &Finished) -> Value {
        let usage = finished.usage.clone().unwrap_or_default();
        let warnings: Vec<&String> = self.warnings.iter().chain(&usage.warnings).collect();
        let mut object = tokens(&usage);
        object["kv"] = json!({
            "evicted_tokens": usage.evicted_tokens, "held_slots": usage.held_slots,
            "held_bytes": usage.held_bytes, "full_cache_bytes": usage.full_cache_bytes,
            "warnings": warnings,
        });
        object
    }

    fn message(&self, content: Value, (reason, sequence): (Value, Value), usage: Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model,
            "content": content, "stop_reason": reason, "stop_sequence": sequence, "usage": usage,
        })
    }
}

/// Anthropic's word for the end of an answer, and the stop string that ended it.
fn end(finished: &Finished) -> (Value, Value) {
    let reason = match finished.reason() {
        FinishReason::Stop => return (json!("stop_sequence"), json!(finished.stop)),
        FinishReason::Length => "max_tokens",
        FinishReason::ToolCalls => "tool_use",
        FinishReason::Eos | FinishReason::Read | FinishReason::Unspecified => "end_turn",
    };
    (json!(reason), Value::Null)
}

/// Anthropic's figures. Tokens of a prompt that were not read are counted apart; what is kept of a
/// prompt costs nothing that would be counted.
fn tokens(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(usage.cached_tokens),
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.generated_tokens,
    })
}
