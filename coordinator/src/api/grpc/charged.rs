//! Messages count against the budget as they come, before anything decodes them.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body as AnyBody, Bytes, to_bytes};
use futures::stream;
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::{ChatMessage, MessageDetails, Tool, ToolCall};
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;
use tonic::{Code, Status};

use super::elements::{
    CHAT, COMPLETIONS, ChatLists, GUIDE_TEXTS, List, STOP, TOKENIZE_CHAT, count,
};
use super::{kserve, tokenize};
use crate::budget::{BODY_WEIGHT, Budget, Charge, counted, held};
use crate::keys::Tenant;
use crate::metrics::Metrics;
use crate::request::{MAX_STOP_STRINGS, MAX_TOOLS, MESSAGE_BYTES};
use crate::service::{MAX_COMPLETIONS, Service as Coordinator};

/// Time for a message to come. What came of it holds its room meanwhile.
const MESSAGE_TIME: Duration = Duration::from_secs(60);
/// What stands before a message on the wire.
const FRAME_BYTES: usize = 5;
/// Bytes that elements of a conversation take while their list grows, beside their texts: three
/// times what stands in the list, and once what stands apart.
const ELEMENT_BYTES: usize = 3 * size_of::<ChatMessage>();
const DETAILS_BYTES: usize = size_of::<MessageDetails>();
const CALL_BYTES: usize = 3 * size_of::<ToolCall>();
const TOOL_BYTES: usize = 3 * size_of::<Tool>();
/// Texts of a guide: more of them pass the bytes that a guide may have, whatever they say.
const MAX_GUIDE_TEXTS: usize = palimpsest_guide::MAX_BYTES / size_of::<String>();

/// How many elements a list may have.
struct Bound {
    /// What they are.
    what: &'static str,
    field: &'static str,
    most: usize,
    reason: Reason,
}

const STOPS: Bound = Bound {
    what: "stop strings",
    field: "stopping.stop",
    most: MAX_STOP_STRINGS,
    reason: Reason::BadStopping,
};
const TEXTS: Bound = Bound {
    what: "texts of a choice",
    field: "guide.choice",
    most: MAX_GUIDE_TEXTS,
    reason: Reason::BadGuide,
};
const TOOLS: Bound = Bound {
    what: "tools",
    field: "chat.tools",
    most: MAX_TOOLS,
    reason: Reason::BadChat,
};
const SCORED: Bound = Bound {
    what: "completions",
    field: "completions",
    most: MAX_COMPLETIONS,
    reason: Reason::BadScore,
};

/// A service whose requests hold a [`Charge`] for their messages, in their extensions.
#[derive(Debug, Clone)]
pub(super) struct Charged<S> {
    inner: S,
    intake: Intake,
    service: Coordinator,
}

/// What messages go through before they are decoded.
#[derive(Debug, Clone)]
struct Intake {
    budget: Budget,
    /// Bytes of a message at most.
    limit: usize,
    metrics: Metrics,
    /// Whose message it is, where keys are asked for.
    tenant: Option<Arc<Tenant>>,
}

/// Which method a request is for, as far as its message and its answer are treated in a way of
/// their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tokenize,
    Score,
    Infer,
    Stream,
    Other,
}

impl Kind {
    fn of(path: &str) -> Self {
        match path {
            kserve::INFER => Self::Infer,
            kserve::STREAM_INFER => Self::Stream,
            _ if path.ends_with("/Tokenize") => Self::Tokenize,
            _ if path.ends_with("/Score") => Self::Score,
            _ => Self::Other,
        }
    }
}

impl<S> Charged<S> {
    /// Messages of `inner` count against the budget of `service`.
    pub(super) fn new(inner: S, service: &Coordinator) -> Self {
        let intake = Intake {
            budget: service.budget.clone(),
            limit: service.message_limit(),
            metrics: service.metrics.clone(),
            tenant: None,
        };
        let service = service.clone();
        Self {
            inner,
            intake,
            service,
        }
    }
}

impl<S: NamedService> NamedService for Charged<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Charged<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that was ready goes, and its copy stays.
        let copy = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, copy);
        let intake = Intake {
            tenant: request.extensions().get::<Arc<Tenant>>().cloned(),
            ..self.intake.clone()
        };
        let service = self.service.clone();
        Box::pin(async move {
            let kind = Kind::of(request.uri().path());
            if kind == Kind::Stream {
                let refuse = move |error| intake.refuse(error);
                return Ok(kserve::stream::answer(service, request, refuse).await);
            }
            let (mut parts, body) = request.into_parts();
            let charge = intake.budget.open();
            let read = intake.read(AnyBody::new(body), &charge).await;
            let checked = read.and_then(|bytes| {
                let lists = intake.check(&bytes, kind)?;
                charge.take(lists).map_err(|error| intake.refuse(error))?;
                Ok(bytes)
            });
            parts.extensions.insert(charge.clone());
            // The library answers with a status that it finds in a body.
            let body = AnyBody::from_stream(stream::iter([checked]));
            let request = Request::from_parts(parts, Body::new(body));
            let (response, charge) = match kind {
                Kind::Tokenize => (tokenize::answer(service, request).await, Some(charge)),
                // The request gives its room back when it is admitted.
                _ => {
                    drop(charge);
                    (inner.call(request).await?, None)
                }
            };
            // Other answers are short, or come piece by piece.
            if ![Kind::Tokenize, Kind::Score, Kind::Infer].contains(&kind) {
                return Ok(response);
            }
            Ok(response.map(|body| Body::new(held(AnyBody::new(body), charge))))
        })
    }
}

impl Intake {
    /// The bytes of a body, each of which is charged as it comes.
    async fn read(&self, body: AnyBody, charge: &Charge) -> Result<Bytes, Status> {
        let intake = self.clone();
        let refused = move |error| BoxError::from(intake.refuse(error));
        let body = counted(body, charge.clone(), refused);
        let most = self.limit.saturating_add(FRAME_BYTES);
        match timeout(MESSAGE_TIME, to_bytes(body, most)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => match Status::from_error(error.into_inner()) {
                status if status.code() == Code::Unknown => Err(Status::out_of_range(format!(
                    "the message is cut off or longer than {} bytes",
                    self.limit
                ))),
                status => Err(status),
            },
            Err(_) => Err(Status::deadline_exceeded(
                "the message did not come within 60 s",
            )),
        }
    }

    /// Refuses lists that would take much more than their bytes. Returns the bytes of a body that
    /// take as much as what the others are decoded into.
    fn check(&self, body: &[u8], kind: Kind) -> Result<usize, Status> {
        let elements = |list: &List| {
            let bad = || Status::invalid_argument("the message cannot be decoded");
            count(body, list).ok_or_else(bad)
        };
        match kind {
            Kind::Tokenize => return self.check_chat(TOKENIZE_CHAT.map(elements)),
            Kind::Other => {
                self.check_count(elements(STOP)?, &STOPS)?;
                self.check_count(elements(GUIDE_TEXTS)?, &TEXTS)?;
            }
            Kind::Score => self.check_count(elements(COMPLETIONS)?, &SCORED)?,
            Kind::Infer | Kind::Stream => return kserve::check_body(body).map(|()| 0),
        }
        self.check_chat(CHAT.map(elements))
    }

    /// Refuses a list of so many elements if they are too many.
    fn check_count(&self, count: usize, bound: &Bound) -> Result<(), Status> {
        let Bound {
            what,
            field,
            most,
            reason,
        } = *bound;
        if count <= most {
            return Ok(());
        }
        let message = format!("{count} {what}, over the limit of {most}");
        Err(self.refuse(RequestError::new(reason, message).in_field(field)))
    }

    /// The same of what a conversation has many of. Returns the bytes of a body that take as much.
    fn check_chat(&self, counts: ChatLists<Result<usize, Status>>) -> Result<usize, Status> {
        let (messages, tools) = (counts.messages?, counts.tools?);
        let most = self.limit / MESSAGE_BYTES;
        if messages > most {
            let message = format!(
                "{messages} messages, over the limit of {most}: send fewer, and longer ones"
            );
            let error = RequestError::new(Reason::TooLong, message);
            return Err(self.refuse(error.in_field("chat.messages")));
        }
        self.check_count(tools, &TOOLS)?;
        let taken = [
            (messages, ELEMENT_BYTES),
            (counts.details?, DETAILS_BYTES),
            (counts.calls?, CALL_BYTES),
            (tools, TOOL_BYTES),
        ];
        let taken = taken.map(|(count, bytes)| count.saturating_mul(bytes));
        let taken = taken.into_iter().fold(0, usize::saturating_add);
        Ok(taken.div_ceil(BODY_WEIGHT as usize))
    }

    /// Counts a refusal. The service counts those of requests that come to it.
    fn refuse(&self, error: RequestError) -> Status {
        let tenant = self.tenant.as_ref().map(|tenant| tenant.name());
        self.metrics.refused(tenant, error.reason.tag());
        error.into()
    }
}
