//! A message as server-sent events, in the order that Anthropic sends them:
//!
//! ```text
//! message_start ▸ ping
//!   ▸ for each block: content_block_start ▸ content_block_delta … ▸ content_block_stop
//! ▸ message_delta ▸ message_stop
//! ```
//! A block begins with the first piece that it has. A message that fails ends with `error` instead.

use palimpsest_proto::v1::{Delta, Finished};
use serde::Serialize;
use serde_json::{Value, json};

use super::super::error::HttpError;
use super::blocks::{Kind, Piece, SIGNATURE, each_piece};
use super::error;
use super::object::Frame;

/// Says that a stream is there.
pub const PING: &str = "event: ping\ndata: {\"type\":\"ping\"}\n\n";
/// What stands before the number of a block that goes on. It is written anew for no token.
const DELTA_HEAD: &str =
    "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":";
const DELTA_END: &[u8] = b"}}\n\n";

/// The block that a stream has got to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    open: Option<Kind>,
    /// Blocks that have begun.
    count: usize,
}

/// The message has begun, after a prompt of so many tokens.
pub fn begun(out: &mut Vec<u8>, frame: &Frame, prompt_tokens: u64) {
    let message = frame.begun(prompt_tokens);
    write(out, &json!({"type": "message_start", "message": message}));
    out.extend_from_slice(PING.as_bytes());
}

impl Progress {
    /// More of the message.
    pub fn delta(&mut self, out: &mut Vec<u8>, delta: &Delta, hears_thoughts: bool) {
        each_piece(delta, hears_thoughts, self.open, |piece| {
            self.piece(out, piece);
        });
    }

    fn piece(&mut self, out: &mut Vec<u8>, piece: Piece<'_>) {
        if self.open != Some(piece.kind) {
            self.close(out);
            self.begin(out, piece.kind, &piece.empty_block());
        }
        if piece.text.is_empty() {
            return;
        }
        self.delta_head(out);
        out.extend_from_slice(match piece.kind {
            Kind::Thought => br#"{"type":"thinking_delta","thinking":"#.as_slice(),
            Kind::Text => br#"{"type":"text_delta","text":"#,
            Kind::Call(_) => br#"{"type":"input_json_delta","partial_json":"#,
        });
        write_json(out, piece.text);
        out.extend_from_slice(DELTA_END);
    }

    fn begin(&mut self, out: &mut Vec<u8>, kind: Kind, block: &Value) {
        let index = self.count;
        self.open = Some(kind);
        self.count += 1;
        write(
            out,
            &json!({"type": "content_block_start", "index": index, "content_block": block}),
        );
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        let Some(kind) = self.open.take() else { return };
        if kind == Kind::Thought {
            self.delta_head(out);
            out.extend_from_slice(br#"{"type":"signature_delta","signature":"#);
            write_json(out, SIGNATURE);
            out.extend_from_slice(DELTA_END);
        }
        let index = self.count - 1;
        write(out, &json!({"type": "content_block_stop", "index": index}));
    }

    /// Begins more of the block that is open.
    fn delta_head(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(DELTA_HEAD.as_bytes());
        write_json(out, &(self.count - 1));
        out.extend_from_slice(b",\"delta\":");
    }

    /// The message has ended. One without any block has an empty text.
    pub fn ended(&mut self, out: &mut Vec<u8>, frame: &Frame, finished: &Finished) {
        if self.count == 0 {
            self.begin(out, Kind::Text, &json!({"type": "text", "text": ""}));
        }
        self.close(out);
        write(out, &frame.last_delta(finished));
        write(out, &json!({"type": "message_stop"}));
    }
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
