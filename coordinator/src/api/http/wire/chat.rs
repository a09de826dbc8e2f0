//! What a body says of a conversation: its messages, the tools, and how the template is run.

use std::fmt;

use palimpsest_proto::v1::{Chat, Tool, ToolMode};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::lists::Object;
use super::messages::Messages;
use super::read::read_field;
use crate::api::http::error::{HttpError, shorten};
use crate::request::MAX_TOOLS;

/// A conversation as a body has it.
#[derive(Debug, Clone, Default)]
pub(super) struct ChatFields {
    messages: Option<Messages>,
    tools: Option<Tools>,
    tool_choice: Option<ToolChoice>,
    parallel_tool_calls: Option<bool>,
    chat_template_kwargs: Option<Box<RawValue>>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    answer_prefix: Option<String>,
}

impl ChatFields {
    pub(super) fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        read_field!(
            self, field, values;
            messages, tools, tool_choice, parallel_tool_calls, chat_template_kwargs,
            add_generation_prompt, continue_final_message, answer_prefix,
        );
        Ok(())
    }

    /// Whether the body has messages.
    pub(super) fn has_messages(&self) -> bool {
        self.messages.is_some()
    }

    /// Checks the fields beside a text, which has no template to write them: those that would say
    /// something must not be there, and the others must at least be well formed.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub(super) fn check_beside_text(&self) -> Result<(), HttpError> {
        let kwargs = self.chat_template_kwargs.as_ref();
        let is_odd = |raw: &str| raw != "null" && !raw.starts_with('{');
        if kwargs.is_some_and(|raw| is_odd(raw.get())) {
            let message = "chat_template_kwargs must be a JSON object";
            return Err(HttpError::invalid("chat_template_kwargs", message));
        }
        self.tool_choice.clone().unwrap_or_default().read()?;
        if !self.tools.clone().unwrap_or_default().tools()?.is_empty() {
            let message = "the chat template writes the tools: send `messages`, or leave them out";
            return Err(HttpError::invalid("tools", message));
        }
        Ok(())
    }

    /// The conversation as the service takes it.
    ///
    /// # Errors
    /// Names the field that is wrong or not supported.
    pub(super) fn chat(self) -> Result<Chat, HttpError> {
        let continues = self.continue_final_message.unwrap_or(false);
        if continues && self.add_generation_prompt == Some(true) {
            let message = "add_generation_prompt begins a new message and continue_final_message \
                           goes on with the last: send one of them";
            return Err(HttpError::invalid("continue_final_message", message));
        }
        let kwargs = self.chat_template_kwargs.filter(|raw| raw.get() != "null");
        let choice = self.tool_choice.unwrap_or_default().read()?;
        Ok(Chat {
            tools: self.tools.unwrap_or_default().tools()?,
            tool_mode: choice.mode.into(),
            tool_name: choice.name,
            single_call: self.parallel_tool_calls == Some(false),
            template_kwargs: kwargs.map_or_else(String::new, |raw| raw.get().to_owned()),
            no_opening: self.add_generation_prompt == Some(false),
            continue_final_message: continues,
            answer_prefix: self.answer_prefix.unwrap_or_default(),
            split_reasoning: true,
            ..self.messages.unwrap_or_default().chat()?
        })
    }
}

/// The tools, no more than one too many.
#[derive(Debug, Clone, Default)]
struct Tools {
    tools: Vec<Tool>,
    /// The first that is no function.
    other: Option<OtherTool>,
}

#[derive(Debug, Clone)]
struct OtherTool {
    index: usize,
    /// The beginning of its type.
    kind: String,
}

impl Tools {
    fn tools(self) -> Result<Vec<Tool>, HttpError> {
        let Some(OtherTool { index, kind }) = self.other else {
            return Ok(self.tools);
        };
        let message = format!("a tool of type `{kind}` is not supported, only `function`");
        Err(HttpError::invalid(&format!("tools[{index}].type"), message))
    }
}

#[derive(Deserialize)]
struct ToolBody {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    function: Option<Object<Function>>,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    parameters: Option<Box<RawValue>>,
    #[serde(default)]
    strict: Option<bool>,
}

impl From<Function> for Tool {
    fn from(function: Function) -> Self {
        let parameters = function.parameters.filter(|raw| raw.get() != "null");
        Self {
            name: function.name,
            description: function.description.unwrap_or_default(),
            parameters: parameters.map_or_else(String::new, |raw| raw.get().to_owned()),
            strict: function.strict.unwrap_or(false),
        }
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
                while let Some(Object(ToolBody { kind, function })) = list.next_element()? {
                    match function {
                        Some(Object(function)) if kind == "function" => {
                            if tools.tools.len() <= MAX_TOOLS {
                                tools.tools.push(function.into());
                            }
                        }
                        _ => {
                            let kind = shorten(&kind);
                            tools.other.get_or_insert(OtherTool { index, kind });
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
#[derive(Debug, Clone)]
enum ToolChoice {
    /// In a word.
    Word(String),
    /// One by its name.
    Named(String),
    /// The beginning of another object's type.
    Other(String),
}

impl Default for ToolChoice {
    fn default() -> Self {
        Self::Word("auto".to_owned())
    }
}

/// A choice as the service takes it.
struct Choice {
    mode: ToolMode,
    name: String,
}

impl ToolChoice {
    fn read(self) -> Result<Choice, HttpError> {
        let by_mode = |mode| Choice {
            mode,
            name: String::new(),
        };
        match self {
            Self::Word(word) if word == "auto" => Ok(by_mode(ToolMode::Auto)),
            Self::Word(word) if word == "none" => Ok(by_mode(ToolMode::None)),
            Self::Word(word) if word == "required" => Ok(by_mode(ToolMode::Required)),
            Self::Named(name) => Ok(Choice {
                mode: ToolMode::Required,
                name,
            }),
            Self::Word(other) | Self::Other(other) => {
                let message = format!(
                    "tool_choice `{}` is not supported: send `auto`, `none`, `required`, or \
                     {{\"type\": \"function\", \"function\": {{\"name\": …}}}}",
                    shorten(&other)
                );
                Err(HttpError::invalid("tool_choice", message))
            }
        }
    }
}

#[derive(Deserialize)]
struct NamedTool {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    function: Option<Object<Name>>,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

impl<'de> Deserialize<'de> for ToolChoice {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = ToolChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word or an object")
            }

            fn visit_str<E>(self, word: &str) -> Result<ToolChoice, E> {
                Ok(ToolChoice::Word(shorten(word)))
            }

            fn visit_map<A: MapAccess<'de>>(self, values: A) -> Result<ToolChoice, A::Error> {
                let named = NamedTool::deserialize(MapAccessDeserializer::new(values))?;
                Ok(match named.function {
                    Some(Object(Name { name })) if named.kind == "function" => {
                        ToolChoice::Named(name)
                    }
                    _ => ToolChoice::Other(shorten(&named.kind)),
                })
            }
        }

        from.deserialize_any(Any)
    }
}
