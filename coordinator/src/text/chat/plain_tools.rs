//! Tools for models whose template knows none: they are described in a system message, and calls
//! and their results become plain messages.

use palimpsest_proto::v1::{Chat, ChatMessage, ToolCall};
use serde_json::{Value as Json, json};

use super::conversation::read_tool;
use crate::text::error::Error;

/// What stands before the list of tools.
const INTRODUCTION: &str = "You can call functions. To call one, answer with nothing but a JSON \
                            object of its name and its arguments, such as {\"name\": \
                            \"function_name\", \"arguments\": {\"argument\": \"value\"}}. Answer \
                            in words when no function helps. These are the functions:";
/// What stands before the result of a call.
const RESULT: &str = "Result of ";

/// Whether anything of a conversation has to be put in other words.
pub(super) fn is_needed(chat: &Chat, has_tools: bool) -> bool {
    let mut messages = chat.messages.iter();
    has_tools || messages.any(|one| is_result(one) || !one.tool_calls().is_empty())
}

/// Puts all that is about tools in other words.
///
/// # Errors
/// [`Error::Chat`] for a tool that cannot be read.
pub(super) fn write(chat: &mut Chat, has_tools: bool) -> Result<(), Error> {
    let mut messages: Vec<ChatMessage> = Vec::with_capacity(chat.messages.len() + 1);
    if has_tools {
        let mut text = INTRODUCTION.to_owned();
        for (index, tool) in chat.tools.iter().enumerate() {
            let tool = read_tool(index, tool)?;
            text.push('\n');
            text.push_str(&tool["function"].to_string());
        }
        let has_system = chat
            .messages
            .first()
            .is_some_and(|one| one.role == "system");
        if has_system {
            let system = &mut chat.messages[0].content;
            *system = format!("{system}\n\n{text}");
        } else {
            messages.push(ChatMessage::new("system", text));
        }
    }
    let mut follows_result = false;
    for message in std::mem::take(&mut chat.messages) {
        if !is_result(&message) {
            follows_result = false;
            messages.push(without_calls(message));
            continue;
        }
        let text = result(&messages, &message);
        match messages.last_mut().filter(|_| follows_result) {
            // Many templates refuse two messages of a user one after the other.
            Some(before) => before.content = format!("{}\n{text}", before.content),
            None => messages.push(ChatMessage::new("user", text)),
        }
        follows_result = true;
    }
    // The results have found their calls: from here on both are text.
    for message in &mut messages {
        if let Some(details) = &mut message.details {
            details.tool_calls.clear();
        }
    }
    chat.messages = messages;
    Ok(())
}

fn is_result(message: &ChatMessage) -> bool {
    matches!(message.role.as_str(), "tool" | "function")
}

/// What a tool answered, with its name where it is known.
fn result(before: &[ChatMessage], message: &ChatMessage) -> String {
    let mut calls = before.iter().flat_map(ChatMessage::tool_calls);
    let id = message.tool_call_id();
    let name = match calls.find(|call| call.id == id && !id.is_empty()) {
        _ if !message.name().is_empty() => message.name(),
        Some(call) => call.name.as_str(),
        None => "the function",
    };
    format!("{RESULT}{name}: {}", message.content)
}

/// A message whose calls are its text. They stay in it, for the results that name them.
fn without_calls(mut message: ChatMessage) -> ChatMessage {
    let mut content = std::mem::take(&mut message.content);
    for call in message.tool_calls() {
        if !content.is_empty() {
            content.push('\n');
        }
        content.push_str(&call_text(call));
    }
    message.content = content;
    message
}

fn call_text(call: &ToolCall) -> String {
    let arguments: Json =
        serde_json::from_str(&call.arguments).unwrap_or_else(|_| call.arguments.clone().into());
    json!({"name": call.name, "arguments": arguments}).to_string()
}
