//! A response as server-sent events, in the order that OpenAI sends them:
//!
//! ```text
//! response.created ▸ response.in_progress
//!   ▸ response.output_item.added ▸ response.content_part.added
//!   ▸ response.output_text.delta …  ▸ response.output_text.done
//!   ▸ response.content_part.done ▸ response.output_item.done
//! ▸ response.completed, or response.incomplete
//! ```
//! A response that fails ends with `error` and `response.failed` instead. Events are counted from
//! 0.

use axum::http::StatusCode;
use serde::Serialize;

use super::super::error::HttpError;
use super::object::{Item, Part, Response, Stage, answer_id};
use crate::responses::{Record, ResponseId};

/// Writes the events of one response.
pub struct Events {
    id: ResponseId,
    /// Name of the answer.
    item_id: String,
    /// Number of the next event.
    number: u64,
    /// What all deltas begin with. It is written anew for no token.
    delta_head: Vec<u8>,
    /// The answer was announced.
    is_open: bool,
}

#[derive(Serialize)]
struct Event<T> {
    #[serde(rename = "type")]
    kind: &'static str,
    sequence_number: u64,
    #[serde(flatten)]
    fields: T,
}

#[derive(Serialize)]
struct OfResponse<'a> {
    response: Response<'a>,
}

#[derive(Serialize)]
struct OfItem<'a> {
    output_index: u32,
    item: Item<'a>,
}

#[derive(Serialize)]
struct OfPart<'a> {
    item_id: &'a str,
    output_index: u32,
    content_index: u32,
    part: Part<'a>,
}

#[derive(Serialize)]
struct OfText<'a> {
    item_id: &'a str,
    output_index: u32,
    content_index: u32,
    text: &'a str,
    logprobs: [(); 0],
}

#[derive(Serialize)]
struct OfError<'a> {
    code: &'a str,
    message: &'a str,
    param: Option<&'a str>,
}

const DELTA: &str = "response.output_text.delta";

impl Events {
    /// Events of the response of this name.
    pub fn new(id: ResponseId) -> Self {
        let item_id = answer_id(id);
        let head = format!(
            "event: {DELTA}\ndata: {{\"type\":\"{DELTA}\",\"item_id\":\"{item_id}\",\
             \"output_index\":0,\"content_index\":0,\"logprobs\":[],\"sequence_number\":"
        );
        Self {
            id,
            item_id,
            number: 0,
            delta_head: head.into(),
            is_open: false,
        }
    }

    /// It has begun.
    pub fn created(&mut self, out: &mut Vec<u8>, record: &Record) {
        for kind in ["response.created", "response.in_progress"] {
            let response = Response::of(record, &Stage::InProgress);
            self.write(out, kind, OfResponse { response });
        }
    }

    /// More of its text.
    pub fn delta(&mut self, out: &mut Vec<u8>, text: &str) {
        self.open(out);
        if text.is_empty() {
            return;
        }
        out.extend_from_slice(&self.delta_head);
        write_json(out, &self.number);
        out.extend_from_slice(b",\"delta\":");
        write_json(out, text);
        out.extend_from_slice(b"}\n\n");
        self.number += 1;
    }

    /// It has ended.
    pub fn ended(&mut self, out: &mut Vec<u8>, record: &Record) {
        self.open(out);
        let item_id = self.item_id.clone();
        let text = OfText {
            item_id: &item_id,
            output_index: 0,
            content_index: 0,
            text: &record.output,
            logprobs: [],
        };
        self.write(out, "response.output_text.done", text);
        let part = OfPart {
            item_id: &item_id,
            output_index: 0,
            content_index: 0,
            part: Part::answer(&record.output),
        };
        self.write(out, "response.content_part.done", part);
        let item = OfItem {
            output_index: 0,
            item: Item::answer(record),
        };
        self.write(out, "response.output_item.done", item);
        let kind = if record.is_complete {
            "response.completed"
        } else {
            "response.incomplete"
        };
        let response = Response::of(record, &Stage::Ended);
        self.write(out, kind, OfResponse { response });
    }

    /// It has failed.
    pub fn failed(&mut self, out: &mut Vec<u8>, record: &Record, error: &HttpError) {
        let body = OfError {
            code: error.body.code,
            message: &error.body.message,
            param: error.body.param.as_deref(),
        };
        self.write(out, "error", body);
        // The codes that OpenAI's clients know.
        let code = match error.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_exceeded",
            status if status.is_client_error() => "invalid_prompt",
            _ => "server_error",
        };
        let message = error.body.message.clone();
        let response = Response::of(record, &Stage::Failed { code, message });
        self.write(out, "response.failed", OfResponse { response });
    }

    /// Announces the answer, once.
    fn open(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.is_open, true) {
            return;
        }
        let item = OfItem {
            output_index: 0,
            item: Item::opening(self.id),
        };
        self.write(out, "response.output_item.added", item);
        let item_id = self.item_id.clone();
        let part = OfPart {
            item_id: &item_id,
            output_index: 0,
            content_index: 0,
            part: Part::answer(""),
        };
        self.write(out, "response.content_part.added", part);
    }

    fn write<T: Serialize>(&mut self, out: &mut Vec<u8>, kind: &'static str, fields: T) {
        let sequence_number = self.number;
        self.number += 1;
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\ndata: ");
        let event = Event {
            kind,
            sequence_number,
            fields,
        };
        write_json(out, &event);
        out.extend_from_slice(b"\n\n");
    }
}

fn write_json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value)
        .expect("memory takes everything, and these types have a JSON form");
}
