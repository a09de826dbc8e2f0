//! The oracle of every backend: straight loops over plain vectors, sums in f64, no SIMD, no
//! threads, no tiles.
//!
//! Slow on purpose. [`crate::conformance`] compares other backends with it. Each part of
//! [`Backend`](crate::Backend) has its file.

mod attention;
mod boundary;
mod cache;
mod dequant;
mod device;
mod indexing;
mod latent_memory;
mod products;
mod rows;
mod sampling;
mod scoring;

pub use cache::ReferencePages;
pub use device::ReferenceBackend;
pub use products::ReferenceMatrix;
