//! Failures in the shape that Anthropic's clients read.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::super::error::HttpError;

/// The error of the request `id` as the body of an answer, or as an event. Statuses and codes are
/// those of all routes.
pub fn object(error: &HttpError, id: Option<&str>) -> Value {
    let body = &error.body;
    let param = body.param.as_deref().map(named);
    // Their objects have no place for the field, and their clients show the message alone.
    let message = match param {
        Some(param) if !body.message.contains(param) => format!("{param}: {}", body.message),
        // The schema of a tool has another name here.
        Some("tools") => body.message.replacen("].parameters", "].input_schema", 1),
        _ => body.message.clone(),
    };
    json!({
        "type": "error",
        "error": {
            "type": kind(error.status), "message": message, "param": param, "code": body.code,
        },
        "request_id": id,
    })
}

/// The name that a field has in a body of these routes.
fn named(param: &str) -> &str {
    if param == "stop" {
        return "stop_sequences";
    }
    param
}

/// Anthropic's class of a failure.
const fn kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 => "timeout_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        400..=498 => "invalid_request_error",
        _ => "api_error",
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_proto::error::{Reason, RequestError};

    use super::*;

    fn of(reason: Reason, field: &'static str) -> Value {
        let error = RequestError::new(reason, "text").in_field(field);
        object(&HttpError::from(error), Some("r"))
    }

    #[test]
    fn a_failure_has_the_class_of_its_status_and_names_the_field_that_was_sent() {
        let stop = of(Reason::BadStopping, "stopping.stop");
        let expected = json!({
            "type": "error",
            "error": {
                "type": "invalid_request_error", "message": "stop_sequences: text",
                "param": "stop_sequences", "code": "bad_stopping",
            },
            "request_id": "r",
        });
        assert_eq!(stop, expected);
        for (reason, kind) in [
            (Reason::UnknownModel, "not_found_error"),
            (Reason::SessionBusy, "invalid_request_error"),
            (Reason::QueueFull, "rate_limit_error"),
            (Reason::Draining, "overloaded_error"),
            (Reason::DeadlineInQueue, "timeout_error"),
            (Reason::GroupLost, "api_error"),
            (Reason::ClientGone, "api_error"),
            (Reason::Internal, "api_error"),
        ] {
            assert_eq!(of(reason, "text")["error"]["type"], kind, "{reason:?}");
        }
        for (status, kind) in [
            (401, "authentication_error"),
            (403, "permission_error"),
            (405, "invalid_request_error"),
            (408, "timeout_error"),
            (413, "request_too_large"),
            (415, "invalid_request_error"),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let error = HttpError::protocol(status, "code", "text");
            assert_eq!(object(&error, None)["error"]["type"], kind, "{status}");
        }
    }
}
