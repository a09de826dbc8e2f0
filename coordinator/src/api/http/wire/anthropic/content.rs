//! What a message or instructions say, which comes as a text or in blocks.

use std::fmt;

use palimpsest_proto::v1::ToolCall;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::super::lists::Object;
use super::tools;
use crate::api::http::error::{HttpError, shorten};

/// Blocks of a request whose ends may be marked.
pub(super) const MAX_CUTS: usize = 4;
/// What stands before the result of a call that has failed.
const FAILED: &str = "Error: ";

/// The blocks of a message.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    /// Texts that follow each other without a mark between them are one.
    pub(super) blocks: Vec<Block>,
    /// What is wrong with the first block that is refused.
    pub(super) wrong: Option<WrongBlock>,
}

/// A block of a message.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// Its number in the message.
    pub(super) index: usize,
    pub(super) part: Part,
    /// The state at its end is to be kept.
    pub(super) is_marked: bool,
}

/// What a block says.
#[derive(Debug, Clone)]
pub(super) enum Part {
    Text(String),
    /// What the assistant thought.
    Thought(String),
    /// What the assistant called.
    Call(ToolCall),
    /// What a tool answered.
    Result(ToolResult),
}

/// What a tool answered.
#[derive(Debug, Clone)]
pub(super) struct ToolResult {
    /// Of the call.
    pub(super) id: String,
    pub(super) text: String,
}

/// A block that is refused.
#[derive(Debug, Clone)]
pub(super) struct WrongBlock {
    block: usize,
    /// The field of the block, or a path in it.
    field: String,
    why: String,
}

impl WrongBlock {
    /// The error, where the blocks stand in the field `parent`.
    pub(super) fn of(&self, parent: &str) -> HttpError {
        let Self { block, field, why } = self;
        HttpError::invalid(&format!("{parent}[{block}].{field}"), why.clone())
    }
}

/// A field of a block that is refused, and why.
struct Wrong {
    field: String,
    why: String,
}

impl Wrong {
    fn new(field: &str, why: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            why: why.into(),
        }
    }

    /// A block that needs a field which it does not have.
    fn without(field: &str) -> Self {
        Self::new(field, format!("a block of this type needs `{field}`"))
    }
}

#[derive(Deserialize)]
struct RawBlock {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    thinking: Option<String>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    input: Option<Box<RawValue>>,
    #[serde(default)]
    tool_use_id: Option<String>,
    // Blocks of other types have one of another kind, and are refused by their type.
    #[serde(default)]
    content: Option<Box<RawValue>>,
    #[serde(default)]
    is_error: Option<bool>,
    #[serde(default)]
    cache_control: Option<Object<CacheControl>>,
}

#[derive(Default, Deserialize)]
struct CacheControl {
    #[serde(rename = "type")]
    kind: String,
}

impl RawBlock {
    fn part(&mut self) -> Result<Part, Wrong> {
        let without = |field| move || Wrong::without(field);
        match self.kind.as_str() {
            "text" => self.text.take().map(Part::Text).ok_or_else(without("text")),
            "thinking" => {
                let thought = self.thinking.take().map(Part::Thought);
                thought.ok_or_else(without("thinking"))
            }
            "tool_use" => self.call().map(Part::Call),
            "tool_result" => self.result().map(Part::Result),
            other => {
                let kind = shorten(other);
                let why = format!(
                    "content of type `{kind}` is not supported, only `text`, `thinking`, \
                     `tool_use` and `tool_result`"
                );
                Err(Wrong::new("type", why))
            }
        }
    }

    fn call(&mut self) -> Result<ToolCall, Wrong> {
        let id = self.id.take().filter(|id| !id.is_empty());
        let name = self.name.take().filter(|name| !name.is_empty());
        let input = self.input.take();
        let is_object = |input: &RawValue| input.get().trim_start().starts_with('{');
        let arguments = match input {
            None => return Err(Wrong::without("input")),
            Some(input) if is_object(&input) => input.get().to_owned(),
            Some(_) => return Err(Wrong::new("input", "the input of a call is an object")),
        };
        Ok(ToolCall {
            id: tools::own_id(&id.ok_or_else(|| Wrong::without("id"))?).to_owned(),
            name: name.ok_or_else(|| Wrong::without("name"))?,
            arguments,
        })
    }

    fn result(&mut self) -> Result<ToolResult, Wrong> {
        let id = self.tool_use_id.take().filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| Wrong::without("tool_use_id"))?;
        let content = self.content.take();
        let mut text = content.map_or(Ok(String::new()), |content| result_text(&content))?;
        if self.is_error == Some(true) {
            text.insert_str(0, FAILED);
        }
        let id = tools::own_id(&id).to_owned();
        Ok(ToolResult { id, text })
    }

    /// Whether its end is marked.
    fn is_marked(&self) -> Result<bool, Wrong> {
        match &self.cache_control {
            Some(Object(CacheControl { kind })) if kind != "ephemeral" => {
                let kind = shorten(kind);
                let why = format!("a mark of type `{kind}` is not supported, only `ephemeral`");
                Err(Wrong::new("cache_control", why))
            }
            mark => Ok(mark.is_some()),
        }
    }
}

/// The text of a result, which comes whole or in blocks.
fn result_text(content: &RawValue) -> Result<String, Wrong> {
    let read: ResultContent = serde_json::from_str(content.get())
        .map_err(|_| Wrong::new("content", "a result is a text or a list of blocks of text"))?;
    match read.other {
        None => Ok(read.text),
        Some(OtherPart { index, kind }) => {
            let why = format!("a result of type `{kind}` is not supported, only `text`");
            Err(Wrong::new(&format!("content[{index}].type"), why))
        }
    }
}

#[derive(Default)]
struct ResultContent {
    text: String,
    other: Option<OtherPart>,
}

/// The first part of a result that is no text.
struct OtherPart {
    index: usize,
    /// The beginning of its type.
    kind: String,
}

#[derive(Deserialize)]
struct ResultPart {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
}

impl<'de> Deserialize<'de> for ResultContent {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Parts;

        impl<'de> Visitor<'de> for Parts {
            type Value = ResultContent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of blocks")
            }

            fn visit_unit<E>(self) -> Result<ResultContent, E> {
                Ok(ResultContent::default())
            }

            fn visit_str<E>(self, text: &str) -> Result<ResultContent, E> {
                let text = text.to_owned();
                Ok(ResultContent { text, other: None })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ResultContent, A::Error> {
                let mut content = ResultContent::default();
                let mut index = 0;
                while let Some(Object(part)) = list.next_element::<Object<ResultPart>>()? {
                    if part.kind == "text" {
                        content.text.push_str(&part.text.unwrap_or_default());
                    } else {
                        let kind = shorten(&part.kind);
                        content.other.get_or_insert(OtherPart { index, kind });
                    }
                    index += 1;
                }
                Ok(content)
            }
        }

        from.deserialize_any(Parts)
    }
}

impl Content {
    /// A text, which is all there is.
    fn of_text(text: &str) -> Self {
        let block = Block {
            index: 0,
            part: Part::Text(text.to_owned()),
            is_marked: false,
        };
        Self {
            blocks: vec![block],
            wrong: None,
        }
    }

    fn push(&mut self, index: usize, mut raw: RawBlock) -> Result<(), Wrong> {
        let part = raw.part()?;
        let is_marked = raw.is_marked()?;
        if let Part::Text(text) = &part
            && let Some(last) = self.blocks.last_mut().filter(|last| !last.is_marked)
            && let Part::Text(before) = &mut last.part
        {
            before.push_str(text);
            last.is_marked = is_marked;
            return Ok(());
        }
        self.blocks.push(Block {
            index,
            part,
            is_marked,
        });
        Ok(())
    }

    /// The blocks, all of which are text, of the field `parent`.
    ///
    /// # Errors
    /// Names the first block that is none.
    pub(super) fn texts(self, parent: &str) -> Result<Vec<Text>, HttpError> {
        if let Some(wrong) = &self.wrong {
            return Err(wrong.of(parent));
        }
        let text = |block: Block| match block.part {
            Part::Text(text) => Ok(Text {
                text,
                is_marked: block.is_marked,
            }),
            _ => {
                let place = format!("{parent}[{}].type", block.index);
                Err(HttpError::invalid(&place, "only `text` may stand here"))
            }
        };
        self.blocks.into_iter().map(text).collect()
    }
}

/// A text, whose end may be marked.
#[derive(Debug, Clone)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) is_marked: bool,
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
                Ok(Content::of_text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Content, A::Error> {
                let mut content = Content::default();
                let mut index = 0;
                while let Some(Object(block)) = list.next_element()? {
                    // What stands behind an error is read over.
                    if content.wrong.is_none()
                        && let Err(Wrong { field, why }) = content.push(index, block)
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
