//! What an answer is read as: thoughts, text, calls.

use palimpsest_proto::v1::Tool;

use super::channels::{self, ChannelReader};
use super::marks::{ARGUMENTS, CALL_ID, CALLS, PYTHON, TAG, TAG_END, THINK_END, THINK_START};
use super::piece::Piece;
use super::tools::{Begun, GuidedTool, Shape, ToolCalls, ToolFormat, ToolReader};

/// Control tokens that are read as text, because they say where a thought or a call is.
const MARKS: [&str; 8] = [
    THINK_START,
    THINK_END,
    TAG,
    TAG_END,
    CALLS,
    ARGUMENTS,
    CALL_ID,
    PYTHON,
];

/// How an answer is to be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerFormat {
    /// Calls are looked for.
    pub tools: Option<ToolCalls>,
    /// Thoughts are looked for; true: the prompt has begun one.
    pub thinks: Option<bool>,
    /// What the answer begins with as if the model had written it.
    pub forced: String,
    /// Messages of the answer have channels, which say what they are.
    pub channels: bool,
    /// The tools as they were sent, those alone that may be called.
    pub asked: Vec<Tool>,
    /// How much of a call the prompt ends with.
    pub begun: Begun,
}

impl AnswerFormat {
    /// Control tokens that the reader must see.
    pub const fn marks(&self) -> &'static [&'static str] {
        if self.channels {
            &channels::MARKS
        } else {
            &MARKS
        }
    }

    /// Control tokens that end the answer, whatever the model's own end of sequence is.
    pub const fn ends(&self) -> &'static [&'static str] {
        if self.channels { &channels::LAST } else { &[] }
    }

    /// Whether calls have to match the schemas of their tools.
    pub fn is_strict(&self) -> bool {
        self.begun != Begun::Nothing || self.asked.iter().any(|tool| tool.strict)
    }

    /// The answer of this format with these tools, for the grammar of it. `answer`: see [`Shape`].
    pub fn shape<'a>(&self, tools: &'a [GuidedTool], answer: Option<&'a str>) -> Shape<'a> {
        let calls = self.tools.as_ref();
        let format = match calls {
            Some(calls) => calls.format,
            None if self.channels => ToolFormat::Harmony,
            None => ToolFormat::Plain,
        };
        Shape {
            format,
            tools,
            begun: self.begun,
            single: calls.is_some_and(|calls| calls.single),
            thinks: self.thinks.filter(|_| self.forced.is_empty()),
            answer,
        }
    }
}

/// Reads an answer as it comes. What it makes of a text does not depend on how that was cut.
#[derive(Debug, Clone)]
pub struct AnswerReader {
    thoughts: Thoughts,
    tools: Option<ToolReader>,
    /// Instead of both.
    channels: Option<ChannelReader>,
}

#[derive(Debug, Clone)]
enum Thoughts {
    /// None, or they are over.
    Over,
    /// They may begin: blanks, and the beginning of their mark.
    Before(String),
    /// They go on: what may be their end.
    Inside { held: String, has_begun: bool },
    /// Blanks before the answer are none.
    Behind,
}

impl AnswerReader {
    /// A reader of answers in this format, and what it makes of their forced beginning.
    pub fn new(format: &AnswerFormat) -> (Self, Vec<Piece>) {
        let mut reader = Self {
            thoughts: match format.thinks {
                Some(true) => Thoughts::Inside {
                    held: String::new(),
                    has_begun: false,
                },
                Some(false) if format.forced.is_empty() => Thoughts::Before(String::new()),
                Some(false) | None => Thoughts::Over,
            },
            tools: format.tools.clone().map(ToolReader::new),
            channels: format.channels.then(|| {
                let tools = format.tools.as_ref();
                ChannelReader::new(tools.is_some(), tools.is_some_and(|tools| tools.single))
            }),
        };
        let begun = reader.push(&format.forced);
        (reader, begun)
    }

    /// Whether the answer has called a tool.
    pub fn has_calls(&self) -> bool {
        match &self.channels {
            Some(channels) => channels.has_calls(),
            None => self.tools.as_ref().is_some_and(ToolReader::has_calls),
        }
    }

    /// What more of the text says.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut out = Vec::new();
        if let Some(channels) = &mut self.channels {
            channels.push(text, &mut out);
            return out;
        }
        if matches!(self.thoughts, Thoughts::Over) {
            self.answer(text, &mut out);
            return out;
        }
        for c in text.chars() {
            self.step(c, &mut out);
        }
        out
    }

    /// What is left when no more text comes.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut out = Vec::new();
        if let Some(channels) = &mut self.channels {
            channels.finish(&mut out);
            return out;
        }
        match std::mem::replace(&mut self.thoughts, Thoughts::Over) {
            Thoughts::Before(held) => self.answer(&held, &mut out),
            Thoughts::Inside { held, .. } => Piece::push_reasoning(&mut out, &held),
            Thoughts::Over | Thoughts::Behind => {}
        }
        if let Some(tools) = &mut self.tools {
            tools.finish(&mut out);
        }
        out
    }

    fn answer(&mut self, text: &str, out: &mut Vec<Piece>) {
        match &mut self.tools {
            Some(tools) => tools.push(text, out),
            None => Piece::push_text(out, text),
        }
    }

    fn step(&mut self, c: char, out: &mut Vec<Piece>) {
        self.thoughts = match std::mem::replace(&mut self.thoughts, Thoughts::Over) {
            Thoughts::Over => {
                self.answer(c.encode_utf8(&mut [0; 4]), out);
                Thoughts::Over
            }
            Thoughts::Behind if c.is_whitespace() => Thoughts::Behind,
            Thoughts::Behind => {
                self.answer(c.encode_utf8(&mut [0; 4]), out);
                Thoughts::Over
            }
            Thoughts::Before(mut held) => {
                held.push(c);
                let begun = held.trim_start();
                if begun == THINK_START {
                    Thoughts::Inside {
                        held: String::new(),
                        has_begun: false,
                    }
                } else if THINK_START.starts_with(begun) && held.len() - begun.len() <= MAX_BLANKS {
                    Thoughts::Before(held)
                } else {
                    self.answer(&held, out);
                    Thoughts::Over
                }
            }
            Thoughts::Inside { held, has_begun } => inside(held, has_begun, c, out),
        };
    }
}

/// Bytes of blanks before a thought.
const MAX_BLANKS: usize = 64;

/// A character of a thought, behind what may be its end.
fn inside(mut held: String, has_begun: bool, c: char, out: &mut Vec<Piece>) -> Thoughts {
    if !has_begun && held.is_empty() && c.is_whitespace() {
        return Thoughts::Inside { held, has_begun };
    }
    held.push(c);
    if held == THINK_END {
        return Thoughts::Behind;
    }
    let ends = held.char_indices().map(|(at, _)| at).chain([held.len()]);
    let kept = ends
        .into_iter()
        .find(|at| THINK_END.starts_with(&held[*at..]));
    let rest = held.split_off(kept.unwrap_or(held.len()));
    Piece::push_reasoning(out, &held);
    let has_begun = has_begun || !held.is_empty();
    Thoughts::Inside {
        held: rest,
        has_begun,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text and the thoughts of an answer that comes in these pieces.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Said {
        text: String,
        reasoning: String,
    }

    fn said<'a>(begun: bool, pieces: impl IntoIterator<Item = &'a str>) -> Said {
        let (mut reader, _) = AnswerReader::new(&AnswerFormat {
            thinks: Some(begun),
            ..AnswerFormat::default()
        });
        let mut out = Vec::new();
        for piece in pieces {
            out.append(&mut reader.push(piece));
        }
        out.append(&mut reader.finish());
        let mut said = Said::default();
        for piece in out {
            match piece {
                Piece::Text(text) => said.text.push_str(&text),
                Piece::Reasoning(text) => said.reasoning.push_str(&text),
                other => panic!("{other:?}"),
            }
        }
        said
    }

    #[test]
    fn thoughts_come_apart_however_they_are_cut() {
        for (begun, whole, reasoning, text) in [
            (
                false,
                "<think>\nhm <b></b>\n</think>\n\nyes",
                "hm <b></b>\n",
                "yes",
            ),
            (true, "hm</think>yes", "hm", "yes"),
            (true, "<think>hm</think>yes", "<think>hm", "yes"),
            (false, " <thin air", "", " <thin air"),
            (false, "no <think>x</think>", "", "no <think>x</think>"),
            (true, "cut off </thi", "cut off </thi", ""),
            (false, "", "", ""),
        ] {
            let expected = Said {
                text: text.into(),
                reasoning: reasoning.into(),
            };
            let each: Vec<String> = whole.chars().map(String::from).collect();
            assert_eq!(said(begun, [whole]), expected, "{whole}");
            assert_eq!(
                said(begun, each.iter().map(String::as_str)),
                expected,
                "{whole}"
            );
        }
    }
}
