//! Messages of conversations, whose rare fields stand apart.

use crate::v1::{ChatMessage, ToolCall};

impl ChatMessage {
    /// A message that is nothing but text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            details: None,
        }
    }

    /// What the assistant called.
    pub fn tool_calls(&self) -> &[ToolCall] {
        let details = self.details.as_ref();
        details.map_or(&[], |details| &details.tool_calls)
    }

    /// The call that a tool's message answers.
    pub fn tool_call_id(&self) -> &str {
        let details = self.details.as_ref();
        details.map_or("", |details| &details.tool_call_id)
    }

    /// Who speaks, or which tool.
    pub fn name(&self) -> &str {
        self.details.as_ref().map_or("", |details| &details.name)
    }

    /// What the assistant thought.
    pub fn reasoning(&self) -> &str {
        let details = self.details.as_ref();
        details.map_or("", |details| &details.reasoning)
    }
}
