//! The bounded cache of a sequence.
//!
//! ```text
//!  one KV head of one layer, slots in position order
//!  +-------+-----------------------------+---------------+------------------------+
//!  | sinks | retained by the policy      | window        | tail: new since the    |
//!  | 0..s  | any positions, increasing   | last W        | last boundary, < E     |
//!  +-------+-----------------------------+---------------+------------------------+
//!   at a boundary (absolute position a multiple of E):
//!     score -> rank -> evict -> memorise -> compact
//! ```
//! Invariants: positions of a head increase strictly; nothing is evicted between boundaries; what
//! is kept at a boundary depends on the tokens seen and the contract alone. Absent on purpose: any
//! notion of batches, chunks or time.

pub mod allocation;
pub mod boundary;
pub mod budget;
pub mod budget_group;
pub mod cache;
pub mod pages;
pub mod sharing;

pub use cache::{Entries, SequenceCache};
pub use pages::PagePool;
pub use palimpsest_proto::contract::{Bounded, Contract, HeadBudget, LatentMemory, Positions};
