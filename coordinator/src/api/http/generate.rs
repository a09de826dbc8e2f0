//! Running the choices of a request: to the end, or as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::stream::{self, BoxStream, StreamExt};
use opentelemetry::trace::SpanContext;
use palimpsest_proto::error::RequestError;
use palimpsest_proto::v1::GenerateEvent;
use palimpsest_proto::v1::generate_event::Event;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::answers::{Choice, Dialect, Frame, finish_reason, write_event};
use super::error::HttpError;
use super::wire::Choices;
use crate::answer::Answer;
use crate::keys::Tenant;
use crate::service::Service;

/// Of whom a request is.
#[derive(Debug)]
pub struct Caller {
    /// Id of the request, for logs and answers.
    pub id: String,
    /// The span that it names.
    pub parent: Option<SpanContext>,
    /// Whose key it shows, where keys are asked for.
    pub tenant: Option<Arc<Tenant>>,
}

type Events = BoxStream<'static, (usize, Result<GenerateEvent, RequestError>)>;

/// A stream without tokens says that often that it is there: proxies close silent connections.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Room for an event with one token.
const EVENT_BYTES: usize = 512;
/// What is ready at once goes out together, up to about this much.
const WRITE_BYTES: usize = 16 << 10;

/// The events of all choices as they come, and where they are put.
struct Run {
    frame: Frame,
    events: Events,
    choices: Vec<Choice>,
    per_prompt: usize,
    include_usage: bool,
    open: usize,
}

/// Answers a request whose body was read.
///
/// # Errors
/// What is wrong with the request, or why it is not taken now. A failure later in a stream is an
/// event of it.
pub async fn answer(
    service: &Service,
    dialect: Dialect,
    caller: Caller,
    asked: Choices,
    stream: bool,
) -> Result<Response, HttpError> {
    let run = Run::start(service, dialect, caller, asked).await?;
    if stream {
        Ok(run.stream())
    } else {
        run.whole().await
    }
}

impl Run {
    async fn start(
        service: &Service,
        dialect: Dialect,
        caller: Caller,
        asked: Choices,
    ) -> Result<Self, HttpError> {
        let id = caller.id.as_str();
        let count = asked.requests.len();
        let mut events = Vec::with_capacity(count);
        for (index, mut request) in asked.requests.into_iter().enumerate() {
            request.request_id = if count == 1 {
                id.to_owned()
            } else {
                format!("{id}-{index}")
            };
            // An error here drops the answers before it, which cancels them.
            let (parent, tenant) = (caller.parent.as_ref(), caller.tenant.as_ref());
            let answer = service.generate_for(parent, tenant, request, None).await?;
            events.push(follow(index, answer));
        }
        // Choosing among streams costs something for every token.
        let events = if count == 1 {
            events.remove(0)
        } else {
            stream::select_all(events).boxed()
        };
        let prefix = if dialect == Dialect::Chat {
            "chatcmpl"
        } else {
            "cmpl"
        };
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let model = service.model.info.name.clone();
        let frame = Frame {
            dialect,
            id: format!("{prefix}-{id}"),
            created,
            model,
        };
        let choices = vec![Choice::default(); count];
        let (per_prompt, include_usage) = (asked.per_prompt, asked.include_usage);
        Ok(Self {
            frame,
            events,
            choices,
            per_prompt,
            include_usage,
            open: count,
        })
    }

    async fn whole(mut self) -> Result<Response, HttpError> {
        while let Some((index, event)) = self.events.next().await {
            let choice = &mut self.choices[index];
            match event?.event {
                Some(Event::Delta(delta)) => {
                    choice.text.push_str(&delta.text);
                    choice.tokens.extend(delta.tokens);
                }
                Some(Event::Finished(finished)) => {
                    choice.finish = Some(finish_reason(finished.reason()));
                    choice.usage = finished.usage.unwrap_or_default();
                }
                Some(Event::Started(_)) | None => {}
            }
        }
        Ok(Json(self.frame.whole(&self.choices, self.per_prompt)).into_response())
    }

    fn stream(self) -> Response {
        let head = self.frame.chunk_head();
        let mut keep_alive = interval(KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once.
        keep_alive.reset();
        let mut stream = EventStream {
            run: self,
            head,
            keep_alive,
            is_silent: true,
            is_over: false,
        };
        // No task and no buffer in between: the connection polls the answers, so its flow control
        // reaches the rings.
        let bytes =
            stream::poll_fn(move |cx| stream.poll(cx).map(|bytes| bytes.map(Ok::<_, Infallible>)));
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, Body::from_stream(bytes)).into_response()
    }

    /// Adds what one event of the service adds to the stream, and says whether it was the last.
    fn write(
        &mut self,
        out: &mut Vec<u8>,
        head: &[u8],
        index: usize,
        event: Result<GenerateEvent, RequestError>,
    ) -> bool {
        let choice = &mut self.choices[index];
        match event.map(|event| event.event) {
            Ok(Some(Event::Started(_))) => self.frame.write_opening(out, head, index),
            Ok(Some(Event::Delta(delta))) => {
                // Offsets count characters of all the text before; without log-probabilities nobody
                // asks.
                let before = choice.text.chars().count();
                if self.frame.dialect == Dialect::Completion && !delta.tokens.is_empty() {
                    choice.text.push_str(&delta.text);
                }
                self.frame.write_delta(out, head, index, &delta, before);
            }
            Ok(Some(Event::Finished(finished))) => {
                choice.usage = finished.usage.clone().unwrap_or_default();
                self.frame
                    .write_closing(out, head, index, finish_reason(finished.reason()));
                self.open -= 1;
                if self.open == 0 && self.include_usage {
                    write_event(out, &self.frame.usage_chunk(&self.choices, self.per_prompt));
                }
                return self.open == 0;
            }
            Ok(None) => {}
            Err(error) => {
                write_event(out, &HttpError::from(error).json());
                return true;
            }
        }
        false
    }
}

/// A run as the body of a response.
struct EventStream {
    run: Run,
    /// What all chunks begin with.
    head: Vec<u8>,
    keep_alive: Interval,
    /// Nothing was written since the last tick.
    is_silent: bool,
    is_over: bool,
}

impl EventStream {
    /// Everything that is ready, in one piece.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let mut out = Vec::new();
        while !self.is_over && out.len() < WRITE_BYTES {
            match self.run.events.poll_next_unpin(cx) {
                Poll::Ready(Some((index, event))) => {
                    out.reserve(EVENT_BYTES);
                    self.is_over = self.run.write(&mut out, &self.head, index, event);
                }
                Poll::Ready(None) => self.is_over = true,
                Poll::Pending if !out.is_empty() => break,
                Poll::Pending => {
                    ready!(self.keep_alive.poll_tick(cx));
                    if std::mem::replace(&mut self.is_silent, true) {
                        return Poll::Ready(Some(Bytes::from_static(b":\n\n")));
                    }
                }
            }
        }
        if self.is_over {
            out.extend_from_slice(b"data: [DONE]\n\n");
        }
        self.is_silent = false;
        Poll::Ready(Some(out.into()))
    }
}

fn follow(index: usize, answer: Answer) -> Events {
    stream::unfold(answer, move |mut answer| async move {
        let event = answer.next().await?;
        Some(((index, event), answer))
    })
    .boxed()
}
