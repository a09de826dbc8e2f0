//! The instruction set that kernels run with.

use super::ops::Kernel;
use super::portable::Portable;

/// Instruction set of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimdLevel {
    /// Plain Rust; slow where the processor has no fused multiply-add.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
}

impl SimdLevel {
    /// The best level that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c")
        {
            return Self::Avx2;
        }
        Self::Portable
    }

    /// Runs a kernel at this level; at [`SimdLevel::Portable`] where the processor lacks the level.
    #[inline]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 if Self::detect() == Self::Avx2 => {
                // SAFETY: the processor was just found to have the features.
                unsafe { super::avx2::run(kernel) }
            }
            _ => kernel.run(Portable),
        }
    }
}
