//! The grammar of an answer in which tools are called, in Lark's syntax as llguidance reads it.
//!
//! A grammar begins where the prompt ends: behind an opening that was written in the model's place,
//! or with free text in which a call may come. Text is free up to the mark of a call: a lexeme that
//! ends with the mark is *lazy*, which means that it ends there and nothing else may go on. Marks
//! that are control tokens of the model stand in the grammar by their ids, since no text of a
//! grammar ever spells one.

mod channels;
mod marked;
#[cfg(test)]
mod tests;
mod unmarked;
mod writer;

use palimpsest_proto::internal::v1::CallGuide;

use self::writer::Writer;
use super::ToolFormat;
use crate::text::tokenizer::Tokenizer;

/// A tool as a grammar has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuidedTool {
    /// Its name.
    pub name: String,
    /// The schema of its arguments, as `palimpsest_guide::calls` writes one.
    pub schema: String,
}

/// How much of a call the prompt ends with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Begun {
    /// Nothing: the answer may be text.
    #[default]
    Nothing,
    /// What stands before its name. Where a format has no such opening, the call is still to come.
    Call,
    /// All that stands before its arguments: the call is of the only tool. Where a format has no
    /// such opening, the call is still to come.
    Arguments,
}

/// What an answer may be.
#[derive(Debug, Clone)]
pub struct Shape<'a> {
    /// How calls are written.
    pub format: ToolFormat,
    /// What may be called.
    pub tools: &'a [GuidedTool],
    /// How much of a call is there.
    pub begun: Begun,
    /// No more than one call.
    pub single: bool,
    /// Thoughts come before the answer; true: the prompt has begun one.
    pub thinks: Option<bool>,
    /// What an answer is that is no call, as an expression in Lark; `None`: any text. It does not
    /// count where a call has begun.
    pub answer: Option<&'a str>,
}

impl Shape<'_> {
    /// The grammar of such an answer. `None` for a shape that its format cannot tell from a call:
    /// an answer in JSON where calls are plain JSON.
    pub fn grammar(&self, tokenizer: &Tokenizer) -> Option<CallGuide> {
        let mut writer = Writer::new(tokenizer);
        match self.format {
            ToolFormat::Harmony => channels::write(self, &mut writer),
            ToolFormat::Tagged | ToolFormat::MistralList | ToolFormat::MistralNamed => {
                marked::write(self, &mut writer);
            }
            ToolFormat::Llama | ToolFormat::Plain if self.is_either() => return None,
            ToolFormat::Llama | ToolFormat::Plain => unmarked::write(self, &mut writer),
        }
        Some(writer.finish())
    }

    /// Whether the answer may be a call, or what a guide asks for.
    fn is_either(&self) -> bool {
        self.answer.is_some() && self.begun == Begun::Nothing
    }

    /// Whether another call may follow one.
    fn may_repeat(&self) -> bool {
        !self.single && self.begun != Begun::Arguments
    }
}

impl ToolFormat {
    /// The name that arguments have.
    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::Llama => "parameters",
            _ => "arguments",
        }
    }
}
