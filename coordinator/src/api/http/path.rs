//! What stands in the address of a request.

use axum::extract::{FromRequestParts, OptionalFromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::request::Parts;

use super::error::HttpError;

/// The name that a route has a place for. One that cannot be read is refused as other faults are:
/// the library's own refusals are plain text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpError> {
        let name = <Path<String> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        name.map(|Path(name)| Self(name)).map_err(|_| unreadable())
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Name {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>, HttpError> {
        let name = <Path<String> as OptionalFromRequestParts<S>>::from_request_parts(parts, state);
        let name = name.await.map_err(|_| unreadable())?;
        Ok(name.map(|Path(name)| Self(name)))
    }
}

fn unreadable() -> HttpError {
    let message = "the address has a name that is no UTF-8: see its %-escapes";
    HttpError::protocol(StatusCode::BAD_REQUEST, "invalid_path", message)
}
