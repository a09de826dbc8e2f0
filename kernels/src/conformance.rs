//! One suite for all backends: random shapes (empty, one, odd, ragged, across pages and tiles)
//! against [`ReferenceBackend`](crate::reference::ReferenceBackend).
//!
//! ```no_run
//! use palimpsest_kernels::conformance::{self, Tolerance};
//! use palimpsest_kernels::cpu::{CpuBackend, CpuOptions};
//! use palimpsest_kernels::KvType;
//! let backend = CpuBackend::new(CpuOptions::default());
//! let outcomes = conformance::run(&backend, KvType::F16, Tolerance::default(), 1);
//! for outcome in outcomes.expect("agrees") {
//!     println!("{outcome}");
//! }
//! ```
//!
//! A device that has some parts of [`Backend`] so far runs the cases of these parts:
//!
//! ```no_run
//! use palimpsest_kernels::KvType;
//! use palimpsest_kernels::backend::{Products, Rows};
//! use palimpsest_kernels::conformance::{Failures, Suite, Tolerance};
//! fn check<B: Rows + Products>(backend: &B) -> Result<(), Failures> {
//!     let mut suite = Suite::new(backend, KvType::F16, Tolerance::default(), 1);
//!     suite.part(Suite::buffers);
//!     suite.part(Suite::rows);
//!     suite.part(Suite::products);
//!     suite.finish().map(|_| ())
//! }
//! ```

mod arenas;
mod attention;
mod boundary;
mod buffers;
mod cache;
mod indexing;
mod latent_memory;
mod products;
mod report;
mod rows;
mod sampling;
mod scoring;
mod shapes;
mod stored;
mod suite;

pub use report::{Failure, Failures, Outcome, Tolerance};
pub use suite::Suite;

use crate::backend::{Backend, KvType};

/// Runs every case on `backend`, whose pages hold `kv`; `seed` chooses the values. Returns the
/// differences that were measured.
///
/// # Errors
/// All [`Failures`]: one part that fails hides no other.
pub fn run<B: Backend>(
    backend: &B,
    kv: KvType,
    tolerance: Tolerance,
    seed: u64,
) -> Result<Vec<Outcome>, Failures> {
    let mut suite = Suite::new(backend, kv, tolerance, seed);
    suite.part(Suite::buffers);
    suite.part(Suite::rows);
    suite.part(Suite::products);
    suite.part(Suite::cache);
    suite.part(Suite::stored);
    suite.part(Suite::attention_with_centroids);
    suite.part(Suite::boundary);
    suite.part(Suite::scoring);
    suite.part(Suite::notes_after_compaction);
    suite.part(Suite::stored_notes);
    suite.part(Suite::sampling);
    suite.part(Suite::latent_memory);
    suite.part(Suite::indexing);
    suite.finish()
}

/// Cases of the sizes that are served: thousands of slots, vocabularies of more than 100,000
/// tokens, batches of 210 sequences. They need a device that is fast.
///
/// # Errors
/// As [`run`].
pub fn run_large<B: Backend>(
    backend: &B,
    kv: KvType,
    tolerance: Tolerance,
    seed: u64,
) -> Result<Vec<Outcome>, Failures> {
    let mut suite = Suite::new(backend, kv, tolerance, seed);
    suite.part(Suite::large_attention);
    suite.part(Suite::large_sampling);
    suite.finish()
}
