//! Failures in the shape that OpenAI's clients read.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use palimpsest_proto::error::{Class, Reason, RequestError};
use serde::Serialize;

/// Seconds after which a full queue is worth another try.
const RETRY_AFTER: u64 = 1;

/// Characters of a name that an error repeats: a client's names may have any length.
const NAME_CHARACTERS: usize = 64;

/// The beginning of a name that a client chose, for errors.
pub fn shorten(name: &str) -> String {
    match name.char_indices().nth(NAME_CHARACTERS) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// A failure with its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpError {
    /// Status of the response.
    pub status: StatusCode,
    /// What the client reads.
    pub body: ErrorBody,
    /// When the same request may succeed, where that is known.
    pub retry_after: Option<Duration>,
}

/// The object under `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// What is wrong and what to do. No prompt text.
    pub message: String,
    /// OpenAI's class of the failure.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field at fault, where one is.
    pub param: Option<String>,
    /// Stable tag of the cause.
    pub code: &'static str,
}

impl HttpError {
    /// A request that is wrong in the field `param`.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        let body = ErrorBody {
            message: message.into(),
            kind: "invalid_request_error",
            param: Some(param.to_owned()),
            code: "invalid_value",
        };
        Self {
            status: StatusCode::BAD_REQUEST,
            body,
            retry_after: None,
        }
    }

    /// A failure of the protocol itself: route, method, body.
    pub fn protocol(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let body = ErrorBody {
            message: message.into(),
            kind: "invalid_request_error",
            param: None,
            code,
        };
        Self {
            status,
            body,
            retry_after: None,
        }
    }

    /// The object that goes over the wire.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "error": self.body })
    }
}

impl From<RequestError> for HttpError {
    fn from(error: RequestError) -> Self {
        let class = error.reason.class();
        let status =
            StatusCode::from_u16(class.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = match class {
            Class::InvalidRequest | Class::NotFound | Class::Conflict => "invalid_request_error",
            Class::CapacityExhausted => "rate_limit_error",
            _ => "server_error",
        };
        let (param, code) = match error.reason {
            // The one code that clients look for by name.
            Reason::UnknownModel => (Some("model".to_owned()), "model_not_found"),
            reason => (error.field.and_then(param).map(str::to_owned), reason.tag()),
        };
        Self {
            status,
            body: ErrorBody {
                message: error.message,
                kind,
                param,
                code,
            },
            retry_after: error.retry_after,
        }
    }
}

/// The name in a body of what stands under `path` in a `GenerateRequest`, where a body has it.
fn param(path: &str) -> Option<&str> {
    Some(match path {
        "kv.budget" => "kv_budget",
        "kv.policy" => "kv_policy",
        "kv.memory" => "latent_memory",
        _ if path.starts_with("kv.") => return None,
        _ => path.rsplit('.').next().unwrap_or(path),
    })
}

impl IntoResponse for HttpError {
    /// The response has the error among its extensions: some routes have another shape for it.
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        if matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            let exact = |pause: Duration| pause.as_millis().div_ceil(1000);
            let pause = self
                .retry_after
                .map(exact)
                .and_then(|pause| u64::try_from(pause).ok());
            let pause = pause.unwrap_or(RETRY_AFTER).max(1);
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, pause.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_repeats_the_beginning_of_a_name() {
        let (short, long) = ("é".repeat(64), "é".repeat(65));
        assert_eq!(shorten(&short), short);
        assert_eq!(shorten(&long), format!("{short}…"));
    }

    #[test]
    fn a_request_that_is_wrong_names_the_field_as_a_body_does() {
        let param = |path| {
            let error = RequestError::new(Reason::BadContract, "text").in_field(path);
            HttpError::from(error).body.param
        };
        for (path, field) in [
            ("kv.budget", "kv_budget"),
            ("kv.policy", "kv_policy"),
            ("kv.memory", "latent_memory"),
            ("sampling.temperature", "temperature"),
            ("stopping.max_tokens", "max_tokens"),
        ] {
            assert_eq!(param(path).as_deref(), Some(field));
        }
        // A body has no such field.
        assert_eq!(param("kv.memory_slots"), None);
    }
}
