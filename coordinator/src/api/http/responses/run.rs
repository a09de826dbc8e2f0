//! An answer that becomes a response: to its end, or event by event.

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response as HttpResponse};
use futures::FutureExt;
use futures::stream::{self, StreamExt};
use palimpsest_proto::error::RequestError;
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::{FinishReason, Finished, GenerateEvent, Usage};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::super::error::HttpError;
use super::super::generate::{Answers, KEEP_ALIVE, WRITE_BYTES};
use super::events::Events;
use super::object::{Response, Stage, write_json};
use super::refusal::refused;
use crate::budget::held;
use crate::request::too_large;
use crate::responses::{Cost, Pinned, Record, Responses};

/// An answer under way.
pub struct Run {
    /// Its events.
    pub answer: Answers,
    /// The response so far.
    pub record: Record,
    /// What keeps it.
    pub responses: Responses,
    /// What it goes on from, where it is to be kept.
    pub parent: Option<Pinned>,
    /// Bytes of its text at most.
    pub most: usize,
}

impl Run {
    /// The whole response.
    pub async fn whole(mut self) -> Result<HttpResponse, HttpError> {
        while let Some(event) = self.answer.next().await {
            match event?.event {
                Some(Event::Delta(delta)) => self.add(&delta.text)?,
                Some(Event::Finished(finished)) => self.finish(&finished).await?,
                _ => {}
            }
        }
        let object = Response::of(&self.record, &Stage::Ended);
        let body = write_json(&object);
        let json = HeaderValue::from_static("application/json");
        // It stands in memory whole, so it must be read in time.
        let body = held(Body::from(body), None);
        Ok(([(header::CONTENT_TYPE, json)], body).into_response())
    }

    /// The response as server-sent events.
    pub fn stream(self) -> HttpResponse {
        let mut keep_alive = interval(KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once.
        keep_alive.reset();
        let stream = EventStream {
            events: Events::new(self.record.id),
            run: self,
            keep_alive,
            is_over: false,
        };
        let bytes = stream::unfold(stream, |mut stream| async move {
            let bytes = stream.next().await?;
            Some((Ok::<_, std::convert::Infallible>(bytes), stream))
        });
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, Body::from_stream(bytes)).into_response()
    }

    fn add(&mut self, text: &str) -> Result<(), RequestError> {
        if self.record.output.len() + text.len() > self.most {
            return Err(too_large(self.most));
        }
        self.record.output.push_str(text);
        Ok(())
    }

    /// Ends the response, and keeps it where that was asked for.
    async fn finish(&mut self, finished: &Finished) -> Result<(), HttpError> {
        self.record.completed = self.responses.now();
        self.record.is_complete = finished.reason() != FinishReason::Length;
        self.record.cost = cost(finished.usage.clone().unwrap_or_default());
        if self.record.asked.store {
            let tenant = self.record.tenant;
            let parent = self.parent.take();
            let kept = self.responses.keep(tenant, &self.record, parent).await;
            kept.map_err(|error| refused(&error, None))?;
        }
        Ok(())
    }
}

/// A response as the body of an answer.
struct EventStream {
    run: Run,
    events: Events,
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
                    _ = self.keep_alive.tick() => return Some(Bytes::from_static(b":\n\n")),
                },
            };
            if let Err(error) = self.take(event, &mut out).await {
                self.events.failed(&mut out, &self.run.record, &error);
                self.is_over = true;
            }
        }
        self.keep_alive.reset();
        (!out.is_empty()).then(|| out.into())
    }

    /// Adds what one event of the service adds to the stream.
    async fn take(
        &mut self,
        event: Option<Result<GenerateEvent, RequestError>>,
        out: &mut Vec<u8>,
    ) -> Result<(), HttpError> {
        let Some(event) = event else {
            self.is_over = true;
            return Ok(());
        };
        match event?.event {
            Some(Event::Started(_)) => self.events.created(out, &self.run.record),
            Some(Event::Delta(delta)) => {
                self.run.add(&delta.text)?;
                self.events.delta(out, &delta.text);
            }
            Some(Event::Finished(finished)) => {
                self.run.finish(&finished).await?;
                self.events.ended(out, &self.run.record);
                self.is_over = true;
            }
            Some(Event::PromptLogprobs(_) | Event::Embedding(_) | Event::RetentionMap(_))
            | None => {}
        }
        Ok(())
    }
}

fn cost(usage: Usage) -> Cost {
    Cost {
        input_tokens: usage.prompt_tokens,
        cached_tokens: usage.cached_tokens,
        output_tokens: usage.generated_tokens,
        evicted_tokens: usage.evicted_tokens,
        held_slots: usage.held_slots,
        held_bytes: usage.held_bytes,
        full_cache_bytes: usage.full_cache_bytes,
        warnings: usage.warnings,
    }
}
