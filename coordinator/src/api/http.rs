//! The HTTP API: OpenAI's chat and completions, Anthropic's messages, models, health, metrics.
//!
//! | route | answer |
//! |---|---|
//! | `POST /v1/chat/completions` | OpenAI's objects, whole or as server-sent events |
//! | `POST /v1/completions` | the same, for a prompt without roles |
//! | `POST /v1/embeddings` | pooled final states of texts |
//! | `POST /v1/score` | how likely completions are behind a prompt |
//! | `/v1/responses` and below | OpenAI's responses, which are kept |
//! | `POST /v1/messages` | Anthropic's objects, whole or as server-sent events |
//! | `POST /v1/messages/count_tokens` | how many tokens such a conversation has |
//! | `GET /v1/models`, `GET /v1/models/{name}` | the model that is served, by all its names |
//! | `/v1/sessions` and below, `/open_session`, `/close_session` | token logs that are kept |
//! | `POST /tokenize` | token ids of a text or a conversation |
//! | `GET /v1/group` | who computes, and whether it serves |
//! | `GET /console` and below | a page for people |
//! | `GET /health` | 200 while the process runs |
//! | `GET /readyz` | 200 while a group serves that has passed a first step |
//! | `GET /metrics` | Prometheus text |
//! | `GET /version` | version of this program |
//! | `GET /openapi.json` | all of this, for machines |
//!
//! Every answer names its request in `x-request-id`. Every failure has OpenAI's shape, or
//! Anthropic's on the routes of messages. `HEAD` is taken where `GET` is, and `OPTIONS` everywhere.

mod answers;
mod anthropic;
mod console;
mod embeddings;
mod error;
mod generate;
mod group;
mod headers;
mod limits;
mod models;
mod origin;
mod path;
mod responses;
mod score;
mod server;
mod sessions;
#[cfg(test)]
mod tests;
mod web;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::{FromRef, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt;
use futures::future::ready;
use palimpsest_proto::error::RequestError;
use palimpsest_proto::v1::TokenizeResponse;
use palimpsest_tls::Peer;
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, timeout};

use self::answers::Dialect;
pub use self::error::{ErrorBody, HttpError};
use self::generate::{Caller, answer};
use self::headers::{API_KEY, REQUEST_ID};
pub use self::limits::HttpLimits;
use self::origin::Trusted;
use self::path::Name;
pub use self::server::{serve, serve_probes, serve_waiting};
use self::sessions::SessionBody;
use self::wire::{
    AppendBody, ChatRequest, CloseSessionBody, CompletionRequest, CountBody, CreateSessionBody,
    EmbeddingBody, ForkBody, MessagesBody, OpenSessionBody, PARSE_SPEED, RequestBody, ResponseBody,
    ScoreBody, TokenizeAsked, TokenizeBody, Unreadable, read_body,
};
use crate::budget::{Charge, counted, held};
use crate::driver::Readiness;
use crate::ids::RequestId;
use crate::keys::{ApiKeys, Denied, Tenant};
use crate::origins::AllowedOrigins;
use crate::service::{Call, Service};
use crate::trace;

/// The routes for machines; a test holds it against the types of `wire`, and a fuzzer against the
/// answers.
const OPENAPI: &str = include_str!("http/openapi.json");
/// Characters of what is said of a body that cannot be read.
const MAX_SAID: usize = 300;
/// What is read of a refused request, at most.
const DRAINED_BYTES: usize = 64 << 10;
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// All routes over a service.
pub fn router(service: Service, limits: HttpLimits) -> Router {
    let api = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/score", post(score))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::one))
        .route("/v1/group", get(group::show))
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/tokenize", post(tokenize))
        .merge(response_routes())
        .merge(session_routes())
        .layer(middleware::from_fn_with_state(service.clone(), charge))
        .layer(middleware::from_fn_with_state(service.clone(), authorize))
        .layer(middleware::from_fn_with_state(
            service.clone(),
            refuse_pages,
        ));
    let console = match service.config.console {
        true => console::routes().layer(middleware::from_fn_with_state(
            service.clone(),
            refuse_pages,
        )),
        false => Router::new(),
    };
    let routes = Router::new()
        .merge(api)
        .merge(console)
        .merge(probes())
        .merge(documents())
        .fallback(async |request: Request| {
            refuse(
                request,
                HttpError::protocol(StatusCode::NOT_FOUND, "not_found", "no such route"),
            )
            .await
        })
        .method_not_allowed_fallback(other_method)
        .layer(middleware::from_fn(anthropic::in_their_shape))
        .layer(web::compression())
        .layer(middleware::from_fn(web::gathered));
    // Outside of all that refuses: pages are told why as others are.
    let routes = match web::cors(&service.config.cors) {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    routes
        .layer(middleware::from_fn(name_request))
        .with_state(App { service, limits })
}

/// Answers a method that a route does not have. The router adds those that it has.
async fn other_method(request: Request) -> Response {
    if request.method() == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    let (status, code) = (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed");
    let error = HttpError::protocol(status, code, "not with this method");
    refuse(request, error).await
}

/// Token logs that are kept, as resources and by SGLang's names.
fn session_routes() -> Router<App> {
    let one = get(sessions::show).delete(sessions::delete);
    Router::new()
        .route(
            "/v1/sessions",
            get(sessions::list).post(session::<CreateSessionBody>),
        )
        .route("/v1/sessions/{id}", one)
        .route("/v1/sessions/{id}/append", post(session::<AppendBody>))
        .route("/v1/sessions/{id}/fork", post(session::<ForkBody>))
        .route("/v1/sessions/{id}/suspend", post(sessions::suspend))
        .route("/v1/sessions/{id}/resume", post(sessions::resume))
        .route("/open_session", post(session::<OpenSessionBody>))
        .route("/close_session", post(session::<CloseSessionBody>))
}

/// Responses, and those that are kept.
fn response_routes() -> Router<App> {
    let one = get(responses::retrieve).delete(responses::delete);
    Router::new()
        .route("/v1/responses", post(response))
        .route("/v1/responses/{id}", one)
        .route(
            "/v1/responses/{id}/input_items",
            get(responses::input_items),
        )
        .route("/v1/responses/{id}/cancel", post(responses::cancel))
}

/// What probes and scrapers ask.
fn probes() -> Router<App> {
    Router::new()
        .route("/health", get(|| async { "ok" }))
        .route("/readyz", get(readiness))
        .route("/metrics", get(metrics))
}

/// The routes of a port that knows nobody.
fn probes_router(service: Service) -> Router {
    let nowhere = || async {
        HttpError::protocol(
            StatusCode::NOT_FOUND,
            "not_found",
            "no such route on this port",
        )
    };
    let named = middleware::from_fn(name_request);
    probes().fallback(nowhere).layer(named).with_state(App {
        service,
        limits: HttpLimits::default(),
    })
}

/// The routes of a process that has no group yet, which pages of `cors` may read as they do later.
fn waiting_router(cors: &AllowedOrigins) -> Router {
    let starting = || async {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "waiting for a worker group",
        )
    };
    let routes = Router::new()
        .route("/health", get(|| async { "ok" }))
        .route("/readyz", get(starting))
        .merge(documents())
        .fallback(async |request: Request| {
            let message = "no worker group is ready: try again later";
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let error = HttpError::protocol(status, "no_ready_group", message);
            refuse(request, error).await
        })
        .method_not_allowed_fallback(other_method)
        .layer(middleware::from_fn(anthropic::in_their_shape));
    // As around the routes of a group.
    let routes = match web::cors(cors) {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    routes.layer(middleware::from_fn(name_request))
}

/// What is the same whoever asks.
fn documents<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let version = || async { Json(json!({"version": env!("CARGO_PKG_VERSION")})) };
    let openapi = || async { ([(header::CONTENT_TYPE, "application/json")], OPENAPI) };
    Router::new()
        .route("/version", get(version))
        .route("/openapi.json", get(openapi))
}

#[derive(Debug, Clone)]
struct App {
    service: Service,
    limits: HttpLimits,
}

impl FromRef<App> for Service {
    fn from_ref(app: &App) -> Self {
        app.service.clone()
    }
}

/// Gives every request its id: the client's, if it can be one.
async fn name_request(mut request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let id = RequestId::parse(given).or_else(|| RequestId::parse(""));
    let value = id.and_then(|id| HeaderValue::from_str(id.as_str()).ok());
    if let Some(value) = &value {
        request.headers_mut().insert(REQUEST_ID, value.clone());
    }
    let mut response = next.run(request).await;
    if let Some(value) = value {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Refuses what pages in browsers ask without being asked to, where no keys are: no page knows one.
async fn refuse_pages(State(service): State<Service>, request: Request, next: Next) -> Response {
    if service.config.keys.is_none() {
        let trusted = Trusted {
            hosts: &service.config.allowed_hosts,
            origins: &service.config.cors,
        };
        let checked = origin::check(request.method(), request.uri(), request.headers(), trusted);
        if let Err(error) = checked {
            return refuse(request, error).await;
        }
    }
    next.run(request).await
}

/// Asks for a key, where keys are.
async fn authorize(State(service): State<Service>, mut request: Request, next: Next) -> Response {
    if let Some(keys) = &service.config.keys {
        match tenant(keys, request.headers()) {
            Ok(tenant) => {
                request.extensions_mut().insert(tenant);
            }
            Err(denied) => {
                let (status, code) = (StatusCode::UNAUTHORIZED, "invalid_api_key");
                let message = denied.message("`Authorization: Bearer KEY` or `X-Api-Key: KEY`");
                return refuse(request, HttpError::protocol(status, code, message)).await;
            }
        }
    }
    next.run(request).await
}

/// Whose key a request shows, in the header that all clients have for it or in Anthropic's.
fn tenant(keys: &ApiKeys, headers: &HeaderMap) -> Result<Arc<Tenant>, Denied> {
    let given = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    match (given(header::AUTHORIZATION), given(API_KEY)) {
        (None, Some(key)) => keys.tenant(key.trim()),
        (bearer, _) => keys.bearer(bearer),
    }
}

/// Counts the bytes of a body as they come, and lets the request hold their room.
async fn charge(State(service): State<Service>, request: Request, next: Next) -> Response {
    let charge = service.budget.open();
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(charge.clone());
    let tenant = parts.extensions.get::<Arc<Tenant>>().cloned();
    let body = counted(body, charge, move |error| {
        let tenant = tenant.as_ref().map(|tenant| tenant.name());
        service.metrics.refused(tenant, error.reason.tag());
        error.into()
    });
    next.run(Request::from_parts(parts, body)).await
}

/// Refuses a request without a look at its body, which is read all the same where it is short:
/// HTTP/2 resets a stream whose request nobody read, and some clients report that instead of the
/// answer.
async fn refuse(request: Request, error: HttpError) -> Response {
    let body = request.into_body();
    if body.size_hint().lower() <= DRAINED_BYTES as u64 {
        // A body that turns out longer, or does not come, is left alone. Nothing of it is kept.
        let mut left = DRAINED_BYTES;
        let drained = body.into_data_stream().take_while(|chunk| {
            left = left.saturating_sub(chunk.as_ref().map_or(left, Bytes::len));
            ready(left > 0)
        });
        let _ = timeout(DRAIN_TIME, drained.for_each(|_| ready(()))).await;
    }
    error.into_response()
}

async fn chat(State(app): State<App>, request: Request) -> Result<Response, HttpError> {
    let Called { caller, body } = read::<ChatRequest>(&app, request).await?;
    let stream = body.common.stream.unwrap_or(false);
    let choices = body.choices(app.service.config.strict)?;
    answer(&app.service, Dialect::Chat, caller, choices, stream).await
}

async fn completions(State(app): State<App>, request: Request) -> Result<Response, HttpError> {
    let Called { caller, body } = read::<CompletionRequest>(&app, request).await?;
    let stream = body.common.stream.unwrap_or(false);
    let choices = body.choices(app.service.config.strict)?;
    answer(&app.service, Dialect::Completion, caller, choices, stream).await
}

async fn embeddings(State(app): State<App>, request: Request) -> Result<Response, HttpError> {
    let Called { caller, body } = read::<EmbeddingBody>(&app, request).await?;
    embeddings::answer(&app.service, caller, body).await
}

async fn score(State(app): State<App>, request: Request) -> Result<Response, HttpError> {
    let Called { caller, body } = read::<ScoreBody>(&app, request).await?;
    score::answer(&app.service, caller, body).await
}

/// Answers a request about sessions that has a body.
async fn session<T: SessionBody>(
    State(app): State<App>,
    id: Option<Name>,
    request: Request,
) -> Result<Response, HttpError> {
    let Called { caller, body } = read::<T>(&app, request).await?;
    let id = id.map_or_else(String::new, |Name(id)| id);
    body.answer(&app.service, caller, id).await
}

async fn response(State(app): State<App>, request: Request) -> Result<Response, HttpError> {
    let Called { caller, body } = read::<ResponseBody>(&app, request).await?;
    responses::create(&app.service, caller, body).await
}

async fn messages(State(app): State<App>, request: Request) -> Result<Response, HttpError> {
    let Called { caller, body } = read::<MessagesBody>(&app, request).await?;
    anthropic::create(&app.service, caller, body).await
}

async fn count_tokens(State(app): State<App>, request: Request) -> Result<Response, HttpError> {
    let Called { caller, body } = read::<CountBody>(&app, request).await?;
    anthropic::count(&app.service, caller, body).await
}

async fn tokenize(State(app): State<App>, request: Request) -> Result<Response, HttpError> {
    let Called { caller, body } = read::<TokenizeBody>(&app, request).await?;
    let TokenizeAsked { model, request } = body.asked()?;
    app.service.model.check_name(&model)?;
    let max_model_len = app.service.model.info.context_length;
    let write = move |found: TokenizeResponse| {
        let answer = Tokenized {
            count: found.ids.len(),
            tokens: found.ids,
            token_strs: found.pieces,
            max_model_len,
        };
        serde_json::to_vec(&answer).expect("numbers and strings have a JSON form")
    };
    let call = caller.call;
    let json = app.service.tokenize_as(&call, request, write).await?;
    let body = held(Body::from(json), call.charge);
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Answer of `/tokenize`.
#[derive(Serialize)]
struct Tokenized {
    tokens: Vec<u32>,
    token_strs: Vec<String>,
    count: usize,
    max_model_len: u64,
}

async fn readiness(State(app): State<App>) -> (StatusCode, &'static str) {
    let readiness = *app.service.driver.readiness().borrow();
    match readiness {
        Readiness::Ready => (StatusCode::OK, "ready"),
        Readiness::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Readiness::Lost => (StatusCode::SERVICE_UNAVAILABLE, "the worker group is lost"),
        Readiness::Draining | Readiness::Ended => {
            (StatusCode::SERVICE_UNAVAILABLE, "shutting down")
        }
    }
}

/// Prometheus' text, in the older format where a client asks for plain text and not for the newer
/// one.
async fn metrics(State(app): State<App>, headers: HeaderMap) -> impl IntoResponse {
    const OPEN_METRICS: HeaderValue =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    let accepted = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    let accepts = |kind| accepted.is_some_and(|accepted| accepted.contains(kind));
    let metrics = &app.service.metrics;
    if accepts("text/plain") && !accepts("openmetrics-text") {
        ([(header::CONTENT_TYPE, PLAIN)], metrics.encode_plain())
    } else {
        ([(header::CONTENT_TYPE, OPEN_METRICS)], metrics.encode())
    }
}

/// A request that was read.
struct Called<T> {
    caller: Caller,
    body: T,
}

/// Reads a request's caller and body.
async fn read<T: RequestBody + Send + 'static>(
    app: &App,
    request: Request,
) -> Result<Called<T>, HttpError> {
    let (mut parts, body) = request.into_parts();
    let header = |name: HeaderName| {
        let value = parts.headers.get(name);
        value.and_then(|value| value.to_str().ok())
    };
    let parent = trace::parent(header(HeaderName::from_static("traceparent")));
    let id = header(REQUEST_ID).unwrap_or_default().to_owned();
    let announced = header(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    // Only this copy is left, which goes with the call.
    let charge = parts.extensions.remove::<Charge>();
    let bytes = bytes(app, announced, body).await?;
    let deadline = Instant::now() + app.service.config.request_limit;
    let weight = bytes.len() / PARSE_SPEED;
    let work = move || Ok(read_body::<T>(&bytes).map_err(invalid_body));
    let body = app.service.pool.run(weight, deadline, charge.clone(), work);
    let call = Call {
        parent,
        timeout: None,
        charge,
        tenant: parts.extensions.remove::<Arc<Tenant>>(),
        network: parts
            .extensions
            .remove::<Peer>()
            .and_then(|peer| peer.network()),
        ..Call::default()
    };
    Ok(Called {
        body: body.await??,
        caller: Caller { id, call },
    })
}

/// What a client reads of a body that cannot be read.
fn invalid_body(unreadable: Unreadable) -> HttpError {
    let Unreadable { error, field } = unreadable;
    // The text of serde's errors may quote the body; place and kind do not.
    let kind = match error.classify() {
        serde_json::error::Category::Data => describe(&error, field.as_deref()),
        serde_json::error::Category::Eof => "it ends too early".to_owned(),
        _ => "it is no JSON".to_owned(),
    };
    let message = format!(
        "the body cannot be read at line {}, column {}: {kind}",
        error.line(),
        error.column()
    );
    let mut refused = HttpError::protocol(StatusCode::BAD_REQUEST, "invalid_body", message);
    refused.body.param = field;
    refused
}

/// What is wrong with well-formed JSON, in `field` where one alone is at fault. Only messages that
/// name fields and types are passed on: others quote values.
fn describe(error: &serde_json::Error, field: Option<&str>) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    let ours = ["missing field `", "duplicate field `", "unknown field `"];
    let is_ours = ours.iter().any(|start| text.starts_with(start));
    match field {
        // A name may be as long as the body.
        _ if is_ours => text.chars().take(MAX_SAID).collect(),
        Some(field) => format!("`{field}` has a value of the wrong type or range"),
        None => "a field has a value of the wrong type or range".to_owned(),
    }
}

/// The bytes of a body, of which the client announced so many.
async fn bytes(app: &App, announced: Option<u64>, body: Body) -> Result<Bytes, HttpError> {
    let limit = app.service.message_limit();
    let too_long = || {
        let message = format!("the body is cut off or longer than {limit} bytes");
        HttpError::protocol(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    // A client that announces too much and waits for leave (Expect: 100-continue) need not send it.
    if announced.is_some_and(|bytes| bytes > limit as u64) {
        return Err(too_long());
    }
    match timeout(app.limits.body_time, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(refusal(&error).map_or_else(too_long, HttpError::from)),
        Err(_) => {
            let message = format!(
                "the body did not come within {} s",
                app.limits.body_time.as_secs()
            );
            Err(HttpError::protocol(
                StatusCode::REQUEST_TIMEOUT,
                "body_too_slow",
                message,
            ))
        }
    }
}

/// The refusal that ended a body, if it was one.
fn refusal(error: &axum::Error) -> Option<RequestError> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(refusal) = error.downcast_ref::<RequestError>() {
            return Some(refusal.clone());
        }
        cause = error.source();
    }
    None
}
