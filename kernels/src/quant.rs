//! GGML's quantised blocks, read plainly: groups of 32 weights, each weight an integer times a
//! scale, plus a minimum where the type has one.
//!
//! Layouts: ggml's `ggml-common.h` (structs) and `ggml-quants.c` (`dequantize_row_*`). In f32 the
//! products are exact for every type but Q6_K, so the value does not depend on how the formula is
//! arranged; weights have the bits of llama.cpp's, down to the signs of zeros.

mod blocks_of_32;
mod grids;
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
#[cfg(any(test, feature = "testing"))]
pub use random::random_blocks;

/// 32 consecutive weights of one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Group {
    /// What scales multiply, as the type defines it: signed where the type subtracts an offset or
    /// looks values up.
    pub codes: [i8; GROUP],
    /// Multiplies each code.
    pub scale: Scale,
    /// Added to every weight.
    pub min: Scale,
}

/// A number for the first and one for the last 16 weights of a group, each a multiple of one unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scale {
    pub unit: f32,
    pub by: [f32; 2],
}

impl Scale {
    /// Adding it changes nothing, not even the sign of a zero.
    const NO_MIN: Self = Self::one(-0.0);

    /// The same number for all weights.
    const fn one(unit: f32) -> Self {
        Self::same(unit, 1.0)
    }

    /// `unit * by` for all weights.
    const fn same(unit: f32, by: f32) -> Self {
        Self { unit, by: [by, by] }
    }

    /// For the first (0) or the last (1) 16 weights.
    pub fn of(&self, half: usize) -> f32 {
        self.unit * self.by[half]
    }
}

impl Group {
    /// Weights that are all zero.
    pub const ZERO: Self = Self {
        codes: [0; GROUP],
        scale: Scale::same(0.0, 0.0),
        min: Scale::NO_MIN,
    };

    /// A group without minima.
    const fn scaled(codes: [i8; GROUP], scale: Scale) -> Self {
        Self {
            codes,
            scale,
            min: Scale::NO_MIN,
        }
    }

    fn weight(&self, i: usize) -> f32 {
        f32::from(self.codes[i]) * self.scale.of(i / 16) + self.min.of(i / 16)
    }
}

/// The half at byte `at`.
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The 16-bit word at byte `at`.
fn word_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The 32-bit word at byte `at`.
fn long_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The low (even `which`) or the high nibble of a byte.
const fn nibble(byte: u8, which: usize) -> u8 {
    if which.is_multiple_of(2) {
        byte & 15
    } else {
        byte >> 4
    }
}

/// Codes of 16 bytes: low nibbles first, then high nibbles.
fn nibbles(bytes: &[u8]) -> [u8; GROUP] {
    std::array::from_fn(|i| nibble(bytes[i % 16], i / 16))
}

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
