//! Connections: bounded in number, in time and in size.

use std::{future::Future, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

use super::{router, waiting_router};
use crate::service::Service;

/// What a client may take of this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Connections at once; more wait to be accepted.
    pub connections: usize,
    /// Time for the headers of a request to come.
    pub header_time: Duration,
    /// Time for the body of a request to come.
    pub body_time: Duration,
    /// Bytes of the headers of a request.
    pub header_bytes: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 4096,
            header_time: Duration::from_secs(10),
            body_time: Duration::from_secs(60),
            header_bytes: 64 << 10,
        }
    }
}

/// Time that open connections have to close when everything is answered.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// Pause after a failure to accept, which mostly means that the system is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves HTTP/1.1 and HTTP/2 without TLS until `shutdown`, then drains the engine and closes the connections.
pub async fn serve(
    service: Service,
    listener: TcpListener,
    limits: HttpLimits,
    shutdown: impl Future<Output = ()> + Send,
) {
    let open = accept(&router(service.clone(), limits), &listener, limits, shutdown).await;
    drop(listener);
    service.engine.drain().await;
    // Streams have ended by now; a reader that takes nothing does not hold the process up.
    let _ = timeout(CLOSE_LIMIT, open.shutdown()).await;
}

/// Answers probes until `ready`, for a process that has no group yet: it lives, and nobody is served.
pub async fn serve_waiting(listener: &TcpListener, ready: impl Future<Output = ()> + Send) {
    let open = accept(&waiting_router(), listener, HttpLimits::default(), ready).await;
    let _ = timeout(CLOSE_LIMIT, open.shutdown()).await;
}

/// Takes connections until `shutdown` and returns those that are open.
async fn accept(
    app: &Router,
    listener: &TcpListener,
    limits: HttpLimits,
    shutdown: impl Future<Output = ()> + Send,
) -> GracefulShutdown {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_time).max_buf_size(limits.header_bytes);
    builder.http2().timer(TokioTimer::new()).max_header_list_size(limits.header_bytes as u32);
    builder.http2().keep_alive_interval(Some(Duration::from_secs(30)));
    let places = Arc::new(Semaphore::new(limits.connections));
    let open = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { break };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "no connection can be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = &mut shutdown => break,
        };
        // Tokens are small and must not wait for one another in the socket.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(app.clone());
        let connection = open.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
        tokio::spawn(async move {
            // What goes wrong with one connection is the client's affair.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
    open
}
