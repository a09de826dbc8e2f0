//! The gRPC API: `palimpsest.v1.Inference`, `palimpsest.v1.Sessions`, KServe's protocol, health and
//! reflection.

mod call;
mod charged;
mod elements;
pub mod kserve;
mod sessions;
mod timeout;
mod tokenize;

use std::future::Future;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use palimpsest_proto::DESCRIPTORS;
use palimpsest_proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use palimpsest_proto::v1::inference_server::{Inference, InferenceServer};
use palimpsest_proto::v1::sessions_server::SessionsServer;
use palimpsest_proto::v1::{
    GenerateEvent, GenerateRequest, GetModelRequest, GetModelResponse, ScoreRequest, ScoreResponse,
    TokenizeRequest, TokenizeResponse,
};
use palimpsest_tls::{CountRequests, Incoming};
use tokio::sync::watch;
use tonic::service::interceptor::{InterceptedService, Interceptor};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

pub use self::call::REQUEST_ID_KEY;
use self::call::call_of;
use self::charged::Charged;
use self::kserve::KserveApi;
use self::sessions::SessionsApi;
use crate::api::http2;
use crate::driver::Readiness;
use crate::keys::ApiKeys;
use crate::service::Service;

/// Name of the public service, for health checks.
pub const SERVICE_NAME: &str = "palimpsest.v1.Inference";
/// Name of the service of sessions, for health checks.
pub const SESSIONS_NAME: &str = "palimpsest.v1.Sessions";
/// Bytes of a question about health or descriptors, which names one of them. It needs no key, and
/// the budget does not count it.
const QUESTION_BYTES: usize = 1024;
/// Time that open connections have to close when everything is answered.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// The generated service over [`Service`].
#[derive(Debug, Clone)]
pub struct GrpcApi(Service);

#[tonic::async_trait]
impl Inference for GrpcApi {
    type GenerateStream = BoxStream<'static, Result<GenerateEvent, Status>>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let call = call_of(request.metadata(), request.extensions())?;
        let (_, extensions, request) = request.into_parts();
        // The other copy of the charge: from here on it ends with the call.
        drop(extensions);
        let answer = self.0.generate_for(&call, request).await?;
        drop(call);
        let id = answer
            .request_id()
            .as_str()
            .parse()
            .map_err(|_| Status::internal("request ids are ASCII"))?;
        // No task and no buffer in between: the connection polls the answer, so its flow control
        // reaches the ring.
        let events = stream::unfold(answer, |mut answer| async move {
            let event = answer.next().await?;
            Some((event.map_err(Status::from), answer))
        });
        let mut response = Response::new(events.boxed());
        response.metadata_mut().insert(REQUEST_ID_KEY, id);
        Ok(response)
    }

    async fn score(
        &self,
        request: Request<ScoreRequest>,
    ) -> Result<Response<ScoreResponse>, Status> {
        let call = call_of(request.metadata(), request.extensions())?;
        // Completions wait here until their turn comes: the charge goes with the call.
        let scored = self.0.score(&call, request.into_inner()).await?;
        let id = scored
            .request_id
            .parse()
            .map_err(|_| Status::internal("request ids are ASCII"))?;
        let mut response = Response::new(scored);
        response.metadata_mut().insert(REQUEST_ID_KEY, id);
        Ok(response)
    }

    async fn tokenize(
        &self,
        _: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        // `Charged` stands before this service, and answers with an encoded message.
        Err(Status::internal("Tokenize is answered elsewhere"))
    }

    async fn get_model(
        &self,
        _: Request<GetModelRequest>,
    ) -> Result<Response<GetModelResponse>, Status> {
        Ok(Response::new(self.0.describe()))
    }
}

/// Serves until `shutdown`, then drains the driver, closes the connections and returns.
///
/// # Errors
/// If the transport fails.
pub async fn serve(
    service: Service,
    incoming: Incoming,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    report(&reporter, Readiness::Starting).await;
    let follow = tokio::spawn(follow(reporter, service.driver.readiness()));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(SERVICE_NAME)
            .with_service_name(SESSIONS_NAME)
            .with_service_name(kserve::SERVICE_NAME)
            .with_service_name("grpc.health.v1.Health")
    };
    let built = "the descriptors were built with this program";
    let limit = service.message_limit();
    let api = InferenceServer::new(GrpcApi(service.clone())).max_decoding_message_size(limit);
    let sessions = SessionsServer::new(SessionsApi(service.clone()));
    let sessions = sessions.max_decoding_message_size(limit);
    let kserve = GrpcInferenceServiceServer::new(KserveApi(service.clone()));
    let kserve = kserve.max_decoding_message_size(limit);
    let (drained, closing) = watch::channel(false);
    let (v1, v1alpha) = (reflection().build_v1(), reflection().build_v1alpha());
    let router = bounded()
        .layer(CountRequests)
        .add_service(guarded(api, &service))
        .add_service(guarded(sessions, &service))
        .add_service(guarded(kserve, &service))
        .add_service(health.max_decoding_message_size(QUESTION_BYTES))
        .add_service(v1.expect(built).max_decoding_message_size(QUESTION_BYTES))
        .add_service(
            v1alpha
                .expect(built)
                .max_decoding_message_size(QUESTION_BYTES),
        );
    let driver = service.driver.clone();
    let end = async move {
        shutdown.await;
        tracing::info!("draining");
        driver.drain().await;
        drained.send_replace(true);
    };
    let incoming = incoming.counting_requests().into_stream();
    let served = router.serve_with_incoming_shutdown(incoming, end);
    let limited = async {
        let mut closing = closing;
        let _ = closing.wait_for(|drained| *drained).await;
        // A health watch never ends by itself, and a slow reader may never take its last events.
        tokio::time::sleep(CLOSE_LIMIT).await;
    };
    let result = tokio::select! {
        result = served => result,
        () = limited => Ok(()),
    };
    follow.abort();
    result
}

/// A server whose connections may hold as much as those of HTTP.
fn bounded() -> Server {
    Server::builder()
        .max_concurrent_streams(http2::STREAMS)
        .http2_max_pending_accept_reset_streams(Some(http2::PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(http2::OWN_RESETS))
        .http2_max_header_list_size(http2::HEADER_BYTES)
        .initial_stream_window_size(http2::STREAM_WINDOW)
        .initial_connection_window_size(http2::CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(http2::PING_PAUSE))
        .http2_keepalive_timeout(Some(http2::PING_TIME))
}

/// A service whose messages count against the budget, and which asks for a key.
fn guarded<S: Clone>(
    api: S,
    service: &Service,
) -> InterceptedService<Charged<S>, impl Interceptor + Clone + use<S>> {
    let keys = service.config.keys.clone();
    let guard = move |request: Request<()>| authorize(keys.as_deref(), request);
    InterceptedService::new(Charged::new(api, service), guard)
}

/// Asks for a key, where keys are. Health and reflection need none: probes have none.
fn authorize(keys: Option<&ApiKeys>, mut request: Request<()>) -> Result<Request<()>, Status> {
    let Some(keys) = keys else {
        return Ok(request);
    };
    let given = request
        .metadata()
        .get("authorization")
        .and_then(|value| value.to_str().ok());
    let tenant = keys.bearer(given).map_err(|denied| {
        Status::unauthenticated(denied.message("the metadata `authorization: Bearer KEY`"))
    })?;
    request.extensions_mut().insert(tenant);
    Ok(request)
}

async fn follow(reporter: HealthReporter, mut readiness: watch::Receiver<Readiness>) {
    loop {
        let now = *readiness.borrow_and_update();
        report(&reporter, now).await;
        if readiness.changed().await.is_err() {
            report(&reporter, Readiness::Ended).await;
            return;
        }
    }
}

async fn report(reporter: &HealthReporter, readiness: Readiness) {
    let status = if readiness == Readiness::Ready {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    for name in ["", SERVICE_NAME, SESSIONS_NAME, kserve::SERVICE_NAME] {
        reporter.set_service_status(name, status).await;
    }
}
