//! What a request for a response brings: a text, or messages as OpenAI's items.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::super::lists::Object;
use crate::api::http::error::{HttpError, shorten};
use crate::responses::Message;

/// Messages, and the first item that is none.
#[derive(Debug, Clone, Default)]
pub struct Items {
    messages: Vec<Message>,
    wrong: Option<Wrong>,
}

/// What is wrong with an item.
#[derive(Debug, Clone)]
struct Wrong {
    item: usize,
    field: &'static str,
    why: String,
}

impl Items {
    /// The messages.
    ///
    /// # Errors
    /// Names the item that is something else than a message of text, and if there is none.
    pub fn messages(self) -> Result<Vec<Message>, HttpError> {
        if let Some(Wrong { item, field, why }) = self.wrong {
            return Err(HttpError::invalid(&format!("input[{item}].{field}"), why));
        }
        if self.messages.is_empty() {
            let message = "input is empty: send a text, or at least one message";
            return Err(HttpError::invalid("input", message));
        }
        Ok(self.messages)
    }

    fn push(&mut self, item: Item) {
        match item.message() {
            Ok(message) => self.messages.push(message),
            Err((field, why)) => {
                let item = self.messages.len();
                self.wrong.get_or_insert(Wrong { item, field, why });
            }
        }
    }
}

#[derive(Deserialize)]
struct Item {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    role: Option<String>,
    #[serde(default)]
    content: Option<Content>,
}

impl Item {
    /// The message, or the field that is wrong and why.
    fn message(self) -> Result<Message, (&'static str, String)> {
        match self.kind.as_deref() {
            None | Some("message") => {}
            Some("item_reference") => {
                let why = "references to items are not supported: send the item, or go on with \
                           `previous_response_id`";
                return Err(("type", why.into()));
            }
            Some(other) => {
                let other = shorten(other);
                let why = format!("items of type `{other}` are not supported, only `message`");
                return Err(("type", why));
            }
        }
        let role = match self.role.as_deref() {
            Some("user") => "user",
            Some("assistant") => "assistant",
            // Templates of models know no developers; OpenAI's models take both for the same.
            Some("system" | "developer") => "system",
            Some(other) => {
                let other = shorten(other);
                let why = format!(
                    "`{other}` is no role of a message: send user, assistant, system or developer"
                );
                return Err(("role", why));
            }
            None => return Err(("role", "a message needs a role".into())),
        };
        let Some(Content { text, wrong }) = self.content else {
            return Err(("content", "a message needs content".into()));
        };
        if let Some(why) = wrong {
            return Err(("content", why));
        }
        let role = role.to_owned();
        Ok(Message { role, text })
    }
}

/// The text of a message, which comes whole or in parts.
#[derive(Default)]
struct Content {
    text: String,
    /// What is wrong with the first part that is no text.
    wrong: Option<String>,
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
}

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Items;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of items")
            }

            fn visit_str<E>(self, text: &str) -> Result<Items, E> {
                let message = Message {
                    role: "user".into(),
                    text: text.to_owned(),
                };
                Ok(Items {
                    messages: vec![message],
                    wrong: None,
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Items, A::Error> {
                let mut items = Items::default();
                while let Some(Object(item)) = list.next_element()? {
                    // What stands behind an error is read over.
                    if items.wrong.is_none() {
                        items.push(item);
                    }
                }
                Ok(items)
            }
        }

        from.deserialize_any(List)
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
                    wrong: None,
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Content, A::Error> {
                let mut content = Content::default();
                while let Some(Object(Part { kind, text })) = list.next_element()? {
                    let wrong = match (kind.as_str(), text) {
                        ("input_text" | "output_text", Some(text)) => {
                            content.text.push_str(&text);
                            continue;
                        }
                        ("input_text" | "output_text", None) => "a part needs `text`".into(),
                        _ => format!(
                            "content of type `{}` is not supported, only `input_text` and \
                             `output_text`",
                            shorten(&kind)
                        ),
                    };
                    content.wrong.get_or_insert(wrong);
                }
                Ok(content)
            }
        }

        from.deserialize_any(Parts)
    }
}
