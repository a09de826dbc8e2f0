//! The model that is served, under each of its names.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use palimpsest_proto::v1::GetModelResponse;
use serde_json::{Value, json};

use super::error::{HttpError, shorten};
use super::headers::ANTHROPIC_VERSION;
use super::path::Name;
use crate::service::Service;

/// `GET /v1/models`.
pub async fn list(State(service): State<Service>, headers: HeaderMap) -> Json<Value> {
    let described = service.describe();
    let names: Vec<&str> = service.model.names().collect();
    let object = shape(&headers);
    let data: Vec<Value> = names.iter().map(|name| object(name, &described)).collect();
    Json(json!({
        "object": "list", "data": data, "has_more": false, "first_id": names.first(),
        "last_id": names.last(),
    }))
}

/// `GET /v1/models/{name}`.
///
/// # Errors
/// If no model is called so.
pub async fn one(
    State(service): State<Service>,
    Name(name): Name,
    headers: HeaderMap,
) -> Result<Json<Value>, HttpError> {
    if service.model.names().any(|own| own == name) {
        return Ok(Json(shape(&headers)(&name, &service.describe())));
    }
    let mut error = HttpError::protocol(
        StatusCode::NOT_FOUND,
        "model_not_found",
        format!("there is no model {:?} here", shorten(&name)),
    );
    error.body.param = Some("model".to_owned());
    Err(error)
}

/// The object of a model that its client reads.
fn shape(headers: &HeaderMap) -> fn(&str, &GetModelResponse) -> Value {
    if headers.contains_key(ANTHROPIC_VERSION) {
        anthropic_object
    } else {
        object
    }
}

/// Anthropic's fields. Nobody knows when a model was made.
fn anthropic_object(name: &str, model: &GetModelResponse) -> Value {
    json!({
        "type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active", "max_input_tokens": model.context_length, "max_tokens": null,
    })
}

/// OpenAI's fields, and what a request may ask of this model.
fn object(name: &str, model: &GetModelResponse) -> Value {
    let kv = model.default_kv.clone().unwrap_or_default();
    json!({
        "id": name, "object": "model", "created": 0, "owned_by": "palimpsest",
        "context_length": model.context_length, "kv_bytes_per_token": model.kv_bytes_per_token,
        "policies": model.policies, "memories": model.memories,
        "default_kv": {
            "budget": kv.budget, "policy": kv.policy, "memory": kv.memory,
            "head_budget": kv.head_budget,
        },
    })
}
