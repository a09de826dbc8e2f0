//! What is said of a session that cannot be used.

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_store::Error;

/// The store did not do what was asked.
pub(super) const STORE: Reason = Reason::StoreUnavailable;
/// A record that cannot be read.
pub(super) const DAMAGED: Reason = Reason::SessionDamaged;

/// Bytes of a client's name that an error repeats.
const NAME_BYTES: usize = 64;

/// A field of a request that cannot be.
pub(super) fn bad(field: &'static str, message: impl Into<String>) -> RequestError {
    RequestError::new(Reason::BadSession, message).in_field(field)
}

/// The same answer for what was never made, is forgotten, or is another tenant's.
pub(super) fn gone(id: &str) -> RequestError {
    let id: String = id.chars().take(NAME_BYTES).collect();
    let message = format!(
        "there is no session {id:?}: make it, or list those that are there; one that is not used \
         for its time to live is forgotten"
    );
    RequestError::new(Reason::SessionUnknown, message).in_field("session_id")
}

/// A failure of the store, for the client.
pub(super) fn stored(error: &Error) -> RequestError {
    match error {
        Error::Damaged { .. } => damaged("its record is damaged"),
        Error::Missing { .. } => damaged("its record is gone from the store"),
        Error::TooLong { .. } => damaged("its record is longer than this server reads"),
        _ => {
            tracing::warn!(%error, "the store of sessions failed");
            let message = format!(
                "the place that keeps sessions failed, and the session is as it was before: try \
                 again ({error})"
            );
            RequestError::new(STORE, message)
        }
    }
}

/// A record that is found and never served.
pub(super) fn damaged(what: &str) -> RequestError {
    let message = format!("the session cannot be read: {what}; delete it and make another");
    RequestError::new(DAMAGED, message).in_field("session_id")
}

/// A write after the lease was lost would undo another service's.
pub(super) fn lost_place() -> RequestError {
    let message = "the place that keeps sessions may have gone over to another service: ask that \
                   one, or try again later";
    RequestError::new(STORE, message)
}

pub(super) fn record_too_long(bytes: u64, most: u64) -> RequestError {
    let message = format!(
        "the session's record would have {bytes} bytes, over the limit of {most}: fork an earlier \
         session, or begin another one"
    );
    RequestError::new(Reason::TooLong, message).in_field("session_id")
}

/// A task that panicked.
pub(super) fn broken() -> RequestError {
    RequestError::new(Reason::Internal, "the session failed: the log says why")
}
