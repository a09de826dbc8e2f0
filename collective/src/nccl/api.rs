//! What we use of NCCL, without its pointers: a trait with two twins, the library and one in memory
//! for tests.

use palimpsest_kernels::sums::{SumElement, Summand};

use crate::place::Place;

/// What ranks of one communicator share.
pub type UniqueId = [u8; 128];

/// Element type of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Element {
    /// `ncclUint8`.
    U8,
    /// `ncclUint64`.
    U64,
    /// `ncclFloat32`.
    F32,
}

impl Element {
    /// Size of one.
    pub const fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U64 => 8,
            Self::F32 => 4,
        }
    }
}

impl From<SumElement> for Element {
    fn from(element: SumElement) -> Self {
        match element {
            SumElement::F32 => Self::F32,
            SumElement::U64 => Self::U64,
        }
    }
}

/// What is done with the data of all ranks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// Element-wise sum; the result is as long as the data.
    AllReduce,
    /// Side by side, in rank order; the result is as many times as long as there are ranks.
    AllGather,
    /// That of `root`.
    Broadcast {
        /// A rank.
        root: usize,
    },
}

impl Operation {
    /// Name in errors.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all-reduce",
            Self::AllGather => "all-gather",
            Self::Broadcast { .. } => "broadcast",
        }
    }
}

/// One collective, the same on all ranks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Call {
    /// What is done.
    pub operation: Operation,
    /// With what.
    pub element: Element,
}

/// Why the library did not do it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// It cannot be used on this machine.
    #[error("{0}")]
    Unsupported(String),
    /// The ranks do not make the same call.
    #[error("{0}")]
    Usage(String),
    /// A rank, a link or a device failed.
    #[error("{0}")]
    Failed(String),
}

/// NCCL in non-blocking mode. Of one communicator, one call is made at a time.
pub trait Api: Send + Sync + 'static {
    /// A communicator and the buffers of its one call under way.
    type Comm: Send + 'static;

    /// As `ncclGetVersion` counts: 2.30.3 is 23003.
    ///
    /// # Errors
    /// [`ApiError`].
    fn version(&self) -> Result<u32, ApiError>;

    /// An id for a new communicator.
    ///
    /// # Errors
    /// [`ApiError`].
    fn unique_id(&self) -> Result<UniqueId, ApiError>;

    /// Begins to form a communicator; [`Api::poll`] says when all ranks are there.
    ///
    /// # Errors
    /// [`ApiError`].
    fn init(&self, place: Place, id: &UniqueId) -> Result<Self::Comm, ApiError>;

    /// Begins a collective on `data`, which is copied.
    ///
    /// # Errors
    /// [`ApiError`].
    fn start(&self, comm: &Self::Comm, call: Call, data: &[u8]) -> Result<(), ApiError>;

    /// Whether what was begun is done. Never waits.
    ///
    /// # Errors
    /// What went wrong since, asynchronous errors of the communicator included.
    fn poll(&self, comm: &Self::Comm) -> Result<bool, ApiError>;

    /// The result of the collective that is done.
    ///
    /// # Errors
    /// [`ApiError`].
    fn finish(&self, comm: &Self::Comm, out: &mut [u8]) -> Result<(), ApiError>;

    /// Begins to put a sum on the stream of its array, in place; [`Api::poll`] says when it is
    /// there.
    ///
    /// # Errors
    /// [`ApiError`].
    fn enqueue(&self, comm: &Self::Comm, summand: &mut Summand<'_>) -> Result<(), ApiError>;

    /// Ends what [`Self::enqueue`] began, where the array has no stream that would do it.
    ///
    /// # Errors
    /// [`ApiError`].
    fn complete(&self, comm: &Self::Comm, summand: &mut Summand<'_>) -> Result<(), ApiError> {
        let _ = (comm, summand);
        Ok(())
    }

    /// Ends a communicator, whatever it is doing. May take as long as a captured graph names it.
    fn abort(&self, comm: Self::Comm);
}

/// A version as people write it.
pub fn dotted(version: u32) -> String {
    format!(
        "{}.{}.{}",
        version / 10_000,
        version / 100 % 100,
        version % 100
    )
}
