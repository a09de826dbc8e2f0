//! The messages of a conversation, of which neighbours of one role are one turn.

use std::fmt;

use palimpsest_proto::v1::ChatMessage;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::super::lists::Object;
use super::content::{Content, MAX_CUTS};
use crate::api::http::error::{HttpError, shorten};
use crate::request::Cut;

/// Whose instructions are.
const SYSTEM: &str = "system";
/// What stands between messages that are one turn.
const BETWEEN: &str = "\n\n";

/// Turns, and the first message that is none.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns {
    pub(super) messages: Vec<ChatMessage>,
    /// Ends of marked blocks, few of which are too many.
    pub(super) cuts: Vec<Cut>,
    /// What is wrong with a message.
    pub(super) wrong: Option<HttpError>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Content,
}

impl Turns {
    /// Adds what a role says.
    fn push(&mut self, role: &str, content: Content) {
        let Content { text, cuts, .. } = content;
        let before = match self.messages.last_mut() {
            Some(last) if last.role == role => {
                last.content.push_str(BETWEEN);
                let before = last.content.len();
                last.content.push_str(&text);
                before
            }
            _ => {
                self.messages.push(ChatMessage {
                    role: role.to_owned(),
                    content: text,
                    ..Default::default()
                });
                0
            }
        };
        let message = self.messages.len() - 1;
        let cuts = cuts.into_iter().map(|bytes| Cut {
            message,
            bytes: before + bytes,
        });
        self.cuts.extend(cuts);
        self.cuts.truncate(MAX_CUTS + 1);
    }

    /// Puts instructions before all turns.
    pub(super) fn begin_with(&mut self, system: Content) {
        let Content { mut text, cuts, .. } = system;
        match self.messages.first_mut() {
            Some(first) if first.role == SYSTEM => {
                text.push_str(BETWEEN);
                let of_first = self.cuts.iter_mut().filter(|cut| cut.message == 0);
                of_first.for_each(|cut| cut.bytes += text.len());
                first.content.insert_str(0, &text);
            }
            _ => {
                self.cuts.iter_mut().for_each(|cut| cut.message += 1);
                let first = ChatMessage {
                    role: SYSTEM.to_owned(),
                    content: text,
                    ..Default::default()
                };
                self.messages.insert(0, first);
            }
        }
        let cuts = cuts.into_iter().map(|bytes| Cut { message: 0, bytes });
        self.cuts.splice(0..0, cuts);
    }

    fn take(&mut self, index: usize, message: Message) {
        let Message { role, content } = message;
        let at = format!("messages[{index}]");
        if !["user", "assistant", SYSTEM].contains(&role.as_str()) {
            let role = shorten(&role);
            let message = format!("`{role}` is no role: send user, assistant or system");
            self.wrong = Some(HttpError::invalid(&format!("{at}.role"), message));
        } else if let Some(wrong) = &content.wrong {
            self.wrong = Some(wrong.of(&format!("{at}.content")));
        } else {
            self.push(&role, content);
        }
    }
}

impl<'de> Deserialize<'de> for Turns {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Turns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of messages")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Turns, A::Error> {
                let mut turns = Turns::default();
                let mut index = 0;
                while let Some(Object(message)) = list.next_element()? {
                    // What stands behind an error is read over.
                    if turns.wrong.is_none() {
                        turns.take(index, message);
                    }
                    index += 1;
                }
                Ok(turns)
            }
        }

        from.deserialize_seq(List)
    }
}
