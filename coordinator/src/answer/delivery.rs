//! What of an answer goes to its client, and when.

use std::sync::Arc;

use palimpsest_proto::v1::{Delta, TokenLogprob, ToolCallDelta};

use crate::request::ValidRequest;
use crate::text::{AnswerFormat, AnswerReader, Detokenizer, Piece, Shown, Tokenizer};

/// Tokens that wait for text. Those without any, such as control tokens, may come for ever.
const HELD_TOKENS: usize = 256;
/// Letters of the id of a call. Templates of Mistral's models ask for exactly nine letters and
/// digits, and no other template asks for anything.
const ID_LETTERS: usize = 9;

/// The pieces of an answer on their way out.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    reader: Option<AnswerReader>,
    /// Of tokens whose text is held back.
    logprobs: Vec<TokenLogprob>,
    /// The same tokens, where the client asks for their ids.
    ids: Vec<u32>,
}

/// A decoder of what answers a request, which shows what its client or the reader of calls sees.
pub(super) fn decoder(request: &ValidRequest, tokenizer: &Arc<Tokenizer>) -> Detokenizer {
    let shown = match &request.format {
        _ if request.show.special_tokens => Shown::All,
        Some(format) => Shown::Some(tokenizer.control_ids(format.marks())),
        None => Shown::None,
    };
    Detokenizer::new(tokenizer.clone(), &request.prompt).showing(shown)
}

impl Delivery {
    /// The delivery of an answer in this format, and what the client gets before the first token.
    pub(super) fn new(format: Option<&AnswerFormat>) -> (Self, Option<Delta>) {
        let Some(format) = format else {
            return (Self::default(), None);
        };
        let (reader, begun) = AnswerReader::new(format);
        let delivery = Self {
            reader: Some(reader),
            ..Self::default()
        };
        let begun = (!begun.is_empty()).then(|| delta(begun));
        (delivery, begun)
    }

    /// Holds what belongs to a token until its text goes out.
    pub(super) fn hold(&mut self, logprob: Option<TokenLogprob>, id: Option<u32>) {
        self.logprobs.extend(logprob);
        self.ids.extend(id);
    }

    /// Whether the answer has called a tool.
    pub(super) fn has_calls(&self) -> bool {
        self.reader.as_ref().is_some_and(AnswerReader::has_calls)
    }

    /// What goes out now that this text has come, which may be the `last`.
    pub(super) fn delta(&mut self, text: String, last: bool) -> Option<Delta> {
        let mut delta = match &mut self.reader {
            Some(reader) => {
                let mut pieces = reader.push(&text);
                if last {
                    pieces.extend(reader.finish());
                }
                delta(pieces)
            }
            None => Delta {
                text,
                ..Default::default()
            },
        };
        let says =
            !delta.text.is_empty() || !delta.reasoning.is_empty() || !delta.tool_calls.is_empty();
        let held = self.logprobs.len().max(self.ids.len());
        let goes = says || (last && held > 0) || held >= HELD_TOKENS;
        goes.then(|| {
            delta.tokens = std::mem::take(&mut self.logprobs);
            delta.token_ids = std::mem::take(&mut self.ids);
            delta
        })
    }
}

/// Pieces as an event has them.
fn delta(pieces: Vec<Piece>) -> Delta {
    let mut delta = Delta::default();
    for piece in pieces {
        match piece {
            Piece::Text(text) => delta.text.push_str(&text),
            Piece::Reasoning(text) => delta.reasoning.push_str(&text),
            Piece::Call { index, name } => delta.tool_calls.push(ToolCallDelta {
                index,
                id: call_id(),
                name,
                arguments: String::new(),
            }),
            Piece::Arguments { index, text } => match delta.tool_calls.last_mut() {
                Some(call) if call.index == index => call.arguments.push_str(&text),
                _ => delta.tool_calls.push(ToolCallDelta {
                    index,
                    arguments: text,
                    ..Default::default()
                }),
            },
        }
    }
    delta
}

/// An id that no other call of a conversation has.
fn call_id() -> String {
    const LETTERS: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let letter = |_| {
        let index = rand::random_range(0..LETTERS.len());
        char::from(LETTERS[index])
    };
    (0..ID_LETTERS).map(letter).collect()
}
