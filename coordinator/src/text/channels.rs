//! Answers of gpt-oss, whose messages have channels, in the format that it calls harmony:
//! `analysis` is what the model thinks, `commentary` has its calls and what it says of them, and
//! `final` is the answer. It follows OpenAI's public description of the format.
//!
//! ```text
//! <|channel|>analysis<|message|>…<|end|><|start|>assistant
//! <|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>
//! ```
//!
//! An answer begins behind `<|start|>assistant`, which the template wrote. The recipient of a call
//! may also stand before the channel.

use super::marks::{CALL, CHANNEL, CONSTRAIN, END, FUNCTIONS, MESSAGE, RETURN, START};
use super::piece::Piece;

/// Bytes of what stands before a message. Text that never becomes one is given out behind them.
const MAX_HEAD_BYTES: usize = 512;

/// Marks that end a message. The last two begin what stands before the next, where a model leaves
/// the end out.
const ENDS: [&str; 5] = [END, CALL, RETURN, START, CHANNEL];

/// Reads an answer in pieces of any size.
#[derive(Debug, Clone)]
pub(super) struct ChannelReader {
    /// Messages to a function are calls.
    has_tools: bool,
    /// Only the first call counts.
    single: bool,
    state: State,
    /// Before a message: all of it. In a message: what may be the beginning of a mark.
    held: String,
    /// Calls that have begun.
    count: u32,
    /// A message was read.
    has_read: bool,
    /// Text was given out, so that other text begins a line of its own.
    has_text: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Message(Kind),
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thought,
    Text { begins_line: bool },
    Call { index: u32, is_empty: bool },
}

impl ChannelReader {
    pub(super) fn new(has_tools: bool, single: bool) -> Self {
        Self {
            has_tools,
            single,
            state: State::Head,
            held: String::new(),
            count: 0,
            has_read: false,
            has_text: false,
        }
    }

    /// Whether any call has begun.
    pub(super) const fn has_calls(&self) -> bool {
        self.count > 0
    }

    /// Reads more of the answer.
    pub(super) fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        for c in text.chars() {
            self.held.push(c);
            match self.state {
                State::Head => self.head(out),
                State::Message(kind) => self.message(kind, out),
            }
        }
    }

    /// The answer is over.
    pub(super) fn finish(&mut self, out: &mut Vec<Piece>) {
        let held = std::mem::take(&mut self.held);
        match self.state {
            // A model that writes no channels.
            State::Head if !self.has_read && !is_head(&held) => Piece::push_text(out, &held),
            // A message that never began: what it would have been is not known.
            State::Head => {}
            State::Message(kind) => {
                let kind = self.say(kind, &held, out);
                self.close(kind, out);
            }
        }
        self.state = State::Head;
    }

    fn head(&mut self, out: &mut Vec<Piece>) {
        if self.held.ends_with(MESSAGE) {
            let held = std::mem::take(&mut self.held);
            let kind = self.kind(&held[..held.len() - MESSAGE.len()], out);
            self.has_read = true;
            self.state = State::Message(kind);
        } else if [END, CALL, RETURN]
            .iter()
            .any(|end| self.held.ends_with(end))
        {
            // A message without a beginning has nothing in it.
            self.held.clear();
        } else if self.held.len() > MAX_HEAD_BYTES {
            // A model that writes no channels.
            let kind = Kind::Text { begins_line: false };
            let held = std::mem::take(&mut self.held);
            self.has_read = true;
            self.state = State::Message(self.say(kind, &held, out));
        }
    }

    /// What a message is, by what stands before it.
    fn kind(&mut self, head: &str, out: &mut Vec<Piece>) -> Kind {
        let recipient = head.split("to=").nth(1).map(word);
        let function = recipient.and_then(|to| to.strip_prefix(FUNCTIONS));
        if let Some(name) = function.filter(|name| self.has_tools && !name.is_empty()) {
            let index = self.count;
            self.count += 1;
            if self.counts(index) {
                let name = name.to_owned();
                out.push(Piece::Call { index, name });
            }
            return Kind::Call {
                index,
                is_empty: true,
            };
        }
        let channel = head.split(CHANNEL).nth(1).map(word);
        let is_text = match channel {
            Some("analysis") => false,
            // A message to somebody who is not there is for nobody to read.
            Some("commentary") => recipient.is_none(),
            _ => true,
        };
        if is_text {
            Kind::Text {
                begins_line: self.has_text,
            }
        } else {
            Kind::Thought
        }
    }

    fn message(&mut self, kind: Kind, out: &mut Vec<Piece>) {
        if let Some(end) = ENDS.iter().find(|end| **end == self.held) {
            self.held.clear();
            if *end == CHANNEL {
                self.held.push_str(CHANNEL);
            }
            self.close(kind, out);
            self.state = State::Head;
            return;
        }
        let held = &self.held;
        let begins_mark = |at: &usize| ENDS.iter().any(|end| end.starts_with(&held[*at..]));
        let places = held.char_indices().map(|(at, _)| at).chain([held.len()]);
        let kept = places.into_iter().find(begins_mark).unwrap_or(held.len());
        let rest = self.held.split_off(kept);
        let free = std::mem::replace(&mut self.held, rest);
        self.state = State::Message(self.say(kind, &free, out));
    }

    /// Gives out a part of a message. Returns what the rest of it is.
    fn say(&mut self, kind: Kind, text: &str, out: &mut Vec<Piece>) -> Kind {
        if text.is_empty() {
            return kind;
        }
        match kind {
            Kind::Thought => {
                Piece::push_reasoning(out, text);
                kind
            }
            Kind::Text { begins_line } => {
                if begins_line {
                    Piece::push_text(out, "\n");
                }
                Piece::push_text(out, text);
                self.has_text = true;
                Kind::Text { begins_line: false }
            }
            Kind::Call { index, .. } => {
                if self.counts(index) {
                    Piece::push_arguments(out, index, text);
                }
                Kind::Call {
                    index,
                    is_empty: false,
                }
            }
        }
    }

    fn close(&self, kind: Kind, out: &mut Vec<Piece>) {
        // A call without arguments has an object of none.
        if let Kind::Call {
            index,
            is_empty: true,
        } = kind
            && self.counts(index)
        {
            Piece::push_arguments(out, index, "{}");
        }
    }

    const fn counts(&self, index: u32) -> bool {
        index == 0 || !self.single
    }
}

/// Whether this may be what stands before a message.
fn is_head(text: &str) -> bool {
    text.contains("<|") || text.trim_start().starts_with("to=")
}

/// The first word of a text, which a mark or a blank ends.
fn word(text: &str) -> &str {
    let end = text.find(|c: char| c.is_whitespace() || c == '<');
    &text[..end.unwrap_or(text.len())]
}

/// Control tokens that a reader of channels must see.
pub(super) const MARKS: [&str; 7] = [START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN];

/// Control tokens that end an answer: a call waits for its result.
pub(super) const LAST: [&str; 2] = [CALL, RETURN];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What an answer says, however it was cut.
    #[derive(Debug, Default, Clone, PartialEq, Eq)]
    struct Said {
        text: String,
        reasoning: String,
        calls: Vec<(String, String)>,
    }

    fn said<'a>(single: bool, pieces: impl IntoIterator<Item = &'a str>) -> Said {
        let mut reader = ChannelReader::new(true, single);
        let mut out = Vec::new();
        for piece in pieces {
            reader.push(piece, &mut out);
        }
        reader.finish(&mut out);
        let mut said = Said::default();
        for piece in out {
            match piece {
                Piece::Text(text) => said.text.push_str(&text),
                Piece::Reasoning(text) => said.reasoning.push_str(&text),
                Piece::Call { index, name } => {
                    assert_eq!(index as usize, said.calls.len());
                    said.calls.push((name, String::new()));
                }
                Piece::Arguments { index, text } => said.calls[index as usize].1.push_str(&text),
            }
        }
        assert!(reader.has_calls() || said.calls.is_empty());
        said
    }

    fn expected(reasoning: &str, text: &str, calls: &[(&str, &str)]) -> Said {
        let calls = calls.iter();
        Said {
            text: text.into(),
            reasoning: reasoning.into(),
            calls: calls
                .map(|(name, json)| ((*name).into(), (*json).into()))
                .collect(),
        }
    }

    /// Answers as the description of the format has them, and what they say.
    fn samples() -> Vec<(&'static str, Said)> {
        vec![
            (
                "<|channel|>analysis<|message|>Hm < 3.<|end|><|start|>assistant<|channel|>final\
                 <|message|>Four.<|return|>",
                expected("Hm < 3.", "Four.", &[]),
            ),
            (
                "<|channel|>analysis<|message|>Use it.<|end|><|start|>assistant<|channel|>\
                 commentary to=functions.add <|constrain|>json<|message|>{\"a\": \"<|é\"}<|call|>",
                expected("Use it.", "", &[("add", "{\"a\": \"<|é\"}")]),
            ),
            (
                " to=functions.add<|channel|>commentary json<|message|>{}<|call|>",
                expected("", "", &[("add", "{}")]),
            ),
            (
                "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.now\
                 <|channel|>commentary<|message|><|call|>",
                expected("", "I look.", &[("now", "{}")]),
            ),
            (
                "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final\
                 <|constrain|>json<|message|>{\"a\": 1}",
                expected("", "I look.\n{\"a\": 1}", &[]),
            ),
            (
                "<|channel|>commentary to=python<|message|>print(1)<|end|><|channel|>final\
                 <|message|>1",
                expected("print(1)", "1", &[]),
            ),
            (
                "<|channel|>analysis<|message|>no end<|channel|>final<|message|>x<|e",
                expected("no end", "x<|e", &[]),
            ),
            ("<|channel|>anal", expected("", "", &[])),
            ("Just words.", expected("", "Just words.", &[])),
        ]
    }

    #[test]
    fn channels_come_apart_however_they_are_cut() {
        for (text, expected) in samples() {
            assert_eq!(said(false, [text]), expected, "{text}");
            for (at, _) in text.char_indices() {
                let (a, b) = text.split_at(at);
                assert_eq!(said(false, [a, b]), expected, "{a}|{b}");
            }
        }
    }

    #[test]
    fn arguments_come_as_they_grow_and_a_call_that_is_cut_off_stays_one() {
        let mut reader = ChannelReader::new(true, false);
        let mut out = Vec::new();
        reader.push(
            "<|channel|>commentary to=functions.add <|constrain|>json<|message|>{\"a",
            &mut out,
        );
        let name = "add".to_owned();
        let text = "{\"a".to_owned();
        assert_eq!(
            out,
            [
                Piece::Call { index: 0, name },
                Piece::Arguments { index: 0, text }
            ]
        );
        out.clear();
        reader.push("\": [1", &mut out);
        reader.finish(&mut out);
        let text = "\": [1".to_owned();
        assert_eq!(out, [Piece::Arguments { index: 0, text }]);
    }

    #[test]
    fn one_call_is_enough_where_no_more_are_wanted() {
        let call = "<|channel|>commentary to=functions.add<|message|>{}<|call|>";
        let both = format!("{call}<|start|>assistant{call}");
        assert_eq!(said(true, [both.as_str()]).calls.len(), 1);
        assert_eq!(said(false, [both.as_str()]).calls.len(), 2);
    }

    #[test]
    fn a_model_that_writes_no_channels_says_text() {
        let long = "word ".repeat(200);
        assert_eq!(said(false, [long.as_str()]), expected("", &long, &[]));
    }

    #[test]
    fn messages_to_functions_are_thoughts_where_there_are_no_tools() {
        let mut reader = ChannelReader::new(false, false);
        let mut out = Vec::new();
        reader.push(
            "<|channel|>commentary to=functions.add<|message|>{}",
            &mut out,
        );
        assert_eq!(out, [Piece::Reasoning("{}".to_owned())]);
    }

    proptest! {
        #[test]
        fn any_cut_of_any_text_says_the_same(
            parts in prop::collection::vec(prop_oneof![
                Just("<|channel|>"), Just("analysis"), Just("commentary"), Just("final"),
                Just("<|message|>"), Just("<|end|>"), Just("<|call|>"), Just("<|start|>"),
                Just("assistant"), Just(" to=functions.add"), Just("<|constrain|>"), Just("json"),
                Just("<|"), Just("é"), Just("{}"), Just(" "), Just("<"),
            ], 0..20),
            cuts in prop::collection::vec(0..9usize, 0..30),
        ) {
            let text = parts.concat();
            let chars: Vec<char> = text.chars().collect();
            let mut pieces: Vec<String> = Vec::new();
            let mut rest = &chars[..];
            for cut in cuts {
                let (piece, next) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece.iter().collect());
                rest = next;
            }
            pieces.push(rest.iter().collect());
            let cut = said(false, pieces.iter().map(String::as_str));
            prop_assert_eq!(cut, said(false, [text.as_str()]));
        }
    }
}
