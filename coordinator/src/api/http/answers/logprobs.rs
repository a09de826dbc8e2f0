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
    /// The bytes of a character that is not whole yet.
    part: Vec<u8>,
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
                // The token itself is one of them, whether or not it is among the best.
                let top = token.top.iter().chain([token]);
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

/// The text of a token, or its bytes as OpenAI writes them where it is part of a character: two
/// tokens never have the same.
pub(super) fn text(token: &TokenLogprob) -> String {
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
