//! The model that is served, under each of its names.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use palimpsest_proto::v1::GetModelResponse;
use serde_json::{Value, json};

use super::error::{HttpError, shorten};
use crate::service::Service;

/// `GET /v1/models`.
pub async fn list(State(service): State<Service>) -> Json<Value> {
    let described = service.describe();
    let names = service.model.names();
    let data: Vec<Value> = names.map(|name| object(name, &described)).collect();
    Json(json!({"object": "list", "data": data}))
}

/// `GET /v1/models/{name}`.
///
/// # Errors
/// If no model is called so.
pub async fn one(
    State(service): State<Service>,
    Path(name): Path<String>,
) -> Result<Json<Value>, HttpError> {
    if service.model.names().any(|own| own == name) {
        return Ok(Json(object(&name, &service.describe())));
    }
    let mut error = HttpError::protocol(
        StatusCode::NOT_FOUND,
        "model_not_found",
        format!("there is no model {:?} here", shorten(&name)),
    );
    error.body.param = Some("model".to_owned());
    Err(error)
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
