//! Snapshots of sequences, as the coordinator knows them: their names, which are kept where, and
//! which go when room is short. What is in one is the ranks' business.
//!
//! An evicted cache cannot be cut back to an earlier position, so a prefix can be used again only
//! where a snapshot of it was kept. Where to keep them is decided by [`crate::scheduler`]; here is
//! what is there ([`Index`]), how it is found again ([`Chain`]), and what was asked for before
//! ([`Sightings`]). No I/O, clock or lock.

mod chain;
mod entry;
mod index;
mod orders;
mod sightings;

pub use self::chain::{Chain, Name, Root, Salt};
pub use self::index::{Erased, Found, Held, Index, Keep, Room};
pub use self::orders::{Ended, Fate, Want};
pub use self::sightings::Sightings;
