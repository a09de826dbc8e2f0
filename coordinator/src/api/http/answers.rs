//! Answers of the service as OpenAI's objects: whole, and in chunks.

use palimpsest_proto::v1::{Delta, FinishReason, TokenLogprob, Usage};
use serde::Serialize;
use serde_json::{Value, json};

/// Which of the two APIs is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
}

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
}

/// A choice as far as it has come.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Text so far.
    pub text: String,
    /// Log-probabilities so far.
    pub tokens: Vec<TokenLogprob>,
    /// Why it ended.
    pub finish: Option<&'static str>,
    /// What it cost.
    pub usage: Usage,
}

/// OpenAI's word for the end of an answer.
pub const fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
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

    /// The whole answer.
    pub fn whole(&self, choices: &[Choice], per_prompt: usize) -> Value {
        let logprobs =
            |choice: &Choice| (!choice.tokens.is_empty()).then(|| self.logprobs(&choice.tokens, 0));
        let one = |(index, choice): (usize, &Choice)| match self.dialect {
            Dialect::Chat => json!({
                "index": index, "finish_reason": choice.finish, "logprobs": logprobs(choice),
                "message": {"role": "assistant", "content": choice.text, "refusal": null},
            }),
            Dialect::Completion => json!({
                "index": index, "finish_reason": choice.finish, "logprobs": logprobs(choice),
                "text": choice.text,
            }),
        };
        let kind = if self.dialect == Dialect::Chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        let mut whole = self.object(kind, choices.iter().enumerate().map(one).collect());
        whole["usage"] = usage(choices, per_prompt);
        whole
    }

    /// What all chunks of a stream begin with, up to their only choice. It is written anew for no
    /// token.
    pub fn chunk_head(&self) -> Vec<u8> {
        let mut head = b"data: ".to_vec();
        let object = self.object(self.chunk_kind(), Vec::new()).to_string();
        head.extend_from_slice(
            object
                .strip_suffix("]}")
                .expect("choices come last")
                .as_bytes(),
        );
        head
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
            Dialect::Chat => {
                out.extend_from_slice(br#""delta":{"content":"#);
                write_json(out, &delta.text);
                out.push(b'}');
            }
            Dialect::Completion => {
                out.extend_from_slice(br#""text":"#);
                write_json(out, &delta.text);
            }
        }
        out.extend_from_slice(br#","logprobs":"#);
        write_json(
            out,
            &(!delta.tokens.is_empty()).then(|| self.logprobs(&delta.tokens, before)),
        );
        out.extend_from_slice(b",\"finish_reason\":null}]}\n\n");
    }

    /// Adds the first chunk of a choice, which a chat has.
    pub fn write_opening(&self, out: &mut Vec<u8>, head: &[u8], index: usize) {
        if self.dialect == Dialect::Chat {
            begin(out, head, index);
            out.extend_from_slice(br#""delta":{"role":"assistant","content":"","refusal":null}"#);
            out.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":null}]}\n\n");
        }
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
        out.extend_from_slice(b"}]}\n\n");
    }

    /// The chunk behind all choices that says what they cost.
    pub fn usage_chunk(&self, choices: &[Choice], per_prompt: usize) -> Value {
        let mut chunk = self.object(self.chunk_kind(), Vec::new());
        chunk["usage"] = usage(choices, per_prompt);
        chunk
    }

    const fn chunk_kind(&self) -> &'static str {
        match self.dialect {
            Dialect::Chat => "chat.completion.chunk",
            Dialect::Completion => "text_completion",
        }
    }

    fn logprobs(&self, tokens: &[TokenLogprob], before: usize) -> Value {
        match self.dialect {
            Dialect::Chat => {
                let one = |token: &TokenLogprob| {
                    let mut entry = entry(token);
                    entry["top_logprobs"] = token.top.iter().map(self::entry).collect();
                    entry
                };
                json!({"content": tokens.iter().map(one).collect::<Vec<_>>(), "refusal": null})
            }
            Dialect::Completion => {
                let mut offset = before;
                let mut place = |token: &TokenLogprob| {
                    let here = offset;
                    offset += text(token).chars().count();
                    here
                };
                let top = |token: &TokenLogprob| {
                    token
                        .top
                        .iter()
                        .map(|one| (text(one), json!(one.logprob)))
                        .collect::<serde_json::Map<_, _>>()
                };
                json!({
                    "tokens": tokens.iter().map(text).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": tokens.iter().map(&mut place).collect::<Vec<_>>(),
                })
            }
        }
    }
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

fn write_json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value)
        .expect("memory takes everything, and these types have a JSON form");
}

/// A token may be part of a character; its bytes are exact, its text is not.
fn text(token: &TokenLogprob) -> String {
    String::from_utf8_lossy(&token.bytes).into_owned()
}

fn entry(token: &TokenLogprob) -> Value {
    json!({"token": text(token), "logprob": token.logprob, "bytes": token.bytes.to_vec()})
}

/// OpenAI's figures, and ours under `kv`: means per KV head, sums over choices for bytes.
fn usage(choices: &[Choice], per_prompt: usize) -> Value {
    let prompt: u64 = choices
        .iter()
        .step_by(per_prompt.max(1))
        .map(|choice| choice.usage.prompt_tokens)
        .sum();
    let completion: u64 = choices
        .iter()
        .map(|choice| choice.usage.generated_tokens)
        .sum();
    let sum = |field: fn(&Usage) -> u64| {
        choices
            .iter()
            .map(|choice| field(&choice.usage))
            .sum::<u64>()
    };
    let most = |field: fn(&Usage) -> u64| {
        choices
            .iter()
            .map(|choice| field(&choice.usage))
            .max()
            .unwrap_or(0)
    };
    let mut warnings: Vec<&String> = choices
        .iter()
        .flat_map(|choice| &choice.usage.warnings)
        .collect();
    warnings.dedup();
    json!({
        "prompt_tokens": prompt, "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "kv": {
            "evicted_tokens": most(|usage| usage.evicted_tokens),
            "held_slots": most(|usage| usage.held_slots),
            "held_bytes": sum(|usage| usage.held_bytes),
            "full_cache_bytes": sum(|usage| usage.full_cache_bytes),
            "warnings": warnings,
        },
    })
}
