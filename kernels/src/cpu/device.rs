//! The CPU as a device: its threads, its instruction set, its options.

use super::exec::Exec;
use super::pool::Pool;
use super::scratch::ScratchPool;
use super::simd::SimdLevel;

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

impl Activations {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::F32 => "f32",
        }
    }
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
    pub(crate) scratch: ScratchPool,
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
            scratch: ScratchPool::default(),
        }
    }

    /// Where its kernels run.
    pub(crate) fn exec(&self) -> Exec<'_> {
        Exec {
            pool: &self.pool,
            level: self.simd,
        }
    }
}
