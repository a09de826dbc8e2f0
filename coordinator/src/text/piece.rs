//! What an answer consists of, once it was read.

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text for whoever asked.
    Text(String),
    /// What the model thinks before it answers.
    Reasoning(String),
    /// A call begins.
    Call {
        /// Counts the calls of the answer from 0.
        index: u32,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments.
    Arguments {
        /// Of which call.
        index: u32,
        /// As the model writes them.
        text: String,
    },
}

impl Piece {
    /// Adds text behind what is there.
    pub(super) fn push_text(out: &mut Vec<Self>, text: &str) {
        match out.last_mut() {
            _ if text.is_empty() => {}
            Some(Self::Text(before)) => before.push_str(text),
            _ => out.push(Self::Text(text.to_owned())),
        }
    }

    /// Adds to what the model thinks.
    pub(super) fn push_reasoning(out: &mut Vec<Self>, text: &str) {
        match out.last_mut() {
            _ if text.is_empty() => {}
            Some(Self::Reasoning(before)) => before.push_str(text),
            _ => out.push(Self::Reasoning(text.to_owned())),
        }
    }

    /// Adds to the arguments of a call.
    pub(super) fn push_arguments(out: &mut Vec<Self>, index: u32, more: &str) {
        match out.last_mut() {
            _ if more.is_empty() => {}
            Some(Self::Arguments { index: last, text }) if *last == index => text.push_str(more),
            _ => out.push(Self::Arguments {
                index,
                text: more.to_owned(),
            }),
        }
    }
}
