//! What every implementation of the collectives offers, and how it fails.

use std::sync::Arc;
use std::time::Instant;

use palimpsest_kernels::sums::DeviceSums;

/// A communicator of one epoch of a worker group.
pub trait Collective: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world_size(&self) -> usize;

    /// Name of the implementation: `local`, `tcp`, `gloo`, `nccl`.
    fn name(&self) -> &'static str;

    /// Adds `values` of all ranks, element by element, and leaves the sum on each: the same bits
    /// everywhere.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn all_reduce_sum(&self, values: &mut [f32], deadline: Instant) -> Result<(), CollectiveError>;

    /// Adds counts of all ranks; exact.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn all_reduce_counts(
        &self,
        counts: &mut [u64],
        deadline: Instant,
    ) -> Result<(), CollectiveError>;

    /// Puts `mine` of all ranks side by side into `all`, in rank order; `all` has `world_size`
    /// times the bytes of `mine`.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn all_gather(
        &self,
        mine: &[u8],
        all: &mut [u8],
        deadline: Instant,
    ) -> Result<(), CollectiveError>;

    /// Gives every rank the bytes of `root`.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn broadcast(
        &self,
        bytes: &mut [u8],
        root: usize,
        deadline: Instant,
    ) -> Result<(), CollectiveError>;

    /// Sums of what lies on a device, for implementations that have any. They count as calls of
    /// this communicator: all ranks make them in one order with the others.
    fn device_sums(self: Arc<Self>) -> Option<Arc<dyn DeviceSums>> {
        None
    }

    /// Ends the epoch on this rank: a call under way on another thread and every later one fail
    /// with [`CollectiveError::Aborted`]. Returns at once; may be called from any thread, more than
    /// once.
    fn abort(&self);
}

/// Why a collective failed. The communicator is of no more use after any of them but
/// [`CollectiveError::Misuse`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CollectiveError {
    /// Not all ranks came in time.
    #[error("{operation} ran past its deadline; missing: {missing}")]
    Deadline {
        /// The call.
        operation: &'static str,
        /// Ranks that had not come, where that is known.
        missing: String,
    },
    /// This rank, or another, ended the epoch.
    #[error("the epoch was ended")]
    Aborted,
    /// A rank's connection broke.
    #[error("a rank is gone: {0}")]
    PeerGone(String),
    /// The ranks did not make the same call.
    #[error("the ranks do not agree on the call: {0}")]
    Mismatch(String),
    /// The caller's arguments are wrong; nothing was sent.
    #[error("wrong use of a collective: {0}")]
    Misuse(String),
    /// Where ranks find each other holds as much as it may.
    #[error("the rendezvous is full: it holds at most {keys} keys of {bytes} bytes together")]
    StoreFull {
        /// Keys at most.
        keys: usize,
        /// Bytes of all keys and values at most.
        bytes: usize,
    },
    /// The implementation cannot be used here.
    #[error("{name} cannot be used: {why}")]
    Unsupported {
        /// The implementation.
        name: &'static str,
        /// Why.
        why: String,
    },
}
