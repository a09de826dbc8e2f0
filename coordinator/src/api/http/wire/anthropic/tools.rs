//! Tools in Anthropic's form: the same functions under other names.

use std::fmt;

use palimpsest_proto::v1::{Tool, ToolMode};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::super::lists::Object;
use crate::api::http::error::{HttpError, shorten};
use crate::request::MAX_TOOLS;

/// What ids of calls begin with in Anthropic's API. Templates of Mistral's models ask for ids of
/// nine letters and digits, so they never see it.
pub const CALL_PREFIX: &str = "toolu_";

/// The id of a call as the service made it, of the one that its client sends back.
pub(super) fn own_id(id: &str) -> &str {
    id.strip_prefix(CALL_PREFIX).unwrap_or(id)
}

/// The tools, no more than one too many.
#[derive(Debug, Clone, Default)]
pub(super) struct Tools {
    tools: Vec<Tool>,
    /// What is wrong with the first tool that is refused.
    wrong: Option<HttpError>,
}

impl Tools {
    /// The tools as the service takes them.
    ///
    /// # Errors
    /// Names the tool that is refused.
    pub(super) fn tools(self) -> Result<Vec<Tool>, HttpError> {
        self.wrong.map_or(Ok(self.tools), Err)
    }
}

#[derive(Deserialize)]
struct RawTool {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    input_schema: Option<Box<RawValue>>,
    #[serde(default)]
    strict: Option<bool>,
}

impl RawTool {
    /// The tool, which stands at `place`.
    fn read(self, place: &str) -> Result<Tool, HttpError> {
        let wrong = |field: &str, why: String| HttpError::invalid(&format!("{place}.{field}"), why);
        let kind = self.kind.as_deref().unwrap_or("custom");
        if kind != "custom" {
            let kind = shorten(kind);
            let why = format!(
                "a tool of type `{kind}` is not supported, only `custom`: the server runs no tools"
            );
            return Err(wrong("type", why));
        }
        let Some(name) = self.name else {
            return Err(wrong("name", "a tool needs a `name`".to_owned()));
        };
        let schema = self.input_schema;
        let Some(schema) = schema.filter(|schema| schema.get().trim_start().starts_with('{'))
        else {
            let why = "a tool needs an `input_schema`, which is a JSON Schema of an object";
            return Err(wrong("input_schema", why.to_owned()));
        };
        Ok(Tool {
            name,
            description: self.description.unwrap_or_default(),
            parameters: schema.get().to_owned(),
            strict: self.strict.unwrap_or(false),
        })
    }
}

impl<'de> Deserialize<'de> for Tools {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Tools;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tools")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tools, A::Error> {
                let mut tools = Tools::default();
                let mut index = 0;
                while let Some(Object(raw)) = list.next_element::<Object<RawTool>>()? {
                    // One too many is refused, and what is behind it is read over.
                    if tools.wrong.is_none() && tools.tools.len() <= MAX_TOOLS {
                        match raw.read(&format!("tools[{index}]")) {
                            Ok(tool) => tools.tools.push(tool),
                            Err(wrong) => tools.wrong = Some(wrong),
                        }
                    }
                    index += 1;
                }
                Ok(tools)
            }
        }

        from.deserialize_seq(List)
    }
}

/// Which tools may or must be called.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct ToolChoice {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    disable_parallel_tool_use: Option<bool>,
}

/// A choice as the service takes it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Choice {
    pub(super) mode: ToolMode,
    /// The tool that must be called; empty: any.
    pub(super) name: String,
    /// No more than one call.
    pub(super) single: bool,
}

impl ToolChoice {
    /// The choice as the service takes it.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub(super) fn read(self) -> Result<Choice, HttpError> {
        let name = self.name.unwrap_or_default();
        let mode = match self.kind.as_str() {
            "auto" => ToolMode::Auto,
            "none" => ToolMode::None,
            "any" => ToolMode::Required,
            "tool" if name.is_empty() => {
                let why = "tool_choice of type `tool` needs the `name` of one of the tools";
                return Err(HttpError::invalid("tool_choice.name", why));
            }
            "tool" => ToolMode::Required,
            other => {
                let why = format!(
                    "tool_choice of type `{}` is not supported: send `auto`, `any`, `tool` or \
                     `none`",
                    shorten(other)
                );
                return Err(HttpError::invalid("tool_choice.type", why));
            }
        };
        Ok(Choice {
            mode,
            name: if self.kind == "tool" {
                name
            } else {
                String::new()
            },
            single: self.disable_parallel_tool_use.unwrap_or(false),
        })
    }
}
