//! What a store can refuse.

use std::error::Error as _;

/// Result of a call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a store did not do what was asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The place names no store.
    #[error("`{place}` names no store: {what}")]
    Place {
        /// As it was given, without credentials.
        place: String,
        /// What is wrong with it.
        what: String,
    },
    /// The key has characters that do not mean the same everywhere.
    #[error("`{key}` is no key: use letters, digits, `-`, `_`, `.` and single slashes")]
    Key {
        /// The key.
        key: String,
    },
    /// Nothing is kept under the key.
    #[error("nothing is kept under `{key}`")]
    Missing {
        /// The key.
        key: String,
    },
    /// The object is longer than the reader takes.
    #[error("`{key}` has {bytes} bytes; at most {most} are read")]
    TooLong {
        /// The key.
        key: String,
        /// Its length.
        bytes: u64,
        /// The reader's bound.
        most: u64,
    },
    /// The object is not what was written.
    #[error("`{key}` is damaged: {what}; delete it, nothing can be read from it")]
    Damaged {
        /// The key.
        key: String,
        /// How that shows.
        what: &'static str,
    },
    /// The store did not answer in time.
    #[error("{store} did not answer for `{key}` within {seconds} s")]
    Late {
        /// The store.
        store: String,
        /// The key.
        key: String,
        /// The limit of a call.
        seconds: f64,
    },
    /// Another service has the place.
    #[error(
        "{store} is in use by {owner}: give this service a place of its own, or end the other one"
    )]
    Taken {
        /// The store.
        store: String,
        /// Who has it, as it names itself.
        owner: String,
    },
    /// The store refused or cannot be reached.
    #[error("{store} failed for `{key}`: {message}")]
    Failed {
        /// The store.
        store: String,
        /// The key.
        key: String,
        /// What it said.
        message: String,
    },
}

/// A place that names no store.
pub(crate) fn wrong(place: &str, what: &str) -> Error {
    Error::Place {
        place: place.into(),
        what: what.into(),
    }
}

/// Characters of what a store says that are repeated.
const SAID_CHARS: usize = 200;
/// What begins the text of an error about a request. `object_store` gives its type no name.
const REQUEST: &str = "Error performing ";
/// What begins the text of an answer that is none of success.
const STATUS: &str = "Server returned non-2xx status code: ";
/// What begins the text of an answer that says success and holds an error.
const IN_BODY: &str = "Server returned error response: ";
/// Codes of S3 and of Azure that say that nothing can be found at all.
const NO_BUCKET: [&str; 2] = ["NoSuchBucket", "ContainerNotFound"];

impl Error {
    /// What an error of `object_store` says of `key`.
    pub(crate) fn of(store: &str, key: &str, error: &object_store::Error) -> Self {
        let message = said(error);
        let is_missing = matches!(error, object_store::Error::NotFound { .. });
        if is_missing && !NO_BUCKET.iter().any(|code| message.contains(code)) {
            return Self::Missing { key: key.into() };
        }
        Self::Failed {
            store: store.into(),
            key: key.into(),
            message,
        }
    }
}

/// What went wrong, in a line. An answer's body is not repeated: S3's holds the names of keys, and
/// what was signed with them.
fn said(error: &object_store::Error) -> String {
    // The outer error names the object again; the inner ones say what happened.
    let chain: Vec<String> = std::iter::successors(error.source(), |&inner| inner.source())
        .map(ToString::to_string)
        .collect();
    let request = chain.iter().rfind(|text| text.starts_with(REQUEST));
    let Some((_, answer)) = request.and_then(|text| text.split_once(" - ")) else {
        let first = chain.into_iter().next();
        return short(&first.unwrap_or_else(|| error.to_string()));
    };
    if let Some(answer) = answer.strip_prefix(STATUS) {
        let (status, body) = answer.split_once(": ").unwrap_or((answer, ""));
        let code = code(body).map(|code| format!(" ({code})"));
        return short(&format!("it answered {status}{}", code.unwrap_or_default()));
    }
    if let Some(body) = answer.strip_prefix(IN_BODY) {
        let code = code(body).unwrap_or("and no code");
        return format!("it answered with an error ({code})");
    }
    // What broke a connection is at the end.
    short(chain.last().map_or(answer, String::as_str))
}

/// The code in the body of an error of S3 or Azure.
fn code(body: &str) -> Option<&str> {
    let (code, _) = body.split_once("<Code>")?.1.split_once("</Code>")?;
    let is_code = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_code.then_some(code)
}

fn short(text: &str) -> String {
    text.chars().take(SAID_CHARS).collect()
}
