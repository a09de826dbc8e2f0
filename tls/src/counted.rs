//! Services that tell which requests are under way on their connections.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Frame, SizeHint};
use hyper::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use crate::{Peer, Requests, UnderWay};

/// Wraps services in [`Counted`]; for tonic's servers.
#[derive(Debug, Clone, Copy, Default)]
pub struct CountRequests;

impl<S> Layer<S> for CountRequests {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            requests: None,
        }
    }
}

/// A service that tells its connections which requests are under way.
#[derive(Debug, Clone)]
pub struct Counted<S> {
    inner: S,
    /// `None`: those of the [`Peer`] in each request's extensions.
    requests: Option<Requests>,
}

impl<S> Counted<S> {
    /// The service of one connection.
    pub fn new(inner: S, requests: Requests) -> Self {
        Self {
            inner,
            requests: Some(requests),
        }
    }
}

type Pinned<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<CountedBody<R>>;
    type Error = S::Error;
    type Future = Pinned<Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let of_peer = || request.extensions().get::<Peer>().map(Peer::requests);
        let under_way = self.requests.clone().or_else(of_peer);
        let under_way = under_way.map(|requests| requests.begin());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            // A peer whose window is closed does not even ask for the first part.
            if let Some(under_way) = &under_way {
                under_way.hold();
            }
            Ok(answer.map(|body| CountedBody { body, under_way }))
        })
    }
}

/// The body of an answer, whose end is the request's.
#[derive(Debug)]
pub struct CountedBody<B> {
    body: B,
    under_way: Option<UnderWay>,
}

impl<B: Body + Unpin> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        if let Some(under_way) = &self.under_way {
            under_way.ask();
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(_))) => {
                if let Some(under_way) = &self.under_way {
                    under_way.hold();
                }
            }
            Poll::Ready(_) => self.under_way = None,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
