//! GGML's quantised blocks, read plainly: groups of 32 weights, each weight an integer times a
//! scale, plus a minimum where the type has one.
//!
//! Layouts: ggml's `ggml-common.h` (structs) and `ggml-quants.c` (`dequantize_row_*`). In f32 the
//! products are exact for every type but Q6_K, so the value does not depend on how the formula is
//! arranged; weights have the bits of llama.cpp's, down to the signs of zeros.

mod blocks_of_32;
mod grids;
mod group;
mod iq;
mod k;
#[cfg(any(test, feature = "testing"))]
mod random;
mod ternary;

use half::{bf16, f16};

pub(crate) use crate::backend::GROUP;
use crate::backend::{BlockSize, WeightType};
use crate::error::{Error, Result};

pub(crate) use blocks_of_32::{IQ4_VALUES, MXFP4_VALUES};
pub(crate) use group::{Group, Scale};
#[cfg(any(test, feature = "testing"))]
pub use random::random_blocks;

/// Group `index` of consecutive quantised blocks. `None` for float types, which have no groups.
pub(crate) fn group(dtype: WeightType, bytes: &[u8], index: usize) -> Option<Group> {
    let BlockSize {
        weights,
        bytes: size,
    } = dtype.block();
    let block = &bytes[index * GROUP / weights * size..][..size];
    let j = index % (weights / GROUP).max(1);
    Some(match dtype {
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => return None,
        WeightType::Q8_0 => blocks_of_32::q8_0(block),
        WeightType::Q4_0 => blocks_of_32::q4_0(block),
        WeightType::Q4_1 => blocks_of_32::q4_1(block),
        WeightType::Q5_0 => blocks_of_32::q5_0(block),
        WeightType::Q5_1 => blocks_of_32::q5_1(block),
        WeightType::Iq4Nl => blocks_of_32::iq4_nl(block),
        WeightType::Mxfp4 => blocks_of_32::mxfp4(block),
        WeightType::Q2K => k::q2_k(block, j),
        WeightType::Q3K => k::q3_k(block, j),
        WeightType::Q4K => k::q4_k(block, j),
        WeightType::Q5K => k::q5_k(block, j),
        WeightType::Q6K => k::q6_k(block, j),
        WeightType::Iq1S => iq::iq1_s(block, j),
        WeightType::Iq1M => iq::iq1_m(block, j),
        WeightType::Iq2Xxs => iq::iq2_xxs(block, j),
        WeightType::Iq2Xs => iq::iq2_xs(block, j),
        WeightType::Iq2S => iq::iq2_s(block, j),
        WeightType::Iq3Xxs => iq::iq3_xxs(block, j),
        WeightType::Iq3S => iq::iq3_s(block, j),
        WeightType::Iq4Xs => iq::iq4_xs(block, j),
        WeightType::Tq1_0 => ternary::tq1_0(block, j),
        WeightType::Tq2_0 => ternary::tq2_0(block, j),
    })
}

/// Weights of consecutive blocks as f32, in the bits of llama.cpp's `dequantize_row_*`. `bytes`:
/// `dtype.bytes(out.len())` bytes.
///
/// # Errors
/// [`Error::Multiple`] when `out` does not hold whole blocks, [`Error::Shape`] when `bytes` has
/// another size.
pub fn dequantize(dtype: WeightType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    const OP: &str = "dequantize";
    let Some(want) = dtype.bytes(out.len()) else {
        return Err(Error::Multiple {
            op: OP,
            what: "out",
            got: out.len(),
            multiple: dtype.block().weights,
        });
    };
    if bytes.len() != want {
        return Err(Error::Shape {
            op: OP,
            what: "bytes",
            got: bytes.len(),
            want,
        });
    }
    match dtype {
        WeightType::F32 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*b);
            }
        }
        WeightType::F16 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = f16::from_le_bytes(*b).to_f32();
            }
        }
        WeightType::BF16 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*b).to_f32();
            }
        }
        _ => {
            for (index, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                if let Some(group) = group(dtype, bytes, index) {
                    *out = std::array::from_fn(|i| group.weight(i));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
