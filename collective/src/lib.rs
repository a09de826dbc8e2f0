//! How the ranks of a group exchange tensors.
//!
//! The contract: every rank makes the same calls in the same order with the same lengths. What a
//! call leaves behind is identical, bit for bit, on all ranks. `local`, `tcp` and `gloo` take sums
//! in rank order, so that they agree with each other as well; NCCL adds in an order of its own.
//! Every call has a deadline. The first failure is sticky: after it each call fails at once, until
//! the group forms anew in another epoch.
//!
//! | module | what it holds |
//! |---|---|
//! | `communicator` | the trait [`Collective`], and its errors |
//! | `place` | [`Place`], where a rank stands; [`even`], what is dealt to ranks |
//! | `store` | [`Store`], through which ranks find each other |
//! | `memory_store` | [`MemoryStore`], a store for ranks of one process |
//! | [`local`] | ranks that are threads of one process |
//! | [`mesh`] | collectives over anything that moves bytes between ranks |
//! | [`link`] | how a connection of two ranks is secured, or not |
//! | [`tcp`] | a mesh of sockets: ranks that are processes |
//! | `gloo` | a mesh of gloo's connections; feature `gloo` |
//! | `nccl` | ranks on GPUs; feature `nccl` |
//! | `checks` | refusals and sums that the implementations share |
//! | `conformance` | one suite for all implementations; feature `testing` |
#![deny(unsafe_code)]

mod checks;
mod communicator;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
#[cfg(feature = "gloo")]
#[expect(
    unsafe_code,
    reason = "FFI; what cxx generates, and that its handle may cross threads"
)]
pub mod gloo;
pub mod link;
pub mod local;
mod memory_store;
pub mod mesh;
#[cfg(feature = "nccl")]
pub mod nccl;
mod place;
mod store;
pub mod tcp;

pub use self::communicator::{Collective, CollectiveError};
pub use self::memory_store::{MemoryStore, StoreLimits};
pub use self::place::{Place, even};
pub use self::store::Store;
