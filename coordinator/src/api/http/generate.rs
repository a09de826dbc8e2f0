//! Running the choices of a request: to the end, or as server-sent events.

use std::{
    convert::Infallible,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    response::{
        IntoResponse, Response,
        sse::{Event as Sse, KeepAlive, Sse as SseResponse},
    },
};
use futures::stream::{self, BoxStream, SelectAll, StreamExt};
use opentelemetry::trace::SpanContext;
use palimpsest_proto::{
    error::RequestError,
    v1::{GenerateEvent, generate_event::Event},
};
use serde_json::Value;

use super::{
    answers::{Choice, Dialect, Frame, finish_reason},
    error::HttpError,
    wire::Choices,
};
use crate::{answer::Answer, service::Service};

/// Of whom a request is.
#[derive(Debug)]
pub struct Caller {
    /// Id of the request, for logs and answers.
    pub id: String,
    /// The span that it names.
    pub parent: Option<SpanContext>,
}

type Events = SelectAll<BoxStream<'static, (usize, Result<GenerateEvent, RequestError>)>>;

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
/// What is wrong with the request, or why it is not taken now. A failure later in a stream is an event of it.
pub async fn answer(
    service: &Service,
    dialect: Dialect,
    caller: Caller,
    asked: Choices,
    stream: bool,
) -> Result<Response, HttpError> {
    let run = Run::start(service, dialect, caller, asked).await?;
    if stream { Ok(run.stream()) } else { run.whole().await }
}

impl Run {
    async fn start(service: &Service, dialect: Dialect, caller: Caller, asked: Choices) -> Result<Self, HttpError> {
        let id = caller.id.as_str();
        let count = asked.requests.len();
        let mut events = SelectAll::new();
        for (index, mut request) in asked.requests.into_iter().enumerate() {
            request.request_id = if count == 1 { id.to_owned() } else { format!("{id}-{index}") };
            // An error here drops the answers before it, which cancels them.
            let answer = service.generate_for(caller.parent.as_ref(), request, None).await?;
            events.push(follow(index, answer));
        }
        let prefix = if dialect == Dialect::Chat { "chatcmpl" } else { "cmpl" };
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let model = service.model.info.name.clone();
        let frame = Frame { dialect, id: format!("{prefix}-{id}"), created, model };
        let choices = vec![Choice::default(); count];
        let (per_prompt, include_usage) = (asked.per_prompt, asked.include_usage);
        Ok(Self { frame, events, choices, per_prompt, include_usage, open: count })
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
        // No task and no buffer in between: the connection polls the answers, so its flow control reaches the rings.
        let chunks = stream::unfold(Some(self), |run| async move {
            let mut run = run?;
            let (chunks, last) = match run.events.next().await {
                Some((index, event)) => run.chunks(index, event),
                None => (Vec::new(), true),
            };
            Some((stream::iter(chunks), (!last).then_some(run)))
        });
        let done = stream::once(async { Ok(Sse::default().data("[DONE]")) });
        let events = chunks.flatten().map(|chunk: Value| Ok::<_, Infallible>(Sse::default().data(chunk.to_string())));
        SseResponse::new(events.chain(done)).keep_alive(KeepAlive::default()).into_response()
    }

    /// What one event of the service adds to the stream, and whether it was the last.
    fn chunks(&mut self, index: usize, event: Result<GenerateEvent, RequestError>) -> (Vec<Value>, bool) {
        let choice = &mut self.choices[index];
        match event.map(|event| event.event) {
            Ok(Some(Event::Started(_))) => (self.frame.opening(index).into_iter().collect(), false),
            Ok(Some(Event::Delta(delta))) => {
                let before = choice.text.chars().count();
                if self.frame.dialect == Dialect::Completion && !delta.tokens.is_empty() {
                    choice.text.push_str(&delta.text);
                }
                (vec![self.frame.chunk(index, &delta, before)], false)
            }
            Ok(Some(Event::Finished(finished))) => {
                choice.usage = finished.usage.clone().unwrap_or_default();
                let mut chunks = vec![self.frame.closing(index, finish_reason(finished.reason()))];
                self.open -= 1;
                if self.open == 0 && self.include_usage {
                    chunks.push(self.frame.usage_chunk(&self.choices, self.per_prompt));
                }
                (chunks, self.open == 0)
            }
            Ok(None) => (Vec::new(), false),
            Err(error) => (vec![HttpError::from(error).json()], true),
        }
    }
}

fn follow(index: usize, answer: Answer) -> BoxStream<'static, (usize, Result<GenerateEvent, RequestError>)> {
    stream::unfold(answer, move |mut answer| async move {
        let event = answer.next().await?;
        Some(((index, event), answer))
    })
    .boxed()
}
