//! What browsers and their proxies ask of every route: leave for pages of other sites, and shorter
//! answers.

use std::time::Duration;

use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::{Method, Response as HttpResponse, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use palimpsest_proto::error::{Reason, RequestError};
use tower_http::compression::predicate::Predicate;
use tower_http::compression::{CompressionLayer, CompressionLevel};
use tower_http::cors::{AllowHeaders, AllowOrigin, AllowPrivateNetwork, CorsLayer};

use super::error::HttpError;
use super::headers::{ANTHROPIC_REQUEST_ID, REQUEST_ID};
use crate::budget::held;
use crate::origins::AllowedOrigins;

/// Time for which a browser remembers what a page may ask.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Bytes of an answer below which compression saves nothing.
const LEAST_COMPRESSED: u64 = 1024;
/// Bytes of an answer that are compressed in one go: a few milliseconds of a thread that others
/// wait for.
const MOST_COMPRESSED: u64 = 256 << 10;

/// What tells browsers that pages of `allowed` may ask and read the answers. `None` where no page
/// may: then browsers hear nothing of it.
///
/// A key is not asked of the question that a browser asks first, which cannot have one, and it is
/// asked of every request that follows. No cookies are taken.
pub fn cors(allowed: &AllowedOrigins) -> Option<CorsLayer> {
    if allowed.is_empty() {
        return None;
    }
    let allowed = allowed.clone();
    let origins = AllowOrigin::predicate(move |origin, _| allowed.allow(origin));
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
        // Clients have headers of their own, which mean nothing here.
        .allow_headers(AllowHeaders::mirror_request())
        .allow_private_network(AllowPrivateNetwork::yes())
        .expose_headers([REQUEST_ID, ANTHROPIC_REQUEST_ID, header::RETRY_AFTER])
        .max_age(REMEMBERED);
    Some(layer)
}

/// Answers that are compressed where the client takes gzip: those that stand in memory whole, and
/// are neither short nor long. Streams of events are not: they would wait for each other.
#[derive(Debug, Clone, Copy)]
pub struct Whole;

impl Predicate for Whole {
    fn should_compress<B: HttpBody>(&self, response: &HttpResponse<B>) -> bool {
        let size = response.body().size_hint().exact();
        size.is_some_and(|size| (LEAST_COMPRESSED..=MOST_COMPRESSED).contains(&size))
    }
}

/// Compresses what is [`Whole`].
pub fn compression() -> CompressionLayer<Whole> {
    CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        .compress_when(Whole)
}

/// Ends the compression of an answer before its client reads it: a compressor takes 300 KB, and
/// answers that nobody reads may be many.
pub async fn gathered(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if !response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let (parts, body) = response.into_parts();
    match to_bytes(body, 2 * MOST_COMPRESSED as usize).await {
        Ok(bytes) => Response::from_parts(parts, held(Body::from(bytes), None)),
        Err(_) => {
            let message = "the answer could not be compressed: ask without accept-encoding";
            HttpError::from(RequestError::new(Reason::Internal, message)).into_response()
        }
    }
}
