//! Running the choices of a request: to the end, or as server-sent events.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, BoxStream, StreamExt};
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{Delta, GenerateEvent};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::answers::{Choice, Dialect, Frame, finish_reason, write_event};
use super::error::{HttpError, Named};
use super::wire::Choices;
use crate::answer::{Answer, GivenUp};
use crate::budget::held;
use crate::ids::RequestId;
use crate::model::ServedModel;
use crate::request::{answer_bytes, too_large};
use crate::service::{Call, Prompted, Service};
use crate::text::Infilling;

/// Of whom a request is.
#[derive(Debug)]
pub struct Caller {
    /// Id of the request, for logs and answers.
    pub id: String,
    /// The rest, as the service knows it.
    pub call: Call,
}

type Events = BoxStream<'static, (usize, Result<GenerateEvent, RequestError>)>;

/// A stream without tokens says that often that it is there: proxies close silent connections.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Room for an event with one token.
const EVENT_BYTES: usize = 512;
/// What is ready at once goes out together, up to about this much.
pub const WRITE_BYTES: usize = 16 << 10;

/// The events of all choices as they come, and where they are put.
struct Run {
    frame: Frame,
    events: Events,
    choices: Vec<Choice>,
    per_prompt: usize,
    include_usage: bool,
    echo: Option<Echo>,
    /// Whether the request asks for `prompt_logprobs`.
    tells_prompt: bool,
    open: usize,
    /// One of each answer.
    given_up: Vec<GivenUp>,
}

/// What answers repeat before what they add: their prompts, as they were read.
struct Echo {
    model: Arc<ServedModel>,
    /// Of each choice.
    prompts: Vec<Repeated>,
    /// With their log-probabilities, which come when the prompt was read.
    has_logprobs: bool,
}

/// The tokens of a prompt, and which of them are repeated: not what stands behind the answer.
struct Repeated {
    ids: Arc<[u32]>,
    places: Range<usize>,
}

impl Repeated {
    fn of(answer: &Answer, infilling: Option<&Infilling>) -> Self {
        let ids = answer.prompt();
        let places = infilling.map_or(0..ids.len(), |infilling| infilling.prefix_of(&ids));
        Self { ids, places }
    }
}

impl Echo {
    /// What an event adds to the answer of choice `index`.
    fn delta(&self, index: usize, event: &Event) -> Option<Delta> {
        let Repeated { ids, places } = self.prompts.get(index)?;
        let (text, tokens) = match event {
            Event::Started(_) if !self.has_logprobs => {
                let ids = ids.get(places.clone())?;
                (self.model.tokenizer.decode(ids), Vec::new())
            }
            Event::PromptLogprobs(prompt) if self.has_logprobs => {
                let tokens = prompt.tokens.get(places.clone())?;
                // Offsets count the text of all tokens.
                let bytes = tokens.iter().flat_map(|token| &token.bytes);
                let bytes: Vec<u8> = bytes.copied().collect();
                let text = String::from_utf8_lossy(&bytes).into_owned();
                (text, tokens.to_vec())
            }
            _ => return None,
        };
        Some(Delta {
            text,
            tokens,
            ..Default::default()
        })
    }
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
    if !stream {
        let tenant = caller.call.tenant.as_ref().map(|tenant| tenant.name());
        let count = |error: &HttpError| service.metrics.refused(tenant, error.body.code);
        check_whole(service, &asked).inspect_err(count)?;
    }
    let run = Run::start(service, dialect, caller, asked).await?;
    if stream {
        Ok(run.stream())
    } else {
        run.whole(service.config.max_answer_bytes).await
    }
}

/// Refuses log-probabilities that no whole answer would hold.
fn check_whole(service: &Service, asked: &Choices) -> Result<(), HttpError> {
    let choices = asked.count() as u64;
    let first = asked.prompts.iter().flat_map(|asked| &asked.choices).next();
    let Some(request) = first else {
        return Ok(());
    };
    let top = request
        .sampling
        .as_ref()
        .and_then(|sampling| sampling.logprobs);
    let Some(top) = top.map(u64::from) else {
        return Ok(());
    };
    let stated = request
        .stopping
        .as_ref()
        .and_then(|stopping| stopping.max_tokens);
    let max_tokens = u64::from(stated.unwrap_or(service.config.default_max_tokens));
    let (needed, most) = (
        answer_bytes(choices, max_tokens, top),
        service.config.max_answer_bytes as u64,
    );
    if needed <= most {
        return Ok(());
    }
    let message = format!(
        "{choices} choices of {max_tokens} tokens with {top} alternatives each take about {needed} \
         bytes, over the limit of {most} for one answer: lower max_tokens, n or the alternatives, \
         or ask for a stream"
    );
    let error = RequestError::new(Reason::AnswerTooLarge, message);
    Err(error.in_field("stopping.max_tokens").into())
}

/// Gives each choice a name, of the request's.
fn name_choices(asked: &mut Choices, id: &str) {
    let count = asked.count();
    let requests = asked.prompts.iter_mut().flat_map(|one| &mut one.choices);
    for (index, request) in requests.enumerate() {
        request.request_id = if count == 1 {
            id.to_owned()
        } else {
            RequestId::of_choice(id, index)
        };
    }
}

/// How the prompts are written, where they stand around a place.
fn infilling<'m>(service: &'m Service, asked: &Choices) -> Option<&'m Infilling> {
    let is_infill = |one: &Prompted| matches!(one.input, Some(Input::Infill(_)));
    let is_asked = asked.prompts.iter().any(is_infill);
    let infilling = service.model.infilling.as_ref().ok();
    infilling.filter(|_| is_asked)
}

impl Run {
    async fn start(
        service: &Service,
        dialect: Dialect,
        caller: Caller,
        asked: Choices,
    ) -> Result<Self, HttpError> {
        let mut asked = asked;
        let named = asked.named;
        let id = asked.request_id.take().unwrap_or(caller.id);
        let id = id.as_str();
        let count = asked.count();
        name_choices(&mut asked, id);
        let has_logprobs = asked.sampling().is_some_and(|one| one.logprobs.is_some());
        let (echoes, tells_prompt) = (asked.echoes, asked.tells_prompt);
        let guided_by = asked.guided_by;
        let infilling = infilling(service, &asked);
        let answers = service.generate_all(&caller.call, asked.prompts).await;
        let answers = answers.map_err(|error| in_field_of_guide(error, named, guided_by))?;
        let repeated = |answer| Repeated::of(answer, infilling);
        let echo = echoes.then(|| Echo {
            model: service.model.clone(),
            prompts: answers.iter().map(repeated).collect(),
            has_logprobs,
        });
        let given_up = answers.iter().map(Answer::given_up).collect();
        let answers = answers.into_iter().enumerate();
        let mut events: Vec<_> = answers
            .map(|(index, answer)| follow(index, answer))
            .collect();
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
        let model = service.model.name().to_owned();
        let frame = Frame {
            dialect,
            id: format!("{prefix}-{id}"),
            created,
            model,
            warnings: asked.warnings,
        };
        let choices = vec![Choice::default(); count];
        let (per_prompt, include_usage) = (asked.per_prompt, asked.include_usage);
        Ok(Self {
            frame,
            events,
            choices,
            per_prompt,
            include_usage,
            echo,
            tells_prompt,
            open: count,
            given_up,
        })
    }

    async fn whole(mut self, most: usize) -> Result<Response, HttpError> {
        let mut bytes = 0;
        while let Some((index, event)) = self.events.next().await {
            let event = event?.event;
            let repeated = self.repeated(index, event.as_ref());
            let choice = &mut self.choices[index];
            bytes -= choice.bytes();
            if let Some(delta) = repeated {
                choice.add(self.frame.dialect, &delta);
            }
            match event {
                Some(Event::Delta(delta)) => choice.add(self.frame.dialect, &delta),
                Some(Event::PromptLogprobs(prompt)) if self.tells_prompt => {
                    choice.add_prompt(&prompt.tokens);
                }
                Some(Event::Finished(finished)) => {
                    choice.finish = Some(finish_reason(finished.reason()));
                    choice.usage = finished.usage.unwrap_or_default();
                }
                Some(Event::Started(started)) => choice.begin(started),
                // Maps come in streams alone.
                Some(Event::PromptLogprobs(_) | Event::Embedding(_) | Event::RetentionMap(_))
                | None => {}
            }
            bytes += choice.bytes();
            if bytes > most {
                let why = Reason::AnswerTooLarge;
                self.given_up
                    .iter()
                    .for_each(|answer| answer.because_of(why));
                return Err(too_large(most).into());
            }
        }
        let json = HeaderValue::from_static("application/json");
        let body = self.frame.whole(self.choices, self.per_prompt);
        // It stands in memory whole, so it must be read in time.
        let body = held(Body::from(body), None);
        Ok(([(header::CONTENT_TYPE, json)], body).into_response())
    }

    /// What an event of choice `index` repeats of its prompt.
    fn repeated(&self, index: usize, event: Option<&Event>) -> Option<Delta> {
        self.echo.as_ref()?.delta(index, event?)
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
        let event = event.map(|event| event.event);
        let found = event.as_ref().ok().and_then(Option::as_ref);
        let repeated = self.repeated(index, found);
        let choice = &mut self.choices[index];
        match event {
            Ok(Some(Event::Started(started))) => {
                self.frame
                    .write_opening(out, head, index, &started.prompt_token_ids);
            }
            Ok(Some(Event::Delta(delta))) => self.write_delta(out, head, index, &delta),
            Ok(Some(Event::RetentionMap(map))) => {
                write_event(out, &self.frame.map_chunk(&map));
            }
            Ok(Some(Event::PromptLogprobs(_) | Event::Embedding(_))) => {}
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
        // Behind the opening of its choice.
        if let Some(delta) = repeated {
            self.write_delta(out, head, index, &delta);
        }
        false
    }
}

impl Run {
    fn write_delta(&mut self, out: &mut Vec<u8>, head: &[u8], index: usize, delta: &Delta) {
        // Offsets count characters of all the text before; without log-probabilities nobody asks.
        let choice = &mut self.choices[index];
        let before = choice.characters;
        if self.frame.dialect == Dialect::Completion && !delta.tokens.is_empty() {
            choice.characters += delta.text.chars().count();
        }
        self.frame.write_delta(out, head, index, delta, before);
    }
}

/// A failure, with the name that the client gave its guide where that is at fault.
fn in_field_of_guide(
    error: RequestError,
    named: Named,
    guided_by: Option<&'static str>,
) -> HttpError {
    let is_of_guide = error.field.is_some_and(|path| path.starts_with("guide"));
    let error = HttpError::of(error, named);
    match guided_by {
        Some(name) if is_of_guide => error.renamed(name),
        _ => error,
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

/// The events of one answer. Dropping them cancels it.
pub type Answers = BoxStream<'static, Result<GenerateEvent, RequestError>>;

/// The events of this answer.
pub fn answers(answer: Answer) -> Answers {
    let next = |mut answer: Answer| async move {
        let event = answer.next().await?;
        Some((event, answer))
    };
    stream::unfold(answer, next).boxed()
}

fn follow(index: usize, answer: Answer) -> Events {
    stream::unfold(answer, move |mut answer| async move {
        let event = answer.next().await?;
        Some(((index, event), answer))
    })
    .boxed()
}
