//! What a store can refuse.

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

impl Error {
    pub(crate) fn failed(store: &str, key: &str, error: &object_store::Error) -> Self {
        use std::error::Error as _;
        // The outer error names the object again; the inner one says what happened.
        let inner = error.source().map(ToString::to_string);
        Self::Failed {
            store: store.into(),
            key: key.into(),
            message: inner.unwrap_or_else(|| error.to_string()),
        }
    }
}
