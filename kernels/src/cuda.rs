//! The CUDA backend. `README.md` beside the modules tells how a step reaches the GPU.
//!
//! # Words
//! From the bottom up; a module uses only what stands above it here.
//!
//! - **kernel**: a function of `kernels/cu`. `launch::kernels` states the parameters of each.
//! - **launch**: a kernel with its grid and arguments.
//! - **command**: what is carried out in order: a launch, a product of the vendor's library, or a
//!   sum over ranks.
//! - **graph**: commands that were captured and are started as one.
//! - **device**: memory, copies, commands and graphs. `driver` is a GPU, `emulated` runs the
//!   kernels on the host, `recorded` writes down what another device is asked for, `null` computes
//!   nothing.
//! - **stream**: a device's work in order. Between the beginning and the end of a **step** of
//!   decoding it puts commands off.
//! - **bucket**: sizes that a step is padded to, so that many steps have the same commands.
//! - **item**: one KV head of one sequence in a call.
//! - **descriptors**: items, page tables and lists of numbers that a call uploads.
//! - **workspace**: device memory that calls use one after the other.
//! - **page table**: the pages of one head's slots. In steps of decoding they stay on the device.
//! - **latent memory**: what remains of slots that went, for all heads of a sequence. Its **state**
//!   is what one head has of it.
//! - **tile**, **split**: what a block of attention works on: rows of queries, or a run of slots.
//!
//! The modules `rows`, `products`, `rank_sums`, `cache`, `attention`, `scoring`, `boundary`,
//! `latent_memory`, `indexing` and `sampling` implement the parts of [`Backend`](crate::Backend)
//! of these names.

mod checks;
mod launch;

mod device;
mod stream;

mod descriptors;

mod backend;

mod attention;
mod boundary;
mod cache;
mod indexing;
mod latent_memory;
mod products;
mod rank_sums;
mod rows;
mod sampling;
mod scoring;
mod stored;

pub use backend::{Buffer, CudaBackend, Precision};
pub use device::{Device, driver, null};
#[cfg(feature = "emulate")]
pub use device::{emulated, recorded};
pub use launch::{Arg, Command, Launch, Product, Sum};
pub use stream::bucket;
