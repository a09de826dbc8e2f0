//! Messages of a conversation, as OpenAI's clients send them.

use std::fmt;

use palimpsest_proto::v1::{Chat, ChatMessage, MessageDetails, ToolCall};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::lists::Object;
use crate::api::http::error::{HttpError, shorten};

/// A conversation.
#[derive(Debug, Clone, Default)]
pub struct Messages {
    messages: Vec<ChatMessage>,
    other: Option<OtherPart>,
}

/// The first part of a message that is no text.
#[derive(Debug, Clone)]
struct OtherPart {
    message: usize,
    /// The beginning of its type.
    kind: String,
}

impl Messages {
    /// The conversation as the service takes it.
    ///
    /// # Errors
    /// Names the message that has something else than text.
    pub fn chat(self) -> Result<Chat, HttpError> {
        if let Some(OtherPart { message, kind }) = self.other {
            let text = format!("content of type `{kind}` is not supported, only `text`");
            return Err(HttpError::invalid(
                &format!("messages[{message}].content"),
                text,
            ));
        }
        Ok(Chat {
            messages: self.messages,
            ..Default::default()
        })
    }
}

#[derive(Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    tool_calls: Option<Vec<Object<Call>>>,
    #[serde(default)]
    tool_call_id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    reasoning: Option<String>,
}

/// A call that the assistant made.
#[derive(Deserialize)]
struct Call {
    #[serde(default)]
    id: Option<String>,
    function: Object<Function>,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    arguments: Option<Box<RawValue>>,
}

impl From<Call> for ToolCall {
    fn from(call: Call) -> Self {
        let Object(Function { name, arguments }) = call.function;
        let arguments = arguments.map_or_else(String::new, |raw| {
            // OpenAI's clients send JSON in a string, some others the object itself.
            let text = serde_json::from_str(raw.get());
            text.unwrap_or_else(|_| raw.get().to_owned())
        });
        Self {
            id: call.id.unwrap_or_default(),
            name,
            arguments,
        }
    }
}

impl Message {
    /// What few messages have.
    fn details(&mut self) -> Option<Box<MessageDetails>> {
        let calls = self.tool_calls.take().unwrap_or_default();
        let text = |text: &mut Option<String>| text.take().unwrap_or_default();
        let mut reasoning = text(&mut self.reasoning_content);
        if reasoning.is_empty() {
            reasoning = text(&mut self.reasoning);
        }
        let details = MessageDetails {
            tool_calls: calls.into_iter().map(|Object(call)| call.into()).collect(),
            tool_call_id: text(&mut self.tool_call_id),
            name: text(&mut self.name),
            reasoning,
        };
        (details != MessageDetails::default()).then(|| Box::new(details))
    }
}

/// The text of a message, which comes whole or in parts.
#[derive(Default)]
struct Content {
    text: String,
    other: Option<String>,
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: String,
}

impl<'de> Deserialize<'de> for Messages {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Messages;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of messages")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Messages, A::Error> {
                let mut messages = Messages::default();
                while let Some(Object(mut message)) = list.next_element::<Object<Message>>()? {
                    let details = message.details();
                    let Content { text, other } = message.content.unwrap_or_default();
                    if let (Some(kind), None) = (other, &messages.other) {
                        messages.other = Some(OtherPart {
                            message: messages.messages.len(),
                            kind,
                        });
                    }
                    messages.messages.push(ChatMessage {
                        role: message.role,
                        content: text,
                        details,
                    });
                }
                Ok(messages)
            }
        }

        from.deserialize_seq(List)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Parts;

        impl<'de> Visitor<'de> for Parts {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content {
                    text: text.to_owned(),
                    other: None,
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Content, A::Error> {
                let mut content = Content::default();
                while let Some(Object(Part { kind, text })) = list.next_element()? {
                    if kind == "text" {
                        content.text.push_str(&text);
                    } else {
                        content.other.get_or_insert_with(|| shorten(&kind));
                    }
                }
                Ok(content)
            }
        }

        from.deserialize_any(Parts)
    }
}
