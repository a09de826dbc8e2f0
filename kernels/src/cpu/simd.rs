//! Eight lanes of f32 or i32, or 32 bytes: what the CPU kernels are written in, once for every
//! instruction set.
//!
//! A kernel is generic over [`Simd`] and runs with [`SimdLevel::dispatch`]. [`Portable`] defines
//! what each operation means; `Avx2` does the same in one or two instructions, **bit for bit** (NaN
//! payloads excepted), so a kernel's result does not depend on the machine. Methods are safe:
//! operands are arrays of the right size.
//!
//! [`Portable`]: portable::Portable

#[cfg(target_arch = "x86_64")]
mod avx2;
mod level;
mod ops;
mod portable;

pub use level::SimdLevel;
pub(crate) use ops::{Kernel, Simd};
