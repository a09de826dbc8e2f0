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
    /// Text so far, where the answer is sent whole.
    text: String,
    /// Log-probabilities so far, where the answer is sent whole.
    logprobs: Logprobs,
    /// Elements of `prompt_logprobs`, if the request has that, with commas between them.
    prompt: Vec<u8>,
    /// Characters so far, where the answer is a stream with log-probabilities.
    pub characters: usize,
    /// Why it ended.
    pub finish: Option<&'static str>,
    /// What it cost.
    pub usage: Usage,
}

impl Choice {
    /// Adds a piece of the answer.
    pub fn add(&mut self, dialect: Dialect, delta: &Delta) {
        self.text.push_str(&delta.text);
        for token in &delta.tokens {
            self.logprobs.add(dialect, token);
        }
    }

    /// Bytes that are held of the answer.
    pub fn bytes(&self) -> usize {
        self.text.len() + self.logprobs.bytes() + self.prompt.len()
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
}

/// Log-probabilities as the JSON that is sent: as objects they would take several times as much.
#[derive(Debug, Clone, Default)]
struct Logprobs {
    /// Elements of the lists that the dialect has, with commas between them.
    lists: [Vec<u8>; 4],
    /// Characters of all tokens so far, and of what was before.
    offset: usize,
    /// The bytes of a character that is not whole yet.
    part: Vec<u8>,
}

/// Names of the lists of `/v1/completions`.
const LISTS: [&str; 4] = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];

impl Logprobs {
    /// None so far, behind so many characters.
    fn behind(characters: usize) -> Self {
        Self {
            offset: characters,
            ..Self::default()
        }
    }

    fn bytes(&self) -> usize {
        self.lists.iter().map(Vec::len).sum()
    }

    fn add(&mut self, dialect: Dialect, token: &TokenLogprob) {
        match dialect {
            Dialect::Chat => {
                let mut whole = entry(token);
                whole["top_logprobs"] = token.top.iter().map(entry).collect();
                self.push(0, &whole);
            }
            Dialect::Completion => {
                let text = text(token);
                let top = token.top.iter();
                let top = top.map(|one| (self::text(one), json!(one.logprob)));
                let top: serde_json::Map<_, _> = top.collect();
                // The first token of a prompt has none: JSON's null.
                let is_known = !token.logprob.is_nan();
                let top = is_known.then_some(Value::Object(top));
                self.push(0, &json!(text));
                self.push(1, &json!(token.logprob));
                self.push(2, &json!(top));
                self.push(3, &json!(self.offset));
                self.advance(&token.bytes);
            }
        }
    }

    /// Counts the characters that are whole with these bytes.
    fn advance(&mut self, bytes: &[u8]) {
        self.part.extend_from_slice(bytes);
        let mut rest = &self.part[..];
        while let Some(chunk) = rest.utf8_chunks().next() {
            self.offset += chunk.valid().chars().count();
            let invalid = chunk.invalid();
            let is_part = chunk.valid().len() + invalid.len() == rest.len()
                && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            rest = &rest[chunk.valid().len()..];
            if is_part {
                break;
            }
            // What can be no character is shown as one.
            self.offset += usize::from(!invalid.is_empty());
            rest = &rest[invalid.len()..];
        }
        self.part = rest.to_vec();
    }

    fn push(&mut self, list: usize, value: &Value) {
        let list = &mut self.lists[list];
        if !list.is_empty() {
            list.push(b',');
        }
        write_json(list, value);
    }

    fn write(&self, out: &mut Vec<u8>, dialect: Dialect) {
        if self.lists[0].is_empty() {
            out.extend_from_slice(b"null");
            return;
        }
        match dialect {
            Dialect::Chat => {
                out.extend_from_slice(br#"{"content":["#);
                out.extend_from_slice(&self.lists[0]);
                out.extend_from_slice(br#"],"refusal":null}"#);
            }
            Dialect::Completion => {
                for (index, (name, list)) in LISTS.iter().zip(&self.lists).enumerate() {
                    out.push(if index == 0 { b'{' } else { b',' });
                    write_json(out, name);
                    out.extend_from_slice(b":[");
                    out.extend_from_slice(list);
                    out.push(b']');
                }
                out.push(b'}');
            }
        }
    }
}

/// OpenAI's word for the end of an answer.
pub const fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length | FinishReason::Read => "length",
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
    pub fn whole(&self, choices: Vec<Choice>, per_prompt: usize) -> Vec<u8> {
        let usage = usage(&choices, per_prompt);
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
            if !choice.prompt.is_empty() {
                out.extend_from_slice(br#","prompt_logprobs":["#);
                out.extend_from_slice(&choice.prompt);
                out.push(b']');
            }
            match self.dialect {
                Dialect::Chat => {
                    out.extend_from_slice(br#","message":{"role":"assistant","content":"#);
                    write_json(&mut out, &choice.text);
                    out.extend_from_slice(br#","refusal":null}}"#);
                }
                Dialect::Completion => {
                    out.extend_from_slice(br#","text":"#);
                    write_json(&mut out, &choice.text);
                    out.push(b'}');
                }
            }
        }
        out.extend_from_slice(br#"],"usage":"#);
        write_json(&mut out, &usage);
        out.push(b'}');
        out
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
        let mut logprobs = Logprobs::behind(before);
        for token in &delta.tokens {
            logprobs.add(self.dialect, token);
        }
        logprobs.write(out, self.dialect);
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

/// The text of a token, or its bytes as OpenAI writes them where it is part of a character: two
/// tokens never have the same.
fn text(token: &TokenLogprob) -> String {
    match std::str::from_utf8(&token.bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let bytes = token.bytes.iter().map(|byte| format!("\\x{byte:02x}"));
            format!("bytes:{}", bytes.collect::<String>())
        }
    }
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
    let cached: u64 = choices
        .iter()
        .step_by(per_prompt.max(1))
        .map(|choice| choice.usage.cached_tokens)
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
        "prompt_tokens_details": {"cached_tokens": cached},
        "kv": {
            "evicted_tokens": most(|usage| usage.evicted_tokens),
            "held_slots": most(|usage| usage.held_slots),
            "held_bytes": sum(|usage| usage.held_bytes),
            "full_cache_bytes": sum(|usage| usage.full_cache_bytes),
            "warnings": warnings,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(bytes: &[u8], top: Vec<TokenLogprob>) -> TokenLogprob {
        TokenLogprob {
            id: 1,
            logprob: -0.5,
            bytes: bytes.to_vec().into(),
            top,
        }
    }

    /// The answer to two deltas, read back.
    fn whole(dialect: Dialect) -> Value {
        let frame = Frame {
            dialect,
            id: "id".into(),
            created: 7,
            model: "m".into(),
        };
        let mut choice = Choice::default();
        let top = || vec![token(b"b\"", Vec::new())];
        for text in ["é\n", "x"] {
            let delta = Delta {
                text: text.into(),
                tokens: vec![token(text.as_bytes(), top())],
            };
            choice.add(dialect, &delta);
        }
        assert!(choice.bytes() > 50);
        choice.finish = Some("stop");
        let choices = vec![choice, Choice::default()];
        serde_json::from_slice(&frame.whole(choices, 1)).expect("JSON")
    }

    /// A character of four bytes in two tokens, another one alone, and a byte that is none.
    #[test]
    fn tokens_that_are_parts_of_characters_keep_their_bytes_and_count_none() {
        let mut logprobs = Logprobs::default();
        let smile = "😀".as_bytes();
        let parts = [
            b"a",
            &smile[..2],
            &smile[2..],
            "é".as_bytes(),
            b"\xff",
            b"b",
        ];
        let top = || {
            vec![
                token(&smile[..1], Vec::new()),
                token(&smile[..3], Vec::new()),
            ]
        };
        for part in parts {
            logprobs.add(Dialect::Completion, &token(part, top()));
        }
        let mut out = Vec::new();
        logprobs.write(&mut out, Dialect::Completion);
        let found: Value = serde_json::from_slice(&out).expect("JSON");
        let texts = json!([
            "a",
            "bytes:\\xf0\\x9f",
            "bytes:\\x98\\x80",
            "é",
            "bytes:\\xff",
            "b"
        ]);
        assert_eq!(found["tokens"], texts);
        assert_eq!(found["text_offset"], json!([0, 1, 1, 2, 3, 4]));
        let top = found["top_logprobs"][0].as_object().expect("alternatives");
        assert_eq!(top.len(), 2, "no two have the same key");
    }

    #[test]
    fn a_whole_chat_is_written_as_an_object_would_be() {
        let top = json!([{"token": "b\"", "logprob": -0.5, "bytes": [98, 34]}]);
        let entry = |text: &str| {
            let bytes = text.as_bytes();
            json!({"token": text, "logprob": -0.5, "bytes": bytes, "top_logprobs": top})
        };
        let whole = whole(Dialect::Chat);
        assert_eq!(
            whole["choices"],
            json!([
                {
                    "index": 0, "finish_reason": "stop",
                    "logprobs": {"content": [entry("é\n"), entry("x")], "refusal": null},
                    "message": {"role": "assistant", "content": "é\nx", "refusal": null},
                },
                {
                    "index": 1, "finish_reason": null, "logprobs": null,
                    "message": {"role": "assistant", "content": "", "refusal": null},
                },
            ])
        );
        assert_eq!(whole["object"], "chat.completion");
        assert_eq!(whole["usage"]["total_tokens"], 0);
    }

    #[test]
    fn a_whole_completion_is_written_as_an_object_would_be() {
        let top = json!({"b\"": -0.5});
        let whole = whole(Dialect::Completion);
        assert_eq!(
            whole["choices"][0],
            json!({
                "index": 0, "finish_reason": "stop", "text": "é\nx",
                "logprobs": {
                    "tokens": ["é\n", "x"], "token_logprobs": [-0.5, -0.5],
                    "top_logprobs": [top, top], "text_offset": [0, 2],
                },
            })
        );
        assert_eq!((&whole["id"], &whole["created"]), (&json!("id"), &json!(7)));
    }
}
