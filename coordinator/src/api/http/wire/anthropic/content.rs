//! The text of a message or of instructions, which comes whole or in blocks.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::super::lists::Object;
use super::tools;
use crate::api::http::error::{HttpError, shorten};

/// Blocks of a request whose ends may be marked.
pub(super) const MAX_CUTS: usize = 4;

/// A text, and where in it blocks end that are marked.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    /// All blocks, one behind the other.
    pub(super) text: String,
    /// Ends of marked blocks, in bytes; no more than one too many.
    pub(super) cuts: Vec<usize>,
    /// What is wrong with the first block that is no text.
    pub(super) wrong: Option<WrongBlock>,
}

/// A block that is refused.
#[derive(Debug, Clone)]
pub(super) struct WrongBlock {
    block: usize,
    field: &'static str,
    why: String,
}

impl WrongBlock {
    /// The error, where the blocks stand in the field `parent`.
    pub(super) fn of(&self, parent: &str) -> HttpError {
        let Self { block, field, why } = self;
        HttpError::invalid(&format!("{parent}[{block}].{field}"), why.clone())
    }
}

#[derive(Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    cache_control: Option<Object<CacheControl>>,
}

#[derive(Default, Deserialize)]
struct CacheControl {
    #[serde(rename = "type")]
    kind: String,
}

impl Content {
    fn push(&mut self, block: Block) -> Result<(), (&'static str, String)> {
        let Block {
            kind,
            text,
            cache_control,
        } = block;
        if let Some(why) = tools::refusal(&kind) {
            return Err(("type", why));
        }
        if kind != "text" {
            let kind = shorten(&kind);
            let why = format!("content of type `{kind}` is not supported, only `text`");
            return Err(("type", why));
        }
        let text = text.ok_or_else(|| ("text", "a block needs `text`".to_owned()))?;
        self.text.push_str(&text);
        match cache_control {
            Some(Object(CacheControl { kind })) if kind != "ephemeral" => {
                let kind = shorten(&kind);
                let why = format!("a mark of type `{kind}` is not supported, only `ephemeral`");
                return Err(("cache_control", why));
            }
            Some(_) if self.cuts.len() <= MAX_CUTS => self.cuts.push(self.text.len()),
            Some(_) | None => {}
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Blocks;

        impl<'de> Visitor<'de> for Blocks {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of blocks")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content {
                    text: text.to_owned(),
                    ..Content::default()
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Content, A::Error> {
                let mut content = Content::default();
                let mut index = 0;
                while let Some(Object(block)) = list.next_element()? {
                    // What stands behind an error is read over.
                    if content.wrong.is_none()
                        && let Err((field, why)) = content.push(block)
                    {
                        let block = index;
                        content.wrong = Some(WrongBlock { block, field, why });
                    }
                    index += 1;
                }
                Ok(content)
            }
        }

        from.deserialize_any(Blocks)
    }
}
