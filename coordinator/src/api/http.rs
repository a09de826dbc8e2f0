//! The HTTP API: OpenAI's chat and completions, models, health, metrics.
//!
//! | route | answer |
//! |---|---|
//! | `POST /v1/chat/completions` | OpenAI's objects, whole or as server-sent events |
//! | `POST /v1/completions` | the same, for a prompt without roles |
//! | `GET /v1/models`, `GET /v1/models/{name}` | the model that is served |
//! | `POST /tokenize` | token ids of a text or a conversation |
//! | `GET /health` | 200 while the process runs |
//! | `GET /readyz` | 200 while a group serves that has passed a first step |
//! | `GET /metrics` | Prometheus text |
//! | `GET /version` | version of this program |
//! | `GET /openapi.json` | all of this, for machines |
//!
//! Every answer names its request in `x-request-id`. Every failure has OpenAI's shape.

mod answers;
mod error;
mod generate;
mod limits;
mod origin;
mod server;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use palimpsest_proto::v1::TokenizeRequest;
use palimpsest_proto::v1::tokenize_request::Input;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use self::answers::Dialect;
pub use self::error::{ErrorBody, HttpError};
use self::generate::{Caller, answer};
pub use self::limits::HttpLimits;
pub use self::server::{serve, serve_probes, serve_waiting};
use self::wire::{ChatRequest, CompletionRequest, RequestBody, field_at_fault};
use crate::driver::Readiness;
use crate::ids::RequestId;
use crate::keys::Tenant;
use crate::service::Service;
use crate::trace;

/// The routes for machines; a test holds it against the types of `wire`, and a fuzzer against the
/// answers.
const OPENAPI: &str = include_str!("http/openapi.json");
/// What is read of a refused request, at most.
const DRAINED_BYTES: usize = 64 << 10;
const DRAIN_TIME: Duration = Duration::from_secs(1);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All routes over a service.
pub fn router(service: Service, limits: HttpLimits) -> Router {
    let api = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(one_model))
        .route("/tokenize", post(tokenize))
        .layer(middleware::from_fn_with_state(service.clone(), authorize))
        .layer(middleware::from_fn_with_state(
            service.clone(),
            refuse_pages,
        ));
    Router::new()
        .merge(api)
        .merge(probes())
        .route(
            "/version",
            get(|| async { Json(json!({"version": env!("CARGO_PKG_VERSION")})) }),
        )
        .route(
            "/openapi.json",
            get(|| async { ([(header::CONTENT_TYPE, "application/json")], OPENAPI) }),
        )
        .fallback(async |request: Request| {
            refuse(
                request,
                HttpError::protocol(StatusCode::NOT_FOUND, "not_found", "no such route"),
            )
            .await
        })
        .method_not_allowed_fallback(async |request: Request| {
            let message = "not with this method";
            refuse(
                request,
                HttpError::protocol(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "method_not_allowed",
                    message,
                ),
            )
            .await
        })
        .layer(middleware::from_fn(name_request))
        .with_state(App { service, limits })
}

/// What probes and scrapers ask.
fn probes() -> Router<App> {
    Router::new()
        .route("/health", get(|| async { "ok" }))
        .route("/readyz", get(ready))
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
    probes().fallback(nowhere).with_state(App {
        service,
        limits: HttpLimits::default(),
    })
}

/// The routes of a process that has no group yet.
fn waiting_router() -> Router {
    let starting = || async {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "waiting for a worker group",
        )
    };
    Router::new()
        .route("/health", get(|| async { "ok" }))
        .route("/readyz", get(starting))
        .fallback(|| async {
            let message = "no worker group is ready: try again later";
            HttpError::protocol(StatusCode::SERVICE_UNAVAILABLE, "no_ready_group", message)
        })
}

#[derive(Debug, Clone)]
struct App {
    service: Service,
    limits: HttpLimits,
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
        let allowed = &service.config.allowed_hosts;
        let checked = origin::check(request.method(), request.uri(), request.headers(), allowed);
        if let Err(error) = checked {
            return refuse(request, error).await;
        }
    }
    next.run(request).await
}

/// Asks for a key, where keys are.
async fn authorize(State(service): State<Service>, mut request: Request, next: Next) -> Response {
    if let Some(keys) = &service.config.keys {
        let given = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        match keys.bearer(given) {
            Ok(tenant) => {
                request.extensions_mut().insert(tenant);
            }
            Err(denied) => {
                let (status, code) = (StatusCode::UNAUTHORIZED, "invalid_api_key");
                let message = denied.message("`Authorization: Bearer KEY`");
                return refuse(request, HttpError::protocol(status, code, message)).await;
            }
        }
    }
    next.run(request).await
}

/// Refuses a request without a look at its body, which is read all the same where it is short:
/// HTTP/2 resets a stream whose request nobody read, and some clients report that instead of the
/// answer.
async fn refuse(request: Request, error: HttpError) -> Response {
    let body = request.into_body();
    if body.size_hint().lower() <= DRAINED_BYTES as u64 {
        // A body that turns out longer, or does not come, is left alone.
        let _ = timeout(DRAIN_TIME, to_bytes(body, DRAINED_BYTES)).await;
    }
    error.into_response()
}

async fn chat(State(app): State<App>, request: Request) -> Result<Response, HttpError> {
    let Called { caller, body } = read::<ChatRequest>(&app, request).await?;
    let stream = body.common.stream.unwrap_or(false);
    answer(&app.service, Dialect::Chat, caller, body.choices()?, stream).await
}

async fn completions(State(app): State<App>, request: Request) -> Result<Response, HttpError> {
    let Called { caller, body } = read::<CompletionRequest>(&app, request).await?;
    let stream = body.common.stream.unwrap_or(false);
    answer(
        &app.service,
        Dialect::Completion,
        caller,
        body.choices()?,
        stream,
    )
    .await
}

async fn models(State(app): State<App>) -> Json<serde_json::Value> {
    Json(json!({"object": "list", "data": [model_object(&app.service)]}))
}

async fn one_model(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<serde_json::Value>, HttpError> {
    if name == app.service.model.info.name {
        return Ok(Json(model_object(&app.service)));
    }
    let mut error = HttpError::protocol(
        StatusCode::NOT_FOUND,
        "model_not_found",
        format!("there is no model {name:?} here"),
    );
    error.body.param = Some("model".to_owned());
    Err(error)
}

/// OpenAI's fields, and what a request may ask of this model.
fn model_object(service: &Service) -> serde_json::Value {
    let model = service.describe();
    let kv = model.default_kv.unwrap_or_default();
    json!({
        "id": model.name, "object": "model", "created": 0, "owned_by": "palimpsest",
        "context_length": model.context_length, "kv_bytes_per_token": model.kv_bytes_per_token,
        "policies": model.policies, "memories": model.memories,
        "default_kv": {
            "budget": kv.budget, "policy": kv.policy, "memory": kv.memory,
            "head_budget": kv.head_budget,
        },
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenizeBody {
    #[serde(alias = "text")]
    prompt: Option<String>,
    messages: Option<Vec<TokenizeMessage>>,
}

impl RequestBody for TokenizeBody {
    const LEAST: &'static str = "{}";
}

#[derive(Deserialize)]
struct TokenizeMessage {
    role: String,
    content: String,
}

async fn tokenize(
    State(app): State<App>,
    request: Request,
) -> Result<Json<serde_json::Value>, HttpError> {
    let Called { body, .. } = read::<TokenizeBody>(&app, request).await?;
    let input = match (body.prompt, body.messages) {
        (Some(text), None) => Input::Text(text),
        (None, Some(messages)) => {
            let message = |m: TokenizeMessage| palimpsest_proto::v1::ChatMessage {
                role: m.role,
                content: m.content,
            };
            let messages = messages.into_iter().map(message).collect();
            Input::Chat(palimpsest_proto::v1::Chat {
                messages,
                answer_prefix: String::new(),
            })
        }
        _ => {
            return Err(HttpError::invalid(
                "prompt",
                "send either `prompt` or `messages`",
            ));
        }
    };
    let found = app
        .service
        .tokenize(TokenizeRequest { input: Some(input) })
        .await?;
    let most = app.service.describe().context_length;
    Ok(Json(json!({
        "tokens": found.ids, "token_strs": found.pieces, "count": found.ids.len(),
        "max_model_len": most,
    })))
}

async fn ready(State(app): State<App>) -> (StatusCode, &'static str) {
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

async fn metrics(State(app): State<App>) -> impl IntoResponse {
    const OPEN_METRICS: HeaderValue =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    (
        [(header::CONTENT_TYPE, OPEN_METRICS)],
        app.service.metrics.encode(),
    )
}

/// A request that was read.
struct Called<T> {
    caller: Caller,
    body: T,
}

/// Reads a request's caller and body.
async fn read<T: RequestBody>(app: &App, request: Request) -> Result<Called<T>, HttpError> {
    let caller = {
        let header = |name: HeaderName| {
            request
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let parent = trace::parent(header(HeaderName::from_static("traceparent")));
        Caller {
            id: header(REQUEST_ID).unwrap_or_default().to_owned(),
            parent,
            tenant: request.extensions().get::<Arc<Tenant>>().cloned(),
        }
    };
    let bytes = bytes(app, request.into_body()).await?;
    let body = serde_json::from_slice(&bytes).map_err(|error| {
        let field = field_at_fault::<T>(&bytes);
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
    })?;
    Ok(Called { caller, body })
}

/// What is wrong with well-formed JSON, in `field` where one alone is at fault. Only messages that
/// name fields and types are passed on: others quote values.
fn describe(error: &serde_json::Error, field: Option<&str>) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    let is_ours = text.starts_with("missing field `") || text.starts_with("duplicate field `");
    match field {
        _ if is_ours => text.to_owned(),
        Some(field) => format!("`{field}` has a value of the wrong type or range"),
        None => "a field has a value of the wrong type or range".to_owned(),
    }
}

async fn bytes(app: &App, body: Body) -> Result<axum::body::Bytes, HttpError> {
    let limit = app.service.config.max_message_bytes;
    let too_long = || {
        let message = format!("the body is cut off or longer than {limit} bytes");
        HttpError::protocol(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    // A client that announces too much and waits for leave (Expect: 100-continue) need not send it.
    if body.size_hint().lower() > limit as u64 {
        return Err(too_long());
    }
    match timeout(app.limits.body_time, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(too_long()),
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
