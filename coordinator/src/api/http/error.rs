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

/// By which names a body has the KV contract.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Named {
    /// It has an object `kv`; names of their own otherwise, such as `kv_budget`.
    pub has_kv: bool,
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

    /// The failure, with the name of the field at fault.
    #[must_use]
    pub fn in_field(mut self, name: &str) -> Self {
        self.body.param = Some(name.to_owned());
        self
    }

    /// The failure, whose field at fault the client knows as `name`.
    #[must_use]
    pub fn renamed(mut self, name: &str) -> Self {
        if let Some(known) = self.body.param.replace(name.to_owned()) {
            self.body.message = self.body.message.replacen(&known, name, 1);
        }
        self
    }

    /// A failure of a request, with the names that its client used.
    pub fn of(error: RequestError, named: Named) -> Self {
        let path = error
            .field
            .filter(|path| named.has_kv && path.starts_with("kv."));
        let Some(path) = path else {
            return error.into();
        };
        let message = error.message.clone();
        let mut http = Self::from(error);
        http.body.param = Some(path.to_owned());
        http.body.message = message;
        http
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
        let message = in_names_of_bodies(error.message, error.field);
        let (param, code) = match error.reason {
            // The one code that clients look for by name.
            Reason::UnknownModel => (Some("model"), "model_not_found"),
            reason => (error.field.map(param), reason.tag()),
        };
        let param = param.map(str::to_owned);
        Self {
            status,
            body: ErrorBody {
                message,
                kind,
                param,
                code,
            },
            retry_after: error.retry_after,
        }
    }
}

/// Parts of the contract that have names of their own in bodies.
const KV_NAMES: [&str; 3] = ["kv.budget", "kv.policy", "kv.memory"];

/// The name in a body of what stands under `path` in a `GenerateRequest`.
fn param(path: &str) -> &str {
    match path {
        "kv.budget" => "kv_budget",
        "kv.policy" => "kv_policy",
        "kv.memory" => "latent_memory",
        "guide" | "guide.json_object" => "response_format",
        "guide.json_schema" => "response_format.json_schema.schema",
        "guide.regex" => "structured_outputs.regex",
        "guide.choice" => "structured_outputs.choice",
        "guide.grammar" => "structured_outputs.grammar",
        "chat.template_kwargs" => "chat_template_kwargs",
        "chat.tool_name" => "tool_choice",
        "text" | "token_ids" => "prompt",
        _ if path.starts_with("kv.") => path,
        _ => path.rsplit('.').next().unwrap_or(path),
    }
}

/// A message about fields of a `GenerateRequest`, about those of a body.
fn in_names_of_bodies(message: String, field: Option<&'static str>) -> String {
    let field = field.filter(|path| path.contains('.') && !KV_NAMES.contains(path));
    let paths = KV_NAMES.into_iter().chain(field);
    paths.fold(message, |message, path| {
        // `kv.memory` is also how `kv.memory_slots` begins.
        let mut out = String::with_capacity(message.len());
        let mut rest = message.as_str();
        while let Some(at) = rest.find(path) {
            let (before, found) = rest.split_at(at);
            let (path, behind) = found.split_at(path.len());
            let goes_on = behind.starts_with(|c: char| c == '_' || c.is_ascii_alphanumeric());
            out.push_str(before);
            out.push_str(if goes_on { path } else { param(path) });
            rest = behind;
        }
        out.push_str(rest);
        out
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
            ("kv.memory_slots", "kv.memory_slots"),
            ("sampling.temperature", "temperature"),
            ("stopping.max_tokens", "max_tokens"),
            ("chat.tools", "tools"),
            ("chat.tool_name", "tool_choice"),
            ("text", "prompt"),
        ] {
            assert_eq!(param(path).as_deref(), Some(field));
        }
        let message = "kv.budget is 3 and kv.memory_slots 4: lower kv.memory";
        let error = || RequestError::new(Reason::BadContract, message).in_field("kv.budget");
        assert_eq!(
            HttpError::from(error()).body.message,
            "kv_budget is 3 and kv.memory_slots 4: lower latent_memory"
        );
        let sent_as_an_object = HttpError::of(error(), Named { has_kv: true }).body;
        assert_eq!(sent_as_an_object.message, message);
        assert_eq!(sent_as_an_object.param.as_deref(), Some("kv.budget"));
    }
}
