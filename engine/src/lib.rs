//! A plan in, an output out: one rank's decoder over a bounded KV cache.
//!
//! Rooms, top floor first; a room uses only what stands below it:
//! `rank` ▸ `runner` ▸ `decoder` ▸ `layers` ▸ `kv` (boundary, budget, cache) ▸ `policy` · `memory`
//! · `sampler` · `trace`.
#![forbid(unsafe_code)]

pub mod decoder;
pub mod error;
pub mod exchange;
pub mod footprint;
pub mod indexer;
pub mod kv;
pub mod layers;
pub mod memory;
pub mod policy;
pub mod rank;
pub mod reconstruct;
pub mod runner;
pub mod sampler;
pub mod session;
pub mod shard;
mod trace;

pub use error::{Error, Result};
