//! The CPU backend: packed weights, eight-lane kernels, a fork-join pool.
//!
//! Results are bitwise independent of rows per call, threads and instruction set; see the crate's
//! determinism contract.

pub mod pool;
pub(crate) mod simd;
#[cfg(target_arch = "x86_64")]
pub(crate) mod simd_avx2;

pub(crate) mod attention;
pub(crate) mod attention_block;
mod backend;
pub(crate) mod element;
pub(crate) mod elementwise;
pub(crate) mod exp;
pub(crate) mod index;
pub(crate) mod lanes;
pub(crate) mod matmul;
mod matmul_f32;
mod matmul_int8;
mod memorise;
mod notes;
pub(crate) mod observe;
pub mod pack;
pub mod pages;
pub mod quant;
pub(crate) mod readout;
mod totals;

#[cfg(test)]
pub(crate) mod testing;

pub use exp::{exp_minus, sigmoids};
pub use pool::Pool;
pub use simd::SimdLevel;

/// Precision of the activations that meet quantised weights. Float weights always meet f32
/// activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// Rounded to 8 bits with one scale per 32 values, as llama.cpp does (its Q8_0): integer dot
    /// products.
    #[default]
    Int8,
    /// Kept in f32; weights are dequantised. Slower; for parity with a float32 reference.
    F32,
}

/// How a [`CpuBackend`] is built.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuOptions {
    /// Threads, the caller's included; `None`: as many as the process may use.
    pub threads: Option<usize>,
    /// Precision of activations.
    pub activations: Activations,
    /// Instruction set; `None`: the best one found. A level that the processor lacks falls back to
    /// portable code.
    pub simd: Option<SimdLevel>,
}

/// The backend. Buffers are `Vec<f32>`.
pub struct CpuBackend {
    pub(crate) pool: Pool,
    pub(crate) simd: SimdLevel,
    pub(crate) activations: Activations,
    /// Memory of matrix products, one for each that runs at a time.
    pub(crate) scratch: std::sync::Mutex<Vec<matmul::Scratch>>,
}

impl CpuBackend {
    /// Starts the threads and settles the instruction set.
    pub fn new(options: CpuOptions) -> Self {
        let threads = options.threads.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        });
        let best = SimdLevel::detect();
        let simd = options
            .simd
            .filter(|&level| level == SimdLevel::Portable || level == best)
            .unwrap_or(if options.simd.is_some() {
                SimdLevel::Portable
            } else {
                best
            });
        Self {
            pool: Pool::new(threads),
            simd,
            activations: options.activations,
            scratch: std::sync::Mutex::default(),
        }
    }
}
