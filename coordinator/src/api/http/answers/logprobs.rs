//! Log-probabilities as OpenAI's objects.

use palimpsest_proto::v1::TokenLogprob;
use serde_json::{Value, json};

use super::dialect::{Dialect, write_json};

/// Log-probabilities as the JSON that is sent: as objects they would take several times as much.
#[derive(Debug, Clone, Default)]
pub(super) struct Logprobs {
    /// Elements of the lists that the dialect has, with commas between them.
    lists: [Vec<u8>; 4],
    /// Characters of all tokens so far, and of what was before.
    offset: usize,
}

/// Names of the lists of `/v1/completions`.
const LISTS: [&str; 4] = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];

impl Logprobs {
    /// None so far, behind so many characters.
    pub(super) fn behind(characters: usize) -> Self {
        Self {
            offset: characters,
            ..Self::default()
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.lists.iter().map(Vec::len).sum()
    }

    pub(super) fn add(&mut self, dialect: Dialect, token: &TokenLogprob) {
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
                self.push(0, &json!(text));
                self.push(1, &json!(token.logprob));
                self.push(2, &Value::Object(top));
                self.push(3, &json!(self.offset));
                self.offset += text.chars().count();
            }
        }
    }

    fn push(&mut self, list: usize, value: &Value) {
        let list = &mut self.lists[list];
        if !list.is_empty() {
            list.push(b',');
        }
        write_json(list, value);
    }

    pub(super) fn write(&self, out: &mut Vec<u8>, dialect: Dialect) {
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

/// A token may be part of a character; its bytes are exact, its text is not.
fn text(token: &TokenLogprob) -> String {
    String::from_utf8_lossy(&token.bytes).into_owned()
}

fn entry(token: &TokenLogprob) -> Value {
    json!({"token": text(token), "logprob": token.logprob, "bytes": token.bytes.to_vec()})
}
