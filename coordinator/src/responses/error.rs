//! What kept responses can refuse.

/// Result of a call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a response was not kept, found or read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// There is no such response: never made, deleted, expired, or another tenant's.
    #[error("there is no such response: it was never kept, was deleted or has expired")]
    Unknown,
    /// The conversation has as many turns as may be.
    #[error("the conversation has {turns} turns or more, the most is {most}")]
    TooLong {
        /// Turns that were found.
        turns: usize,
        /// The bound.
        most: usize,
    },
    /// The record alone passes the bound of all.
    #[error("the response takes {bytes} bytes, and all that are kept may take {most}")]
    TooLarge {
        /// Its bytes.
        bytes: u64,
        /// The bound.
        most: u64,
    },
    /// A record is not what was written, or was written by a later version.
    #[error("a stored response is damaged: {what}")]
    Damaged {
        /// How that shows.
        what: &'static str,
    },
    /// The store failed or was too slow.
    #[error("{0}")]
    Store(palimpsest_store::Error),
    /// Another service owns the store by now.
    #[error("the store of responses is another service's by now")]
    NotOurs,
    /// The process ends.
    #[error("the service is shutting down")]
    Ended,
}

impl From<palimpsest_store::Error> for Error {
    fn from(error: palimpsest_store::Error) -> Self {
        use palimpsest_store::Error as Store;
        match error {
            Store::Missing { .. } => Self::Unknown,
            Store::Damaged { what, .. } => Self::Damaged { what },
            Store::TooLong { .. } => Self::Damaged {
                what: "it is longer than what was written",
            },
            other => Self::Store(other),
        }
    }
}
