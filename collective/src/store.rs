//! Where ranks leave what others need to find them.

use std::time::Instant;

use crate::communicator::CollectiveError;

/// What ranks need to find each other: small values under keys, written once. Blocking, as
/// rendezvous is.
pub trait Store: Send + Sync {
    /// Sets a key.
    ///
    /// # Errors
    /// When the store cannot be reached.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), CollectiveError>;

    /// The value of a key, waiting for it until `deadline`.
    ///
    /// # Errors
    /// [`CollectiveError::Deadline`] when nobody set it; otherwise when the store cannot be
    /// reached.
    fn get(&self, key: &str, deadline: Instant) -> Result<Vec<u8>, CollectiveError>;
}
