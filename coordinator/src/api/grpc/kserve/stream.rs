//! `ModelStreamInfer`: requests on one stream, which may stay open as long as something is asked.
//!
//! Other messages are read as a whole before anything decodes them. The messages of a stream never
//! end as a whole, so each of them holds room of the budget for itself: a stream has a [`Slot`] for
//! the message that is coming.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::BoxError;
use axum::body::Body as AnyBody;
use bytes::{Buf, Bytes};
use futures::stream::{self, BoxStream, StreamExt};
use palimpsest_proto::error::RequestError;
use palimpsest_proto::inference::ModelStreamInferResponse;
use tokio::time::{Instant, timeout};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::codegen::{BoxFuture, http};
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstEncoder;

use super::super::call::call_of;
use super::answer::{failed, piece};
use super::request::{Asked, Form, read};
use crate::answer::Answer;
use crate::budget::{Budget, Charge};
use crate::service::{Call, Service};

/// Time for a message to come, and then some: it is looked at this often.
const MESSAGE_TIME: Duration = Duration::from_secs(60);
/// Looks at a stream on which nothing is asked before it ends.
const IDLE_LOOKS: usize = 10;

type Responses = BoxStream<'static, Result<ModelStreamInferResponse, Status>>;

/// Answers a stream. `refuse` counts a message that finds no room, and says so.
pub(in super::super) async fn answer(
    service: Service,
    request: http::Request<Body>,
    refuse: impl Fn(RequestError) -> Status + Send + 'static,
) -> http::Response<Body> {
    let limit = service.message_limit();
    let slot = Slot::new(&service.budget);
    let coming = slot.clone();
    let request = request.map(|body| {
        let chunks = AnyBody::new(body).into_data_stream().map(move |chunk| {
            let chunk = chunk?;
            coming.take(chunk.len()).map_err(&refuse)?;
            Ok::<_, BoxError>(chunk)
        });
        AnyBody::from_stream(chunks)
    });
    Grpc::new(Messages)
        .apply_max_message_size_config(Some(limit), None)
        .streaming(Infer { service, slot }, request)
        .await
}

/// What the message that is coming on a stream holds.
#[derive(Debug, Clone)]
struct Slot(Arc<Mutex<Coming>>);

#[derive(Debug)]
struct Coming {
    budget: Budget,
    charge: Charge,
    /// When its first bytes came.
    since: Option<Instant>,
}

impl Slot {
    fn new(budget: &Budget) -> Self {
        Self(Arc::new(Mutex::new(Coming {
            budget: budget.clone(),
            charge: budget.open(),
            since: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Coming> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for more bytes of the message.
    fn take(&self, bytes: usize) -> Result<(), RequestError> {
        let mut coming = self.lock();
        if bytes > 0 {
            coming.since.get_or_insert_with(Instant::now);
        }
        coming.charge.take(bytes)
    }

    /// The message is there: what it holds is its request's. Bytes of the next one may have come
    /// with its last ones; they are fewer than a connection holds anyway.
    fn come(&self) -> Charge {
        let mut coming = self.lock();
        coming.since = None;
        let next = coming.budget.open();
        std::mem::replace(&mut coming.charge, next)
    }

    /// Whether a part of a message has been there for longer than a message may take.
    fn is_late(&self) -> bool {
        let since = self.lock().since;
        since.is_some_and(|since| since.elapsed() >= MESSAGE_TIME)
    }
}

struct Infer {
    service: Service,
    slot: Slot,
}

impl StreamingService<Bytes> for Infer {
    type Response = ModelStreamInferResponse;
    type ResponseStream = Responses;
    type Future = BoxFuture<Response<Responses>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (service, slot) = (self.service.clone(), self.slot.clone());
        Box::pin(async move {
            let call = call_of(request.metadata(), request.extensions())?;
            let conversation = Conversation {
                service,
                slot,
                call,
                began: Instant::now(),
                messages: request.into_inner(),
                under_way: None,
                is_over: false,
            };
            let responses = stream::unfold(conversation, |mut conversation| async move {
                let response = conversation.next().await?;
                Some((response, conversation))
            });
            Ok(Response::new(responses.boxed()))
        })
    }
}

/// A stream: what is asked on it, and the answer to the last request.
struct Conversation {
    service: Service,
    slot: Slot,
    /// Whose it is. What a message holds is not its own.
    call: Call,
    began: Instant,
    messages: Streaming<Bytes>,
    under_way: Option<UnderWay>,
    is_over: bool,
}

struct UnderWay {
    answer: Answer,
    form: Form,
}

impl Conversation {
    /// What is sent next; `None` at the end.
    async fn next(&mut self) -> Option<Result<ModelStreamInferResponse, Status>> {
        loop {
            if let Some(piece) = self.go_on().await {
                return Some(Ok(piece));
            }
            if self.is_over {
                return None;
            }
            let message = match self.message().await {
                Ok(message) => message?,
                Err(status) => {
                    self.is_over = true;
                    return Some(Err(status));
                }
            };
            if let Err(refused) = self.begin(message).await {
                return Some(Ok(refused));
            }
        }
    }

    /// The next piece of the answer that is under way, if there is one.
    async fn go_on(&mut self) -> Option<ModelStreamInferResponse> {
        while let Some(UnderWay { answer, form }) = &mut self.under_way {
            match answer.next().await {
                Some(Ok(event)) => {
                    if let Some(piece) = event.event.and_then(|event| piece(event, form)) {
                        return Some(piece);
                    }
                }
                Some(Err(error)) => {
                    let failed = failed(&form.id, &error.into());
                    self.under_way = None;
                    return Some(failed);
                }
                None => self.under_way = None,
            }
        }
        None
    }

    /// The next message; `None` where no more come.
    async fn message(&mut self) -> Result<Option<Bytes>, Status> {
        for _ in 0..IDLE_LOOKS {
            if let Ok(message) = timeout(MESSAGE_TIME, self.messages.message()).await {
                return message;
            }
            if self.slot.is_late() {
                let message = "the message did not come within 60 s";
                return Err(Status::deadline_exceeded(message));
            }
        }
        Ok(None)
    }

    /// Starts what a message asks for, or says why not.
    async fn begin(&mut self, message: Bytes) -> Result<(), ModelStreamInferResponse> {
        let call = Call {
            parent: self.call.parent.clone(),
            // The deadline is that of the whole stream.
            timeout: self
                .call
                .timeout
                .map(|limit| limit.saturating_sub(self.began.elapsed())),
            charge: Some(self.slot.come()),
            tenant: self.call.tenant.clone(),
            network: self.call.network,
            ..Call::default()
        };
        // What cannot be read has no name.
        let Asked { request, form } = read(message).map_err(|status| failed("", &status))?;
        let started = self.service.generate_for(&call, request).await;
        let answer = started.map_err(|error| failed(&form.id, &error.into()))?;
        let form = form.of(&self.service);
        self.under_way = Some(UnderWay { answer, form });
        Ok(())
    }
}

/// Messages come as they are, so that their lists are counted before they are decoded.
struct Messages;

impl Codec for Messages {
    type Encode = ModelStreamInferResponse;
    type Decode = Bytes;
    type Encoder = ProstEncoder<ModelStreamInferResponse>;
    type Decoder = Verbatim;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Verbatim {
        Verbatim
    }
}

struct Verbatim;

impl Decoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = from.remaining();
        Ok(Some(from.copy_to_bytes(length)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::budget::BODY_WEIGHT;

    #[tokio::test(start_paused = true)]
    async fn a_message_holds_room_of_its_own_and_has_a_minute_to_come() {
        let budget = Budget::new(1000 * BODY_WEIGHT);
        let slot = Slot::new(&budget);
        slot.take(0).unwrap();
        advance(2 * MESSAGE_TIME).await;
        assert!(!slot.is_late(), "nothing of it has come");
        slot.take(300).unwrap();
        advance(MESSAGE_TIME / 2).await;
        slot.take(10).unwrap();
        assert!(!slot.is_late());
        advance(MESSAGE_TIME / 2).await;
        assert!(slot.is_late());
        let first = slot.come();
        slot.take(400).unwrap();
        assert!(!slot.is_late());
        assert_eq!(budget.held(), 710 * BODY_WEIGHT);
        // The first request was admitted, and the second does not come.
        drop(first);
        assert_eq!(budget.held(), 400 * BODY_WEIGHT);
        assert!(slot.take(601).is_err());
        drop(slot);
        assert_eq!(budget.held(), 0);
    }
}
