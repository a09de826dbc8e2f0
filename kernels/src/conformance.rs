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
//! use palimpsest_kernels::conformance::{Failure, Suite, Tolerance};
//! fn check<B: Rows + Products>(backend: &B) -> Result<(), Failure> {
//!     let mut suite = Suite::new(backend, KvType::F16, Tolerance::default(), 1);
//!     suite.buffers()?;
//!     suite.rows()?;
//!     suite.products()
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

pub use report::{Failure, Outcome, Tolerance};
pub use suite::Suite;

use crate::backend::{Backend, KvType};

/// Runs every case on `backend`, whose pages hold `kv`; `seed` chooses the values. Returns the
/// differences that were measured.
///
/// # Errors
/// The first [`Failure`].
pub fn run<B: Backend>(
    backend: &B,
    kv: KvType,
    tolerance: Tolerance,
    seed: u64,
) -> Result<Vec<Outcome>, Failure> {
    let mut suite = Suite::new(backend, kv, tolerance, seed);
    suite.buffers()?;
    suite.rows()?;
    suite.products()?;
    suite.cache()?;
    suite.stored()?;
    suite.attention_with_centroids()?;
    suite.boundary()?;
    suite.scoring()?;
    suite.notes_after_compaction()?;
    suite.stored_notes()?;
    suite.sampling()?;
    suite.latent_memory()?;
    suite.indexing()?;
    Ok(suite.into_outcomes())
}
