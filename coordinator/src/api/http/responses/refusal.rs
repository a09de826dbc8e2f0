//! What a client reads of a response that is refused.

use axum::http::StatusCode;

use super::super::error::{HttpError, shorten};
use crate::responses::Error;

/// A parameter of a query that nobody knows.
pub fn unknown_parameter(name: &str) -> HttpError {
    let name = shorten(name);
    HttpError::invalid(&name, format!("unknown parameter `{name}`"))
}

/// What a client reads whose request names a response in its path.
pub fn not_found(error: &Error, id: &str) -> HttpError {
    let mut refused = refused(error, None);
    if *error == Error::Unknown {
        refused.body.message = format!("there is no response `{}` here", shorten(id));
    }
    refused
}

/// What a client reads that named a response in its field `param`.
pub fn refused(error: &Error, param: Option<&'static str>) -> HttpError {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    let (status, code, advice) = match error {
        Error::Unknown if param.is_some() => (
            StatusCode::NOT_FOUND,
            "previous_response_not_found",
            ": send the whole conversation as input",
        ),
        Error::Unknown => (StatusCode::NOT_FOUND, "response_not_found", ""),
        Error::TooLong { .. } => (
            StatusCode::BAD_REQUEST,
            "too_long",
            ": begin a new conversation",
        ),
        Error::TooLarge { .. } => (
            StatusCode::BAD_REQUEST,
            "response_too_large",
            ": ask with `store: false`",
        ),
        Error::Damaged { .. } => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "response_damaged",
            ": begin a new conversation, and tell the operator",
        ),
        Error::Store(_) => (
            unavailable,
            "store_unavailable",
            ": try again later, or ask with `store: false`",
        ),
        Error::NotOurs | Error::Ended => (unavailable, "store_unavailable", ": try again later"),
    };
    // What a store says names keys and places, which are the operator's.
    let what = match error {
        Error::Store(_) => "the store of responses cannot be reached".to_owned(),
        other => other.to_string(),
    };
    let mut refused = HttpError::protocol(status, code, format!("{what}{advice}"));
    refused.body.param = param.map(str::to_owned);
    if status.is_server_error() {
        refused.body.kind = "server_error";
    }
    refused
}

/// The error with the names that fields have in a body of this page.
pub fn in_fields_of_responses(error: HttpError) -> HttpError {
    let name = match error.body.param.as_deref() {
        Some("max_tokens") => "max_output_tokens",
        Some("messages") => "input",
        Some("response_format") => return error.renamed("text.format"),
        Some("response_format.json_schema.schema") => return error.renamed("text.format.schema"),
        _ => return error,
    };
    error.in_field(name)
}
