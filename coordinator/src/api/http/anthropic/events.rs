//! A message as server-sent events, in the order that Anthropic sends them:
//!
//! ```text
//! message_start ▸ content_block_start ▸ ping
//!   ▸ content_block_delta … ▸ content_block_stop
//! ▸ message_delta ▸ message_stop
//! ```
//! A message that fails ends with `error` instead.

use palimpsest_proto::v1::Finished;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::error::HttpError;
use super::error;
use super::object::{Frame, last_delta};

/// Says that a stream is there.
pub const PING: &str = "event: ping\ndata: {\"type\":\"ping\"}\n\n";
/// What stands before and behind each piece of text. It is written anew for no token.
const DELTA_HEAD: &str = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\
                          \"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":";
const DELTA_END: &[u8] = b"}}\n\n";

/// The message has begun, after a prompt of so many tokens.
pub fn begun(out: &mut Vec<u8>, frame: &Frame, prompt_tokens: u64) {
    let message = frame.begun(prompt_tokens);
    write(out, &json!({"type": "message_start", "message": message}));
    let block = json!({"type": "text", "text": ""});
    write(
        out,
        &json!({"type": "content_block_start", "index": 0, "content_block": block}),
    );
    out.extend_from_slice(PING.as_bytes());
}

/// More of its text.
pub fn delta(out: &mut Vec<u8>, text: &str) {
    if text.is_empty() {
        return;
    }
    out.extend_from_slice(DELTA_HEAD.as_bytes());
    write_json(out, text);
    out.extend_from_slice(DELTA_END);
}

/// It has ended.
pub fn ended(out: &mut Vec<u8>, finished: &Finished) {
    write(out, &json!({"type": "content_block_stop", "index": 0}));
    write(out, &last_delta(finished));
    write(out, &json!({"type": "message_stop"}));
}

/// It has failed.
pub fn failed(out: &mut Vec<u8>, error: &HttpError, id: &str) {
    write(out, &error::object(error, Some(id)));
}

/// Adds an event under the name that stands in its object.
fn write(out: &mut Vec<u8>, event: &Value) {
    out.extend_from_slice(b"event: ");
    let name = event["type"].as_str().unwrap_or_default();
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    write_json(out, event);
    out.extend_from_slice(b"\n\n");
}

fn write_json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value)
        .expect("memory takes everything, and these types have a JSON form");
}
