//! Connections: what each may hold. [`Incoming`] bounds their number, and their time where no
//! request is under way.

use std::future::Future;
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use palimpsest_tls::{Counted, Incoming};
use tokio::time::timeout;
use tonic::transport::server::Connected;
use tower_layer::Layer;

use super::limits::HttpLimits;
use super::{probes_router, router, waiting_router};
use crate::api::http2;
use crate::origins::AllowedOrigins;
use crate::service::Service;

/// Time that open connections have to close when everything is answered.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Serves HTTP/1.1 and HTTP/2 until `shutdown`, then drains the driver and closes the connections.
pub async fn serve(
    service: Service,
    incoming: Incoming,
    limits: HttpLimits,
    shutdown: impl Future<Output = ()> + Send,
) {
    let app = router(service.clone(), limits);
    let mut incoming = incoming.counting_requests();
    let open = accept(&app, &mut incoming, limits, shutdown).await;
    drop(incoming);
    service.driver.drain().await;
    // Streams have ended by now; a reader that takes nothing does not hold the process up.
    let _ = timeout(CLOSE_LIMIT, open.shutdown()).await;
}

/// Answers probes and metrics until `shutdown` and the end of the drain.
pub async fn serve_probes(
    service: Service,
    incoming: Incoming,
    shutdown: impl Future<Output = ()> + Send,
) {
    let app = probes_router(service.clone());
    let mut incoming = incoming.counting_requests();
    let ended = async {
        shutdown.await;
        service.driver.drain().await;
    };
    let open = accept(&app, &mut incoming, HttpLimits::default(), ended).await;
    let _ = timeout(CLOSE_LIMIT, open.shutdown()).await;
}

/// Answers probes until `ready`, for a process that has no group yet: it lives, and nobody is
/// served. Pages of the origins in `cors` may read what it says.
pub async fn serve_waiting(
    incoming: &mut Incoming,
    cors: &AllowedOrigins,
    ready: impl Future<Output = ()> + Send,
) {
    let app = waiting_router(cors);
    let open = accept(&app, incoming, HttpLimits::default(), ready).await;
    let _ = timeout(CLOSE_LIMIT, open.shutdown()).await;
}

/// Takes connections until `shutdown` and returns those that are open.
async fn accept(
    app: &Router,
    incoming: &mut Incoming,
    limits: HttpLimits,
    shutdown: impl Future<Output = ()> + Send,
) -> GracefulShutdown {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        // Its time would count a connection at rest as a head that does not come.
        .header_read_timeout(None)
        .max_buf_size(limits.header_bytes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(limits.header_bytes as u32)
        .max_concurrent_streams(http2::STREAMS)
        .max_pending_accept_reset_streams(http2::PENDING_RESETS)
        .max_local_error_reset_streams(http2::OWN_RESETS)
        .initial_stream_window_size(http2::STREAM_WINDOW)
        .initial_connection_window_size(http2::CONNECTION_WINDOW)
        .max_send_buf_size(http2::SEND_BUFFER)
        .keep_alive_interval(Some(http2::PING_PAUSE))
        .keep_alive_timeout(http2::PING_TIME);
    let open = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let stream = tokio::select! {
            stream = incoming.accept() => stream,
            () = &mut shutdown => break,
        };
        let named = Extension(stream.connect_info()).layer(app.clone());
        let service = TowerToHyperService::new(Counted::new(named, stream.requests()));
        let connection = open.watch(
            builder
                .serve_connection(TokioIo::new(stream), service)
                .into_owned(),
        );
        tokio::spawn(async move {
            // What goes wrong with one connection is the client's affair.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
    open
}
