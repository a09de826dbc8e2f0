//! An answer that becomes a message: to its end, or event by event.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::stream::{self, StreamExt};
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::GenerateEvent;
use palimpsest_proto::v1::generate_event::Event;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::super::error::HttpError;
use super::super::generate::{Answers, KEEP_ALIVE, WRITE_BYTES};
use super::blocks::Blocks;
use super::events::{self, Progress};
use super::object::Frame;
use crate::answer::GivenUp;
use crate::budget::held;
use crate::request::too_large;

/// An answer under way.
pub struct Run {
    /// Its events.
    pub answer: Answers,
    /// What its objects have in common.
    pub frame: Frame,
    /// Name of its request.
    pub request_id: String,
    /// Whether the message has what the model thinks.
    pub hears_thoughts: bool,
    /// Says why it is dropped.
    pub given_up: GivenUp,
    /// Bytes of its text at most, where it is sent whole.
    pub most: usize,
}

impl Run {
    /// The whole message.
    pub async fn whole(mut self) -> Result<Response, HttpError> {
        let mut blocks = Blocks::default();
        let mut ended = None;
        while let Some(event) = self.answer.next().await {
            match event?.event {
                Some(Event::Delta(delta)) => {
                    blocks.add(&delta, self.hears_thoughts);
                    if blocks.bytes() > self.most {
                        self.given_up.because_of(Reason::AnswerTooLarge);
                        return Err(too_large(self.most).into());
                    }
                }
                Some(Event::Finished(finished)) => ended = Some(finished),
                _ => {}
            }
        }
        let ended = ended.unwrap_or_default();
        let message = self.frame.ended(blocks.objects(), &ended);
        // It stands in memory whole, so it must be read in time.
        let body = held(Body::from(message.to_string()), None);
        Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
    }

    /// The message as server-sent events.
    pub fn stream(self) -> Response {
        let mut keep_alive = interval(KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once.
        keep_alive.reset();
        let stream = EventStream {
            run: self,
            progress: Progress::default(),
            keep_alive,
            is_over: false,
        };
        let bytes = stream::unfold(stream, |mut stream| async move {
            let bytes = stream.next().await?;
            Some((Ok::<_, Infallible>(bytes), stream))
        });
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, Body::from_stream(bytes)).into_response()
    }
}

/// A message as the body of an answer.
struct EventStream {
    run: Run,
    progress: Progress,
    keep_alive: Interval,
    is_over: bool,
}

impl EventStream {
    /// Everything that is ready, in one piece.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while !self.is_over && out.len() < WRITE_BYTES {
            let event = match self.run.answer.next().now_or_never() {
                Some(event) => event,
                None if !out.is_empty() => break,
                None => tokio::select! {
                    event = self.run.answer.next() => event,
                    _ = self.keep_alive.tick() => {
                        return Some(Bytes::from_static(events::PING.as_bytes()));
                    }
                },
            };
            self.take(event, &mut out);
        }
        self.keep_alive.reset();
        (!out.is_empty()).then(|| out.into())
    }

    /// Adds what one event of the service adds to the stream.
    fn take(&mut self, event: Option<Result<GenerateEvent, RequestError>>, out: &mut Vec<u8>) {
        match event.map(|event| event.map(|event| event.event)) {
            Some(Ok(Some(Event::Started(started)))) => {
                events::begun(out, &self.run.frame, started.prompt_tokens);
            }
            Some(Ok(Some(Event::Delta(delta)))) => {
                self.progress.delta(out, &delta, self.run.hears_thoughts);
            }
            Some(Ok(Some(
                Event::PromptLogprobs(_) | Event::Embedding(_) | Event::RetentionMap(_),
            ))) => {}
            Some(Ok(Some(Event::Finished(finished)))) => {
                self.progress.ended(out, &self.run.frame, &finished);
                self.is_over = true;
            }
            Some(Ok(None)) => {}
            Some(Err(error)) => {
                events::failed(out, &error.into(), &self.run.request_id);
                self.is_over = true;
            }
            None => self.is_over = true,
        }
    }
}
