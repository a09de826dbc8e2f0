//! What an answer may be, as every format is asked for it.

use super::super::ToolFormat;

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
    /// Whether the answer may be a call, or what a guide asks for.
    pub(super) fn is_either(&self) -> bool {
        self.answer.is_some() && self.begun == Begun::Nothing
    }

    /// Whether another call may follow one.
    pub(super) fn may_repeat(&self) -> bool {
        !self.single && self.begun != Begun::Arguments
    }
}
