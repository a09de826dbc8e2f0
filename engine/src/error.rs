//! What a rank can refuse or fail at.

use crate::device_memory::DoesNotFit;
use crate::shard::ShardError;
use crate::snapshot::SnapshotError;

/// Result of a rank's operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation of a rank. `Plan` errors concern one sequence; the others of its step are
/// unharmed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A kernel refused its operands or the device failed.
    #[error(transparent)]
    Kernel(palimpsest_kernels::Error),
    /// The model cannot be opened.
    #[error(transparent)]
    Model(#[from] palimpsest_models::Error),
    /// The model's tensors do not fit its configuration.
    #[error(transparent)]
    Weights(#[from] palimpsest_models::weights::WeightsError),
    /// The model's family needs an operation that this device lacks; nothing was loaded.
    #[error(
        "models of the family {architecture} do not run on {device}, which lacks {operation}: use \
         --device cpu"
    )]
    Family {
        /// The family.
        architecture: &'static str,
        /// The device.
        device: String,
        /// What it lacks.
        operation: &'static str,
    },
    /// A plan asks for something that the sequence's state does not allow.
    #[error("sequence {sequence}: {what}")]
    Plan {
        /// Sequence the plan named.
        sequence: u64,
        /// What does not fit, with the numbers.
        what: String,
    },
    /// The slot arena has no page left. Admission should have prevented it.
    #[error("the slot arena is exhausted: {needed} pages needed, {free} free")]
    PagesExhausted {
        /// Pages the operation needs.
        needed: usize,
        /// Pages left.
        free: usize,
    },
    /// The device has less memory free than the rank takes; nothing was loaded.
    #[error(transparent)]
    DoesNotFit(#[from] DoesNotFit),
    /// A contract that means nothing.
    #[error("KV contract: {0}")]
    InvalidContract(#[from] palimpsest_proto::contract::ContractError),
    /// A contract that this rank cannot keep.
    #[error("KV contract: {0}")]
    Contract(String),
    /// A learned policy or memory file that does not fit the model.
    #[error("indexer: {0}")]
    Indexer(String),
    /// A collective failed or was aborted: the epoch is over.
    #[error("collective: {0}")]
    Collective(#[from] palimpsest_collective::CollectiveError),
    /// The step was abandoned half-way, as was asked: none of its sequences can go on.
    #[error("the step was abandoned: its epoch is over")]
    Cancelled,
    /// A snapshot that cannot be restored here.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The model cannot be split into so many parts.
    #[error(transparent)]
    Shard(#[from] ShardError),
}

impl From<palimpsest_kernels::Error> for Error {
    /// A sum over ranks that failed on the device is a collective that failed.
    fn from(error: palimpsest_kernels::Error) -> Self {
        use palimpsest_kernels::Error::Sums;
        let Sums(cause) = error else {
            return Self::Kernel(error);
        };
        cause.downcast().map_or_else(
            |cause| Self::Kernel(Sums(cause)),
            |error| Self::Collective(*error),
        )
    }
}
