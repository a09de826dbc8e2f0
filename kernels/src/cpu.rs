//! The CPU backend: packed weights, eight-lane kernels, a fork-join pool.
//!
//! Results are bitwise independent of rows per call, threads and instruction set; see the crate's
//! determinism contract.
//!
//! | where | what |
//! |---|---|
//! | `device`, `backend` | the backend, and its parts as traits |
//! | [`pool`], `exec`, `scratch` | threads, where a kernel runs, memory that is used again |
//! | `simd`, `lanes`, [`exp_minus`] | instruction sets, operations on eight lanes, exponentials |
//! | `cell`, [`pack`] | eight rows of weights side by side, panels of packed weights |
//! | `matmul`, `totals`, `embed` | products, their sums in fixed point, embedding rows |
//! | `elementwise` | norms, sums, gates, gathers |
//! | `split_qkv` | the split of fused rows into queries, and keys and values in slots |
//! | `checks` | checks that operations on items share |
//! | `element`, `page_layout` | stored elements, where those of a slot lie in a page |
//! | [`pages`], `page_writer`, `slots` | the arena, writes to it, moves and reads of slots |
//! | `attention` | attention: checks, tasks, their results merged |
//! | `attention_head`, `attention_block` | one head of a call, the inner loops |
//! | `observe` | observed probabilities |
//! | `notes`, `scoring` | notes beside slots, scores of slots |
//! | `memorise`, `readout`, `index` | latent memories, pairwise indexer |

pub mod pack;
pub mod pages;
pub mod pool;

mod attention;
mod attention_block;
mod attention_head;
mod backend;
mod cell;
mod checks;
mod device;
mod element;
mod elementwise;
mod embed;
mod exec;
mod exp;
mod index;
mod lanes;
mod matmul;
mod memorise;
mod notes;
mod observe;
mod page_layout;
mod page_writer;
mod readout;
mod scoring;
mod scratch;
mod simd;
mod slots;
mod split_qkv;
mod stored;
mod totals;

#[cfg(test)]
mod testing;

pub use device::{Activations, CpuBackend, CpuOptions};
pub use exp::{exp_minus, exp_sum, sigmoids};
pub use pool::Pool;
pub use simd::SimdLevel;
