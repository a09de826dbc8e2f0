//! One rank: model, bounded KV cache, eviction, latent memory.
//!
//! Rooms, top floor first; a room uses only what stands below it:
//! `server` (gRPC, device thread, group) ▸ `runner` ▸ `model` (decoder, files) ▸ `layers` ▸ `kv`
//! (boundary, budget, cache) ▸ `policy` · `memory` · `collective` · `sampler` · `trace`.
#![deny(unsafe_code)]

pub mod collective;
pub mod error;
pub mod exchange;
pub mod footprint;
pub mod indexer;
pub mod kv;
pub mod layers;
pub mod memory;
pub mod model;
pub mod policy;
pub mod rank;
pub mod reconstruct;
pub mod runner;
pub mod sampler;
pub mod server;
pub mod session;
pub mod shard;
mod trace;

pub use error::{Error, Result};
