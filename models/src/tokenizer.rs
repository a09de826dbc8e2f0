//! Tokenizer files of a model: `tokenizer.json` as the `tokenizers` library reads it, and the chat
//! template.

use std::path::Path;

use serde_json::{Map, Value};

pub use crate::error::TokenizerError;
use crate::error::{Error, Result};

/// What a client of the model needs to go from text to tokens and back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerFiles {
    /// Content of `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    /// Jinja template that renders a conversation.
    pub chat_template: Option<String>,
    /// Text of the token that begins a text.
    pub bos_token: Option<String>,
    /// Text of the token that ends a text.
    pub eos_token: Option<String>,
    /// Tokens that end a generation.
    pub eos_ids: Vec<u32>,
}

impl TokenizerFiles {
    /// Reads `tokenizer.json`, and `tokenizer_config.json`, `special_tokens_map.json` and
    /// `chat_template.jinja` where they exist.
    pub(crate) fn from_directory(dir: &Path, eos_ids: &[u32]) -> Result<Self> {
        let missing = Error::MissingFile {
            dir: dir.to_owned(),
            what: "tokenizer.json",
        };
        let tokenizer_json = read(&dir.join("tokenizer.json"))?.ok_or(missing)?;
        let config = read_object(&dir.join("tokenizer_config.json"))?;
        let special = read_object(&dir.join("special_tokens_map.json"))?;
        let token = |key: &str| text_of(config.get(key)).or_else(|| text_of(special.get(key)));
        let template = read(&dir.join("chat_template.jinja"))?;
        let template = template.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Self {
            tokenizer_json,
            chat_template: template.or_else(|| chat_template(config.get("chat_template"))),
            bos_token: token("bos_token"),
            eos_token: token("eos_token"),
            eos_ids: eos_ids.to_vec(),
        })
    }
}

/// Content of a file, `None` when there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, error)),
    }
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let Some(bytes) = read(path)? else {
        return Ok(Map::new());
    };
    serde_json::from_slice(&bytes).map_err(|error| Error::Tokenizer {
        path: path.to_owned(),
        source: error.into(),
    })
}

/// A special token: its text, or an object that holds it.
fn text_of(value: Option<&Value>) -> Option<String> {
    let value = value?;
    value
        .as_str()
        .or_else(|| value.get("content")?.as_str())
        .map(str::to_owned)
}

/// A template, or the one called `default` of several.
fn chat_template(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(template) => Some(template.clone()),
        Value::Array(templates) => {
            let is_default =
                |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
            Some(
                templates
                    .iter()
                    .find(is_default)?
                    .get("template")?
                    .as_str()?
                    .to_owned(),
            )
        }
        _ => None,
    }
}
