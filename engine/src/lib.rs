//! A plan in, an output out: one rank's decoder over a bounded KV cache.
//!
//! Rooms, top floor first. A room uses only what stands on a lower floor:
//!
//! ```text
//! rank · offline                  a model file becomes a rank · sequences without a coordinator
//! runner                          plans in, outputs out
//! snapshot                        the state of a sequence in host memory, taken and given back
//! decoder                         a step through all layers, and what policies compute in it
//! layers · sampler · trace        attention of a layer · tokens from logits · spans of requests
//! guides                          which tokens may come next, made beside a step
//! kv                              the bounded cache, and what happens at a boundary
//! policy · memory                 which entries stay · what remains of the others
//! indexer · peers · upload        trained weights · the other ranks · weights on the device
//! error                           what a rank refuses or fails at
//! device_memory                   what a rank takes, counted beforehand
//! shard · slots · rope · random   a rank's part of a model · slots of a head · angles · hashes
//! ```
//!
//! `runner` is where a request enters. `offline` is for benchmarks, calibration and evaluation.
#![forbid(unsafe_code)]

pub mod cancel;
pub mod decoder;
pub mod device_memory;
pub mod error;
pub mod guides;
pub mod indexer;
pub mod kept;
pub mod kv;
pub mod layers;
pub mod memory;
pub mod offline;
pub mod peers;
pub mod policy;
mod random;
pub mod rank;
pub mod rope;
pub mod runner;
pub mod sampler;
pub mod shard;
pub mod slots;
pub mod snapshot;
mod trace;
mod upload;

pub use error::{Error, Result};
