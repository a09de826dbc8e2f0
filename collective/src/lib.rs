//! How the ranks of a group exchange tensors.
//!
//! The contract: every rank makes the same calls in the same order with the same lengths. What a
//! call leaves behind is identical, bit for bit, on all ranks. `local`, `tcp` and `gloo` take sums
//! in rank order, so that they agree with each other as well; NCCL adds in an order of its own.
//! Every call has a deadline. The first failure is sticky: after it each call fails at once, until
//! the group forms anew in another epoch.
#![deny(unsafe_code)]

pub mod conformance;
#[cfg(feature = "gloo")]
#[expect(
    unsafe_code,
    reason = "FFI; what cxx generates, and that its handle may cross threads"
)]
pub mod gloo;
pub mod local;
mod memory_store;
pub mod mesh;
#[cfg(feature = "nccl")]
pub mod nccl;
mod place;
pub mod tcp;

use std::sync::Arc;
use std::time::Instant;

use palimpsest_kernels::sums::DeviceSums;

pub use self::memory_store::MemoryStore;
pub use self::place::{Place, even};

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
    /// The implementation cannot be used here.
    #[error("{name} cannot be used: {why}")]
    Unsupported {
        /// The implementation.
        name: &'static str,
        /// Why.
        why: String,
    },
}

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

/// Adds another rank's part, as it came over a wire, to a sum, element by element.
pub(crate) fn add_bytes<T: bytemuck::Pod>(sum: &mut [T], part: &[u8], add: impl Fn(T, T) -> T) {
    for (sum, part) in sum.iter_mut().zip(part.chunks_exact(size_of::<T>())) {
        *sum = add(*sum, bytemuck::pod_read_unaligned(part));
    }
}

/// Refuses a gather whose lengths do not fit.
pub(crate) fn check_gather(
    world_size: usize,
    mine: &[u8],
    all: &[u8],
) -> Result<(), CollectiveError> {
    if all.len() == world_size * mine.len() {
        return Ok(());
    }
    let what = format!(
        "gathering {} bytes of {world_size} ranks into {}",
        mine.len(),
        all.len()
    );
    Err(CollectiveError::Misuse(what))
}

/// Refuses a root that is no rank.
pub(crate) fn check_root(world_size: usize, root: usize) -> Result<(), CollectiveError> {
    if root < world_size {
        return Ok(());
    }
    Err(CollectiveError::Misuse(format!(
        "root {root} of a group of {world_size}"
    )))
}
