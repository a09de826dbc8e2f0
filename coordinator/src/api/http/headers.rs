//! Names of headers beyond those of HTTP.

use axum::http::HeaderName;

/// Names a request in every answer to it.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The same, where Anthropic's clients look for it.
pub(super) const ANTHROPIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
/// What Anthropic's clients send with every request, and no others.
pub(super) const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");
/// Where Anthropic's clients have their key.
pub(super) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
