//! Tokens of a GGUF file, by id and by text.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::gguf::{Gguf, GgufError};
use crate::tokenizer::TokenizerError;

pub(super) type Result<T> = std::result::Result<T, TokenizerError>;

/// Token types of `tokenizer.ggml.token_type` that are added tokens, matched before the model runs.
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

/// The tokens of a file.
pub(super) struct Vocabulary<'a> {
    pub(super) tokens: Vec<&'a str>,
    pub(super) types: Vec<f64>,
    pub(super) ids: HashMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    pub(super) fn read(gguf: &Gguf, file: &'a [u8]) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let tokens = gguf
            .texts(file, key)?
            .ok_or_else(|| GgufError::MissingKey(key.to_owned()))?;
        let types = gguf
            .numbers(file, "tokenizer.ggml.token_type")?
            .unwrap_or_else(|| vec![1.0; tokens.len()]);
        if types.len() != tokens.len() {
            let (found, expected) = (types.len(), tokens.len());
            return Err(TokenizerError::Length {
                what: "tokenizer.ggml.token_type",
                found,
                expected,
            });
        }
        let mut ids = HashMap::new();
        for (id, token) in tokens.iter().enumerate() {
            if ids.insert(*token, id).is_some() {
                return Err(TokenizerError::Duplicate((*token).to_owned()));
            }
        }
        Ok(Self { tokens, types, ids })
    }

    /// The token that metadata `key` names, if it names one.
    pub(super) fn named(&self, gguf: &Gguf, key: &'static str) -> Result<Option<&'a str>> {
        let Some(id) = gguf.unsigned(key)? else {
            return Ok(None);
        };
        let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
        let error = TokenizerError::Id {
            what: key,
            id,
            len: self.tokens.len(),
        };
        token.map(|token| Some(*token)).ok_or(error)
    }

    pub(super) fn as_json(&self) -> Map<String, Value> {
        self.tokens
            .iter()
            .enumerate()
            .map(|(id, token)| ((*token).to_owned(), json!(id)))
            .collect()
    }

    pub(super) fn added_tokens(&self) -> Vec<Value> {
        let added = self.tokens.iter().zip(&self.types).enumerate();
        let added = added.filter(|(_, (_, kind))| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind));
        let entry = |(id, (token, &kind)): (usize, (&&str, &f64))| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind != USER_DEFINED,
            })
        };
        added.map(entry).collect()
    }
}
