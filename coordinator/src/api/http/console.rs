//! The console: a page for people, of files that stand in this program.
//!
//! The files hold nothing of this server, so they ask for no key. What the page asks of the API it
//! asks with the key that its reader enters, as any client does. It loads nothing from elsewhere
//! and may not be shown inside another page: [`POLICY`] holds browsers to that.

use axum::Router;
use axum::extract::Path;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::error::HttpError;

/// What the page may load, ask and be part of: its own origin's, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of the page.
pub(super) struct File {
    pub(super) name: &'static str,
    kind: &'static str,
    pub(super) text: &'static str,
}

macro_rules! file {
    ($name:literal, $kind:expr) => {
        file!($name, $kind, concat!("console/", $name))
    };
    ($name:literal, $kind:expr, $path:expr) => {
        File {
            name: $name,
            kind: $kind,
            text: include_str!($path),
        }
    };
}

pub(super) static PAGE: File = file!("index.html", "text/html; charset=utf-8");
/// What the page loads.
pub(super) static FILES: [File; 14] = [
    file!("console.css", "text/css; charset=utf-8"),
    file!("icon.svg", "image/svg+xml"),
    // A long text to try it with; its licence lets it be copied as it is.
    file!(
        "example.txt",
        "text/plain; charset=utf-8",
        "../../../../assets/gpl-3.0.txt"
    ),
    file!("api.js", SCRIPT),
    file!("app.js", SCRIPT),
    file!("chat.js", SCRIPT),
    file!("document.js", SCRIPT),
    file!("figures.js", SCRIPT),
    file!("key.js", SCRIPT),
    file!("map.js", SCRIPT),
    file!("memory.js", SCRIPT),
    file!("page.js", SCRIPT),
    file!("service.js", SCRIPT),
    file!("sessions.js", SCRIPT),
];

/// The routes of the page.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/console", get(page))
        .route("/console/", get(|| async { moved("../console") }))
        .route("/console/{file}", get(file))
}

/// The page itself. An address with a query is answered with the address without it, which takes
/// its place in the browser's history: somebody may have put a key there.
async fn page(uri: Uri) -> Response {
    match uri.query() {
        None => whole(&PAGE),
        Some(_) => moved("console#address-cleaned"),
    }
}

async fn file(Path(name): Path<String>) -> Result<Response, HttpError> {
    let found = FILES.iter().find(|file| file.name == name);
    found.map(whole).ok_or_else(|| {
        HttpError::protocol(
            StatusCode::NOT_FOUND,
            "not_found",
            "the console has no such file",
        )
    })
}

fn whole(file: &File) -> Response {
    let headers = [
        (CONTENT_TYPE, file.kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        // The next version of the program has other files under these names.
        (CACHE_CONTROL, "no-cache"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, file.text).into_response()
}

/// Sends a browser to an address relative to the one that it asked for: a proxy may have put the
/// server below a folder.
fn moved(to: &'static str) -> Response {
    (StatusCode::SEE_OTHER, [(LOCATION, to)]).into_response()
}
