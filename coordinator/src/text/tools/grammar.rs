//! The grammar of an answer in which tools are called, in Lark's syntax as llguidance reads it.
//!
//! A grammar begins where the prompt ends: behind an opening that was written in the model's place,
//! or with free text in which a call may come. Text is free up to the mark of a call: a lexeme that
//! ends with the mark is *lazy*, which means that it ends there and nothing else may go on. Marks
//! that are control tokens of the model stand in the grammar by their ids, since no text of a
//! grammar ever spells one.

mod channels;
mod marked;
mod shape;
#[cfg(test)]
mod tests;
mod unmarked;
mod writer;

use palimpsest_proto::internal::v1::CallGuide;

pub use self::shape::{Begun, GuidedTool, Shape};
use self::writer::Writer;
use super::ToolFormat;
use crate::text::tokenizer::Tokenizer;

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
