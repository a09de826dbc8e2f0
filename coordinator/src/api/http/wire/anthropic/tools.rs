//! Tools in Anthropic's form. They are not supported: all refusals of them stand here.

use super::super::fields::{Known, Unsupported};

/// Fields of a request about tools.
const FIELDS: [&str; 2] = ["tools", "tool_choice"];

/// Refused unless they ask for nothing.
pub(super) const KNOWN: Known = Known {
    ignored: &[],
    unsupported: &[
        Unsupported::new(FIELDS[0], "tool calls are not supported"),
        Unsupported::new(FIELDS[1], "tool calls are not supported"),
    ],
};

/// Whether a field is about tools.
pub(super) fn is_field(name: &str) -> bool {
    FIELDS.contains(&name)
}

/// Why a block of this type is refused, if it is about tools.
pub(super) fn refusal(kind: &str) -> Option<String> {
    let is_ours = ["tool_use", "tool_result"].contains(&kind);
    is_ours.then(|| format!("content of type `{kind}`: tool calls are not supported"))
}
