//! The messages of a conversation, of which neighbours of one role are one turn.

use std::fmt;

use palimpsest_proto::v1::{ChatMessage, MessageDetails, ToolCall};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::super::lists::Object;
use super::calls::{Calls, Place};
use super::content::{Block, Content, MAX_CUTS, Part, Text, ToolResult};
use crate::api::http::error::{HttpError, shorten};
use crate::request::Cut;

const ASSISTANT: &str = "assistant";
const USER: &str = "user";
/// Whose instructions are.
const SYSTEM: &str = "system";
/// Whose results are.
const TOOL: &str = "tool";
/// What stands between messages that are one turn.
const BETWEEN: &str = "\n\n";

/// Turns, and the first message that is none.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns {
    pub(super) messages: Vec<ChatMessage>,
    /// Ends of marked blocks, few of which are too many.
    pub(super) cuts: Vec<Cut>,
    /// What is wrong with a message.
    wrong: Option<HttpError>,
    calls: Calls,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Content,
}

impl Turns {
    /// Says that no more messages come.
    ///
    /// # Errors
    /// Names the message or block that is wrong.
    pub(super) fn finish(&mut self) -> Result<(), HttpError> {
        match self.wrong.take() {
            Some(wrong) => Err(wrong),
            None => self.calls.pass(),
        }
    }

    /// Puts instructions before all turns.
    pub(super) fn begin_with(&mut self, system: Vec<Text>) {
        let mut text = String::new();
        let mut ends = Vec::new();
        for block in system {
            text.push_str(&block.text);
            ends.extend(block.is_marked.then_some(text.len()));
        }
        if text.is_empty() {
            return;
        }
        match self.messages.first_mut() {
            Some(first) if first.role == SYSTEM => {
                text.push_str(BETWEEN);
                let of_first = self.cuts.iter_mut().filter(|cut| cut.message == 0);
                of_first.for_each(|cut| cut.bytes += text.len());
                first.content.insert_str(0, &text);
            }
            _ => {
                self.cuts.iter_mut().for_each(|cut| cut.message += 1);
                self.messages.insert(0, ChatMessage::new(SYSTEM, text));
            }
        }
        let cuts = ends.into_iter().take(MAX_CUTS + 1);
        let cuts = cuts.map(|bytes| Cut { message: 0, bytes });
        self.cuts.splice(0..0, cuts);
    }

    fn take(&mut self, index: usize, message: Message) -> Result<(), HttpError> {
        let Message { role, content } = message;
        let at = format!("messages[{index}]");
        if ![USER, ASSISTANT, SYSTEM].contains(&role.as_str()) {
            let role = shorten(&role);
            let message = format!("`{role}` is no role: send user, assistant or system");
            return Err(HttpError::invalid(&format!("{at}.role"), message));
        }
        if let Some(wrong) = &content.wrong {
            return Err(wrong.of(&format!("{at}.content")));
        }
        if content.blocks.is_empty() {
            self.text(&role, "", true)?;
        }
        let mut is_first = true;
        for block in content.blocks {
            let Block {
                index: number,
                part,
                is_marked,
            } = block;
            let place = Place {
                message: index,
                block: number,
            };
            match part {
                Part::Text(text) => {
                    self.text(&role, &text, is_first)?;
                    is_first = false;
                }
                Part::Thought(thought) => self.thought(&role, &thought, place)?,
                Part::Call(call) => self.call(&role, call, place)?,
                Part::Result(result) => self.result(&role, result, place)?,
            }
            if is_marked {
                self.mark();
            }
        }
        Ok(())
    }

    /// Adds what a role says, which may be the first text of its message.
    fn text(&mut self, role: &str, text: &str, is_first: bool) -> Result<(), HttpError> {
        if role != ASSISTANT {
            self.calls.pass()?;
        }
        match self.messages.last_mut() {
            Some(last) if last.role == role => {
                if is_first && !last.content.is_empty() {
                    last.content.push_str(BETWEEN);
                }
                last.content.push_str(text);
            }
            _ => self.messages.push(ChatMessage::new(role, text)),
        }
        Ok(())
    }

    fn thought(&mut self, role: &str, thought: &str, place: Place) -> Result<(), HttpError> {
        self.assistant(role, place)?.reasoning.push_str(thought);
        Ok(())
    }

    fn call(&mut self, role: &str, call: ToolCall, place: Place) -> Result<(), HttpError> {
        self.assistant(role, place)?;
        self.calls.call(&call.id, &call.name, place)?;
        self.assistant(role, place)?.tool_calls.push(call);
        Ok(())
    }

    /// What the message of the assistant has beside its text.
    fn assistant(&mut self, role: &str, place: Place) -> Result<&mut MessageDetails, HttpError> {
        if role != ASSISTANT {
            let why = format!("only the assistant thinks and calls, and this is the {role}");
            return Err(place.wrong("type", why));
        }
        let is_open = self
            .messages
            .last()
            .is_some_and(|last| last.role == ASSISTANT);
        if !is_open {
            self.messages.push(ChatMessage::new(ASSISTANT, ""));
        }
        let last = self.messages.last_mut().expect("one was pushed");
        Ok(last.details.get_or_insert_default())
    }

    fn result(&mut self, role: &str, result: ToolResult, place: Place) -> Result<(), HttpError> {
        if role != USER {
            let why = format!("results of calls are the user's, and this is the {role}");
            return Err(place.wrong("type", why));
        }
        let ToolResult { id, text } = result;
        let name = self.calls.result(&id, place)?;
        let details = MessageDetails {
            tool_call_id: id,
            name,
            ..Default::default()
        };
        self.messages.push(ChatMessage {
            details: Some(Box::new(details)),
            ..ChatMessage::new(TOOL, text)
        });
        Ok(())
    }

    /// Marks the end of what is there.
    fn mark(&mut self) {
        if let Some(last) = self.messages.last()
            && self.cuts.len() <= MAX_CUTS
        {
            self.cuts.push(Cut {
                message: self.messages.len() - 1,
                bytes: last.content.len(),
            });
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
                    if turns.wrong.is_none()
                        && let Err(wrong) = turns.take(index, message)
                    {
                        turns.wrong = Some(wrong);
                    }
                    index += 1;
                }
                Ok(turns)
            }
        }

        from.deserialize_seq(List)
    }
}
