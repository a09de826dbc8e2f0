//! What models write around thoughts and calls.

/// What thoughts stand between.
pub(super) const THINK_START: &str = "<think>";
pub(super) const THINK_END: &str = "</think>";

/// What calls of Hermes and Qwen stand between.
pub(super) const TAG: &str = "<tool_call>";
pub(super) const TAG_END: &str = "</tool_call>";

/// What stands before calls of Mistral, between a name and its arguments, and before an id.
pub(super) const CALLS: &str = "[TOOL_CALLS]";
pub(super) const ARGUMENTS: &str = "[ARGS]";
pub(super) const CALL_ID: &str = "[CALL_ID]";

/// What may stand before calls of Llama 3.
pub(super) const PYTHON: &str = "<|python_tag|>";

/// The parts of a message of gpt-oss, in the format that it calls harmony: who speaks stands behind
/// the start, the channel behind its mark, how the message is written behind `constrain`, and the
/// message itself behind its own mark.
pub(super) const START: &str = "<|start|>";
pub(super) const CHANNEL: &str = "<|channel|>";
pub(super) const CONSTRAIN: &str = "<|constrain|>";
pub(super) const MESSAGE: &str = "<|message|>";
/// The end of a message, of one that is a call, and of an answer.
pub(super) const END: &str = "<|end|>";
pub(super) const CALL: &str = "<|call|>";
pub(super) const RETURN: &str = "<|return|>";
/// Who speaks in an answer.
pub(super) const ASSISTANT: &str = "assistant";
/// What the name of a tool has before it.
pub(super) const FUNCTIONS: &str = "functions.";
