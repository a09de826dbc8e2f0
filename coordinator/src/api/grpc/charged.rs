//! Messages count against the budget as they come, before anything decodes them.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body as AnyBody, Bytes, to_bytes};
use futures::stream;
use palimpsest_proto::error::{Reason, RequestError};
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;
use tonic::{Code, Status};

use super::elements::{CHAT, List, STOP, TOKENIZE_CHAT, count};
use crate::budget::{BODY_WEIGHT, Budget, Charge, counted, held};
use crate::request::{MAX_STOP_STRINGS, MESSAGE_BYTES};

/// Time for a message to come. What came of it holds its room meanwhile.
const MESSAGE_TIME: Duration = Duration::from_secs(60);
/// What stands before a message on the wire.
const FRAME_BYTES: usize = 5;
/// Bytes that a message of a conversation takes while its list grows, beside its text: three times
/// two strings.
const ELEMENT_BYTES: u64 = 144;
/// A service whose requests hold a [`Charge`] for their messages, in their extensions.
#[derive(Debug, Clone)]
pub(super) struct Charged<S> {
    inner: S,
    budget: Budget,
    limit: usize,
}

impl<S> Charged<S> {
    /// Messages of `inner` have at most `limit` bytes.
    pub(super) fn new(inner: S, budget: Budget, limit: usize) -> Self {
        Self {
            inner,
            budget,
            limit,
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
        let (charge, limit) = (self.budget.open(), self.limit);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let is_tokenize = parts.uri.path().ends_with("/Tokenize");
            let chat = if is_tokenize { TOKENIZE_CHAT } else { CHAT };
            let stop = (!is_tokenize).then_some(STOP);
            let read = read(AnyBody::new(body), &charge, limit).await;
            let checked = read.and_then(|bytes| {
                check(&bytes, &charge, limit, chat, stop)?;
                Ok(bytes)
            });
            parts.extensions.insert(charge.clone());
            // The library answers with a status that it finds in a body.
            let body = AnyBody::from_stream(stream::iter([checked]));
            let request = Request::from_parts(parts, Body::new(body));
            if !is_tokenize {
                drop(charge);
                return inner.call(request).await;
            }
            let response = inner.call(request).await?;
            Ok(response.map(|body| Body::new(held(AnyBody::new(body), charge))))
        })
    }
}

/// The bytes of a body, each of which is charged as it comes.
async fn read(body: AnyBody, charge: &Charge, limit: usize) -> Result<Bytes, Status> {
    let body = counted(body, charge.clone(), |error| {
        BoxError::from(Status::from(error))
    });
    let too_long = || {
        Status::out_of_range(format!(
            "the message is cut off or longer than {limit} bytes"
        ))
    };
    match timeout(
        MESSAGE_TIME,
        to_bytes(body, limit.saturating_add(FRAME_BYTES)),
    )
    .await
    {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let status = Status::from_error(error.into_inner());
            Err(if status.code() == Code::Unknown {
                too_long()
            } else {
                status
            })
        }
        Err(_) => Err(Status::deadline_exceeded(
            "the message did not come within 60 s",
        )),
    }
}

/// Refuses lists that would take much more than their bytes, and charges what they take.
fn check(
    body: &[u8],
    charge: &Charge,
    limit: usize,
    chat: List,
    stop: Option<List>,
) -> Result<(), Status> {
    let bad = || Status::invalid_argument("the message cannot be decoded");
    let messages = count(body, chat).ok_or_else(bad)?;
    let stops = stop.map_or(Some(0), |list| count(body, list));
    let stops = stops.ok_or_else(bad)?;
    if stops > MAX_STOP_STRINGS {
        let message = format!("{stops} stop strings, over the limit of {MAX_STOP_STRINGS}");
        let error = RequestError::new(Reason::BadStopping, message);
        return Err(error.in_field("stopping.stop").into());
    }
    let most = limit / MESSAGE_BYTES;
    if messages > most {
        let message =
            format!("{messages} messages, over the limit of {most}: send fewer, and longer ones");
        let error = RequestError::new(Reason::TooLong, message);
        return Err(error.in_field("chat.messages").into());
    }
    let taken = (messages as u64 * ELEMENT_BYTES).div_ceil(BODY_WEIGHT);
    charge.take(taken as usize).map_err(Status::from)
}
