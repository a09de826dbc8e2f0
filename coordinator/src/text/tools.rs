//! Calls in what a model writes, in the formats of the families that are served.
//!
//! A reader takes text in pieces of any size, and what it makes of them does not depend on how the
//! text was cut. Crates for this exist (`tool-parser`, which is Apache-2.0 and kept up). It brings
//! a parser of Python, OpenAI's types and regular expressions, and it reads a growing buffer anew
//! for every token; the state machines here are a few hundred lines and read each character once.

mod call;
mod grammar;
#[cfg(test)]
mod tests;

use self::call::{CallReader, NoCall, Said};
pub use self::grammar::{Begun, GuidedTool, Shape};
use super::marks::{ARGUMENTS, CALL_ID, CALLS, CHANNEL, MESSAGE, PYTHON, TAG, TAG_END};
use super::piece::Piece;

/// Bytes of blanks that wait to be told whether a call follows.
const MAX_BLANKS: usize = 64;
/// Bytes of a name before its arguments, with the marks between them.
const MAX_HEAD_BYTES: usize = 256;
/// Bytes of what may turn out to be no call: it is held to be given out as text then.
const MAX_RAW_BYTES: usize = 2 << 20;

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen.
    Tagged,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`: Mistral's first formats.
    MistralList,
    /// `[TOOL_CALLS]name[ARGS]{…}`: Mistral's later ones.
    MistralNamed,
    /// An answer that is `{"name": …, "parameters": {…}}`: Llama 3.
    Llama,
    /// An answer that is `{"name": …, "arguments": {…}}`: any model that was told so in words.
    Plain,
    /// A message to `functions.name` in a channel: gpt-oss. `channels` reads it.
    Harmony,
}

/// What an answer may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCalls {
    /// How calls are written.
    pub format: ToolFormat,
    /// Names of the tools.
    pub known: Vec<String>,
    /// Only the first call counts.
    pub single: bool,
}

impl ToolFormat {
    /// The format that a chat template asks of its model. A template that says nothing of tools, or
    /// has a format that is none of these, is not shown them: its model is told in words.
    pub fn of(template: &str) -> Self {
        let has = |text: &str| template.contains(text);
        if has(CHANNEL) && has(MESSAGE) {
            Self::Harmony
        } else if !has("tools") || has("<function=") {
            Self::Plain
        } else if has(TAG) {
            Self::Tagged
        } else if has(CALLS) && has(ARGUMENTS) {
            Self::MistralNamed
        } else if has(CALLS) {
            Self::MistralList
        } else if has(PYTHON) || has("<|start_header_id|>") {
            Self::Llama
        } else {
            Self::Plain
        }
    }

    /// What a call begins with, up to its name or, for a given one, up to its arguments. Empty
    /// where a model thinks before it calls, in the same answer.
    pub fn opening(self, name: Option<&str>) -> String {
        let key = self.key();
        let named = |before: &str| match name {
            Some(name) => format!("{before}{{\"name\": \"{name}\", \"{key}\": "),
            None => format!("{before}{{\"name\": \""),
        };
        match self {
            Self::Tagged => named("<tool_call>\n"),
            Self::MistralList => named("[TOOL_CALLS]["),
            Self::MistralNamed => match name {
                Some(name) => format!("{CALLS}{name}{ARGUMENTS}"),
                None => CALLS.to_owned(),
            },
            Self::Llama | Self::Plain => named(""),
            Self::Harmony => String::new(),
        }
    }

    /// What stands before a call wherever it begins; empty: a call is all of an answer.
    const fn mark(self) -> &'static str {
        match self {
            Self::Tagged => TAG,
            Self::MistralList | Self::MistralNamed => CALLS,
            Self::Llama | Self::Plain | Self::Harmony => "",
        }
    }

    /// What may stand between calls, or behind the last one.
    const fn between(self) -> &'static [&'static str] {
        match self {
            Self::Tagged => &[TAG_END],
            Self::MistralList | Self::MistralNamed => &[",", "]"],
            Self::Llama => &[";", ",", PYTHON],
            Self::Plain => &[";", ","],
            Self::Harmony => &[],
        }
    }
}

/// Reads calls out of an answer.
#[derive(Debug, Clone)]
pub(super) struct ToolReader {
    calls: ToolCalls,
    state: State,
    /// Blanks and the beginning of a mark, or what a call has that is not known to be one.
    held: String,
    /// Calls that have begun.
    count: u32,
    /// Blanks that follow a call are not text.
    follows_call: bool,
}

#[derive(Debug, Clone)]
enum State {
    /// Nothing but blanks so far, where a call is all of an answer.
    Begin,
    /// Text, in which a mark may come.
    Text,
    /// Behind a mark.
    Marked,
    /// A name before its arguments.
    Head(String),
    Call(Box<CallReader>),
    /// Behind a call.
    Between,
    /// Text to the end.
    Rest,
}

impl ToolReader {
    pub(super) fn new(calls: ToolCalls) -> Self {
        let state = if calls.format.mark().is_empty() {
            State::Begin
        } else {
            State::Text
        };
        Self {
            calls,
            state,
            held: String::new(),
            count: 0,
            follows_call: false,
        }
    }

    /// Whether any call has begun.
    pub(super) const fn has_calls(&self) -> bool {
        self.count > 0
    }

    /// Reads more of the answer.
    pub(super) fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        for c in text.chars() {
            self.step(c, out);
        }
    }

    /// The answer is over.
    pub(super) fn finish(&mut self, out: &mut Vec<Piece>) {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Begin | State::Text | State::Rest => self.text(&held, out),
            // Half of a closing mark.
            State::Between => {}
            // A call that is cut off stays a call, as far as it came; what has no name is text.
            State::Marked | State::Head(_) | State::Call(_) => self.give_back(&held, out),
        }
        self.state = State::Rest;
    }

    fn step(&mut self, c: char, out: &mut Vec<Piece>) {
        match std::mem::replace(&mut self.state, State::Rest) {
            State::Rest => self.text(c.encode_utf8(&mut [0; 4]), out),
            State::Begin => self.begin(c, out),
            State::Text => self.look_for_mark(c, out),
            State::Marked => self.marked(c, out),
            State::Head(name) => self.head(name, c, out),
            State::Call(reader) => self.call(reader, c, out),
            State::Between => self.between(c, out),
        }
    }

    /// Gives out text. Blanks next to a call are none.
    fn text(&mut self, text: &str, out: &mut Vec<Piece>) {
        let text = if self.follows_call {
            text.trim_start()
        } else {
            text
        };
        if !text.is_empty() {
            self.follows_call = false;
            Piece::push_text(out, text);
        }
    }

    /// Gives out what has turned out to be no call.
    fn give_back(&mut self, held: &str, out: &mut Vec<Piece>) {
        // Marks that are control tokens are no text.
        let mark = self.calls.format.mark();
        let is_tag = self.calls.format == ToolFormat::Tagged;
        let text = match held.strip_prefix(mark) {
            Some(rest) if !is_tag && !mark.is_empty() => rest,
            _ => held.strip_prefix(PYTHON).unwrap_or(held),
        };
        self.text(text, out);
    }

    fn begin(&mut self, c: char, out: &mut Vec<Piece>) {
        self.held.push(c);
        let begun = self.held.trim_start();
        if begun.is_empty() && self.held.len() <= MAX_BLANKS
            || !begun.is_empty() && PYTHON.starts_with(begun) && begun != PYTHON
        {
            self.state = State::Begin;
        } else if begun == PYTHON {
            self.held = PYTHON.to_owned();
            self.state = State::Marked;
        } else if begun == "{" {
            self.held.clear();
            self.begin_call('{', out);
        } else {
            let held = std::mem::take(&mut self.held);
            self.text(&held, out);
        }
    }

    fn look_for_mark(&mut self, c: char, out: &mut Vec<Piece>) {
        self.state = State::Text;
        self.held.push(c);
        let mark = self.calls.format.mark();
        if self.held.trim_start() == mark {
            mark.clone_into(&mut self.held);
            self.state = State::Marked;
            return;
        }
        let may_begin = |at: &usize| {
            let rest = &self.held[*at..];
            let begun = rest.trim_start();
            mark.starts_with(begun) && rest.len() - begun.len() <= MAX_BLANKS
        };
        let ends = self.held.char_indices().map(|(at, _)| at);
        let kept = ends.chain([self.held.len()]).find(may_begin);
        let rest = self.held.split_off(kept.unwrap_or(self.held.len()));
        let free = std::mem::replace(&mut self.held, rest);
        self.text(&free, out);
    }

    fn marked(&mut self, c: char, out: &mut Vec<Piece>) {
        let is_list = self.calls.format == ToolFormat::MistralList;
        let may_be_named = matches!(
            self.calls.format,
            ToolFormat::MistralList | ToolFormat::MistralNamed
        );
        self.state = State::Marked;
        match c {
            _ if c.is_whitespace() && self.held.len() < MAX_HEAD_BYTES => self.held.push(c),
            '[' if is_list && !self.held.ends_with('[') => self.held.push(c),
            '{' => self.begin_call(c, out),
            _ if may_be_named && is_of_name(c) => {
                self.held.push(c);
                self.state = State::Head(c.into());
            }
            _ => self.fail(c, out),
        }
    }

    /// A name, and what stands between it and its arguments.
    fn head(&mut self, mut head: String, c: char, out: &mut Vec<Piece>) {
        let name_end = head.find('[').unwrap_or(head.len());
        let is_name = name_end == head.len();
        if c == '{' {
            let name = head[..name_end].to_owned();
            let between = &head[name_end..];
            let is_id = between.starts_with(CALL_ID) && between.ends_with(ARGUMENTS);
            if between.is_empty() || between == ARGUMENTS || is_id {
                self.held.clear();
                let arguments = String::new();
                self.say(Said::Named { name, arguments }, out);
                return self.go_on(Box::new(CallReader::of_arguments()), c, out);
            }
            return self.fail(c, out);
        }
        if is_name && !is_of_name(c) && c != '[' || head.len() >= MAX_HEAD_BYTES {
            return self.fail(c, out);
        }
        head.push(c);
        self.held.push(c);
        self.state = State::Head(head);
    }

    fn begin_call(&mut self, c: char, out: &mut Vec<Piece>) {
        self.go_on(Box::new(CallReader::new()), c, out);
    }

    fn call(&mut self, reader: Box<CallReader>, c: char, out: &mut Vec<Piece>) {
        self.go_on(reader, c, out);
    }

    fn go_on(&mut self, mut reader: Box<CallReader>, c: char, out: &mut Vec<Piece>) {
        let mut said = Vec::new();
        let was_named = reader.is_named();
        let step = reader.step(c, &mut said).and_then(|()| {
            let name = said.iter().find_map(|one| match one {
                Said::Named { name, .. } => Some(name),
                _ => None,
            });
            let is_known = name.is_none_or(|name| self.takes(name));
            is_known.then_some(()).ok_or(NoCall)
        });
        if step.is_err() {
            if was_named {
                // What was given out cannot be taken back; the rest of it is no text either.
                self.held.clear();
                self.follows_call = true;
                self.state = State::Between;
                return;
            }
            return self.fail(c, out);
        }
        if reader.is_named() {
            self.held.clear();
        } else {
            self.held.push(c);
            if self.held.len() > MAX_RAW_BYTES {
                let held = std::mem::take(&mut self.held);
                return self.give_back(&held, out);
            }
        }
        let has_ended = said.contains(&Said::Ended);
        for one in said {
            self.say(one, out);
        }
        if has_ended {
            self.follows_call = true;
            self.state = State::Between;
        } else {
            self.state = State::Call(reader);
        }
    }

    /// Where a call has no mark, only a tool's name makes an object one.
    fn takes(&self, name: &str) -> bool {
        let mut known = self.calls.known.iter();
        !self.calls.format.mark().is_empty() || known.any(|one| one == name)
    }

    /// What was held is text, and so is the rest up to the next mark.
    fn fail(&mut self, c: char, out: &mut Vec<Piece>) {
        let held = std::mem::take(&mut self.held);
        self.give_back(&held, out);
        if self.calls.format.mark().is_empty() {
            self.state = State::Rest;
        } else {
            self.state = State::Text;
        }
        self.step(c, out);
    }

    fn between(&mut self, c: char, out: &mut Vec<Piece>) {
        self.state = State::Between;
        self.held.push(c);
        let begun = self.held.trim_start();
        let allowed = self.calls.format.between();
        if begun.is_empty() || allowed.contains(&begun) {
            self.held.clear();
        } else if begun == "{" {
            self.held.clear();
            self.begin_call('{', out);
        } else if !allowed.iter().any(|text| text.starts_with(begun)) {
            self.state = if self.calls.format.mark().is_empty() {
                State::Rest
            } else {
                State::Text
            };
            for c in std::mem::take(&mut self.held).chars() {
                self.step(c, out);
            }
        }
    }

    fn say(&mut self, said: Said, out: &mut Vec<Piece>) {
        let counts = |index: u32| index == 0 || !self.calls.single;
        match said {
            Said::Named { name, arguments } => {
                let index = self.count;
                self.count += 1;
                if counts(index) {
                    out.push(Piece::Call { index, name });
                    Piece::push_arguments(out, index, &arguments);
                }
            }
            Said::Arguments(text) => {
                let index = self.count.saturating_sub(1);
                if counts(index) {
                    Piece::push_arguments(out, index, &text);
                }
            }
            Said::Ended => {}
        }
    }
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}
