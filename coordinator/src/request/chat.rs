//! What of a conversation can be wrong before its template is run.

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::{Chat, ToolMode};

/// Tools of one request.
pub const MAX_TOOLS: usize = 128;
/// Bytes of a tool's name.
const MAX_NAME_BYTES: usize = 64;
/// Who may speak. Templates write roles next to control tokens, so no other word gets there.
const ROLES: [&str; 6] = [
    "system",
    "developer",
    "user",
    "assistant",
    "tool",
    "function",
];

/// Refuses a conversation with roles or tools that cannot be.
///
/// # Errors
/// `BadChat`, with the field.
pub fn check_chat(chat: &Chat) -> Result<(), RequestError> {
    let mut messages = chat.messages.iter().enumerate();
    if let Some((index, _)) = messages.find(|(_, one)| !ROLES.contains(&one.role.as_str())) {
        let message = format!("messages[{index}].role must be one of {}", ROLES.join(", "));
        return Err(bad("chat.messages", message));
    }
    check_tools(chat)?;
    if chat.continue_final_message && !chat.answer_prefix.is_empty() {
        let message = "answer_prefix begins an answer, and continue_final_message goes on with one";
        return Err(bad("chat.answer_prefix", message.to_owned()));
    }
    Ok(())
}

fn check_tools(chat: &Chat) -> Result<(), RequestError> {
    if chat.tools.len() > MAX_TOOLS {
        let count = chat.tools.len();
        let message = format!("{count} tools, over the limit of {MAX_TOOLS}");
        return Err(bad("chat.tools", message));
    }
    for (index, tool) in chat.tools.iter().enumerate() {
        if !is_name(&tool.name) {
            let message = format!(
                "the name of tools[{index}] must be 1 to {MAX_NAME_BYTES} letters, digits, \
                 points, underscores and hyphens"
            );
            return Err(bad("chat.tools", message));
        }
        let mut before = chat.tools[..index].iter();
        if before.any(|other| other.name == tool.name) {
            let message = format!("tools[{index}] has the name of another tool: {}", tool.name);
            return Err(bad("chat.tools", message));
        }
    }
    let is_required = chat.tool_mode() == ToolMode::Required;
    if is_required && chat.tools.is_empty() {
        let message = "a call is required, and there are no tools: send tools as well";
        return Err(bad("chat.tools", message.to_owned()));
    }
    if chat.tool_name.is_empty() {
        return Ok(());
    }
    if !is_required || !chat.tools.iter().any(|tool| tool.name == chat.tool_name) {
        let message = "the tool that must be called is not among the tools";
        return Err(bad("chat.tool_name", message.to_owned()));
    }
    Ok(())
}

/// Names stand in what the model is made to write, so they have no letters of JSON's own.
fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_allowed)
}

fn bad(field: &'static str, message: String) -> RequestError {
    RequestError::new(Reason::BadChat, message).in_field(field)
}
