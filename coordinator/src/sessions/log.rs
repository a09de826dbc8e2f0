//! The log of a session, and how it goes on.
//!
//! Tokens that are in the log stay as they are: an answer is never tokenised again. What is new is
//! tokenised alone and put behind it.
//!
//! A conversation is rendered whole by the model's template, and the log stands for the beginning
//! of that text; what is new is the rest. A template may write what came before in another way
//! than it did then (a date, thoughts that it leaves out of older answers, blanks that it trims).
//! Then the whole text is tokenised in place of the log, as it would be without a session: the
//! template says what the model is to read.

use std::sync::Arc;

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{Chat, ChatMessage};
use sha2::{Digest, Sha256};

use super::error::bad;
use crate::config::Config;
use crate::model::ServedModel;
use crate::request;
use crate::text::AnswerFormat;

/// Role of the messages that the model writes.
const ASSISTANT: &str = "assistant";

/// What a session holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Log {
    /// Prompts and answers, without the tokens that ended the answers.
    pub(super) tokens: Vec<u32>,
    /// The conversation that the log renders, if it is one.
    pub(super) messages: Vec<ChatMessage>,
    /// Of a conversation: the rendered text that the log stands for.
    pub(super) text: Written,
    /// Of plain text: what was delivered behind the log's last whole token.
    pub(super) pending: String,
}

/// A text that is known by its length and its SHA-256.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) digest: [u8; 32],
}

/// What comes behind the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// The model's answer.
    Answer,
    /// Nothing: it is only read.
    Nothing,
}

/// A log with its next input.
#[derive(Debug, Clone)]
pub(super) struct Next {
    /// The log and what is new, in tokens.
    pub(super) prompt: Arc<[u32]>,
    /// The conversation with what is new, if it is one.
    messages: Vec<ChatMessage>,
    /// Of the rendered text of `prompt`.
    text: Text,
    /// What the answer begins with, of which the model makes the rest.
    answer_prefix: String,
    opening: Opening,
    /// How the answer is read.
    pub(super) format: Option<Arc<AnswerFormat>>,
    /// The template wrote the past in another way.
    pub(super) is_anew: bool,
}

/// A text as far as it has come.
#[derive(Debug, Clone, Default)]
struct Text {
    hash: Sha256,
    bytes: u64,
}

/// An answer, as its client got it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answered {
    /// Its tokens up to the last one whose text was delivered whole.
    pub(super) tokens: Vec<u32>,
    /// What was delivered.
    pub(super) text: String,
    /// Bytes of it that are the text of `tokens`.
    pub(super) whole: usize,
}

impl Text {
    fn of(text: &str) -> Self {
        Self::default().and(text)
    }

    fn and(mut self, text: &str) -> Self {
        self.hash.update(text);
        self.bytes += text.len() as u64;
        self
    }

    fn written(self) -> Written {
        Written {
            bytes: self.bytes,
            digest: self.hash.finalize().into(),
        }
    }
}

impl Written {
    /// What follows this text in `whole`, if that begins with it.
    fn rest<'a>(&self, whole: &'a str) -> Option<&'a str> {
        let bytes = usize::try_from(self.bytes).ok()?;
        let (before, rest) = whole.split_at_checked(bytes)?;
        (bytes == 0 || Text::of(before).written() == *self).then_some(rest)
    }
}

impl Log {
    fn is_empty(&self) -> bool {
        self.tokens.is_empty() && self.pending.is_empty()
    }

    fn is_chat(&self) -> bool {
        !self.messages.is_empty()
    }

    /// The prompt that the log makes with an input. It takes time on long texts.
    ///
    /// # Errors
    /// `EmptyPrompt` where neither has a token, `BadSession` for an input of another kind than the
    /// log is, and what is wrong with the input.
    pub(super) fn extend(
        self,
        input: Option<Input>,
        opening: Opening,
        model: &ServedModel,
        config: &Config,
    ) -> Result<Next, RequestError> {
        let is_new = self.is_empty() && !self.is_chat();
        let next = match input {
            Some(Input::Chat(chat)) if self.is_chat() || is_new => {
                self.with_chat(chat, opening, model, config)
            }
            None if self.is_chat() => self.with_chat(Chat::default(), opening, model, config),
            Some(Input::Chat(_)) => Err(bad(
                "chat",
                "the session's log is plain text or token ids, to which no messages can be added: \
                 send text or token_ids, or make a session for the conversation",
            )),
            Some(Input::Infill(_)) => Err(bad(
                "infill",
                "a session goes on at its end: ask for a text between two others without it",
            )),
            Some(Input::Text(_) | Input::TokenIds(_)) if self.is_chat() => Err(bad(
                "text",
                "the session is a conversation: send the messages that are new in chat, or make a \
                 session for plain text",
            )),
            plain => self.with_plain(plain, opening, model, config),
        }?;
        request::check_ids(&next.prompt, model)?;
        Ok(next)
    }

    fn with_plain(
        self,
        input: Option<Input>,
        opening: Opening,
        model: &ServedModel,
        config: &Config,
    ) -> Result<Next, RequestError> {
        let mut prompt = self.tokens;
        // What the tokenizer adds around a text stands at the beginning alone.
        let special = prompt.is_empty() && self.pending.is_empty();
        let (text, ids) = match input {
            Some(Input::Text(text)) => (self.pending + &text, Vec::new()),
            Some(Input::TokenIds(tokens)) => (self.pending, tokens.ids),
            Some(Input::Chat(_) | Input::Infill(_)) | None => (self.pending, Vec::new()),
        };
        if !text.is_empty() {
            prompt.extend(request::encode_text(&text, special, model, config)?);
        }
        prompt.extend(ids);
        Ok(Next {
            prompt: prompt.into(),
            messages: Vec::new(),
            text: Text::default(),
            answer_prefix: String::new(),
            opening,
            format: None,
            is_anew: false,
        })
    }

    fn with_chat(
        self,
        mut chat: Chat,
        opening: Opening,
        model: &ServedModel,
        config: &Config,
    ) -> Result<Next, RequestError> {
        if chat.continue_final_message || chat.no_opening {
            let message = "a session goes on with an answer of its own: leave \
                           continue_final_message and add_generation_prompt out";
            return Err(bad("chat.continue_final_message", message));
        }
        let mut answer_prefix = chat.answer_prefix.clone();
        if opening == Opening::Nothing && !answer_prefix.is_empty() {
            let message = "answer_prefix begins an answer, and nothing is answered here";
            return Err(bad("chat.answer_prefix", message));
        }
        let mut messages = self.messages;
        messages.extend(std::mem::take(&mut chat.messages));
        let whole = Chat { messages, ..chat };
        let has_opening = opening == Opening::Answer;
        let rendered = request::render(&whole, has_opening, model, config)?;
        let rest = self.text.rest(rendered.text());
        let mut prompt = if rest.is_some() {
            self.tokens
        } else {
            Vec::new()
        };
        let before = rest.map_or(0, |rest| rendered.text().len() - rest.len());
        let new = rendered.behind(before);
        if !new.text().is_empty() {
            prompt.extend(request::encode_rendered(&new, model, config)?);
        }
        answer_prefix.push_str(rendered.forced());
        Ok(Next {
            prompt: prompt.into(),
            is_anew: rest.is_none(),
            format: request::answer_format(&whole, &rendered, model),
            messages: whole.messages,
            text: Text::of(rendered.text()),
            answer_prefix,
            opening,
        })
    }
}

impl Next {
    /// The log with the answer, which was delivered.
    pub(super) fn answered(self, answer: Answered) -> Log {
        let mut tokens = self.prompt.to_vec();
        if self.opening == Opening::Nothing {
            return Log {
                tokens,
                text: self.text_of_chat(""),
                messages: self.messages,
                pending: String::new(),
            };
        }
        tokens.extend(&answer.tokens);
        let (whole, rest) = answer.text.split_at(answer.whole);
        let text = self.text_of_chat(whole);
        let is_chat = !self.messages.is_empty();
        let mut messages = self.messages;
        if is_chat {
            let content = self.answer_prefix + &answer.text;
            messages.push(ChatMessage::new(ASSISTANT, content));
        }
        Log {
            tokens,
            messages,
            text,
            // The template writes it behind the log, if it is a conversation.
            pending: if is_chat { String::new() } else { rest.into() },
        }
    }

    fn text_of_chat(&self, answer: &str) -> Written {
        if self.messages.is_empty() {
            return Written::default();
        }
        self.text.clone().and(answer).written()
    }
}

/// Refuses a prompt that passes the limit of a log.
pub(super) fn check_length(tokens: usize, most: u64) -> Result<(), RequestError> {
    if tokens as u64 <= most {
        return Ok(());
    }
    let message = format!(
        "the session's log would have {tokens} tokens before the answer, over the limit of {most}: \
         begin another session"
    );
    Err(RequestError::new(Reason::TooLong, message).in_field("session_id"))
}
