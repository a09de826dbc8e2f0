//! A plan in, an output out: one rank's decoder over a bounded KV cache.
//!
//! Rooms, top floor first; a room uses only what stands below it:
//! `rank` ▸ `runner` ▸ `decoder` ▸ `layers` ▸ `kv` (boundary, budget, cache) ▸ `policy` · `memory`
//! · `sampler` · `trace`.
#![forbid(unsafe_code)]

pub mod decoder;
pub mod device_memory;
pub mod error;
pub mod indexer;
pub mod kv;
pub mod layers;
pub mod memory;
pub mod offline;
pub mod peers;
pub mod policy;
pub mod rank;
pub mod rope;
pub mod runner;
pub mod sampler;
pub mod shard;
mod trace;

pub use error::{Error, Result};
