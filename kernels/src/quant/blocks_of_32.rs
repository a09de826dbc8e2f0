//! Types whose blocks are single groups.

use super::group::{Group, Scale, half_at, long_at, nibbles};
use crate::backend::GROUP;

/// What the 4-bit codes of IQ4_NL and IQ4_XS stand for (`kvalues_iq4nl`).
pub(crate) const IQ4_VALUES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// What the 4-bit codes of MXFP4 stand for: twice the numbers of E2M1 (`kvalues_mxfp4`).
pub(crate) const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// f16 d, 32 signed bytes.
pub(super) fn q8_0(block: &[u8]) -> Group {
    let codes = std::array::from_fn(|i| block[2 + i] as i8);
    Group::scaled(codes, Scale::one(half_at(block, 0)))
}

/// f16 d, 16 bytes of nibbles.
pub(super) fn q4_0(block: &[u8]) -> Group {
    let codes = nibbles(&block[2..]).map(|code| code as i8 - 8);
    Group::scaled(codes, Scale::one(half_at(block, 0)))
}

/// f16 d, f16 m, 16 bytes of nibbles.
pub(super) fn q4_1(block: &[u8]) -> Group {
    Group {
        codes: nibbles(&block[4..]).map(|code| code as i8),
        scale: Scale::one(half_at(block, 0)),
        min: Scale::one(half_at(block, 2)),
    }
}

/// Codes of a word with the fifth bit of each weight and of 16 bytes of nibbles.
fn five_bits(high: u32, bytes: &[u8]) -> [i8; GROUP] {
    let low = nibbles(bytes);
    std::array::from_fn(|i| (low[i] | ((high >> i & 1) as u8) << 4) as i8)
}

/// f16 d, 32 fifth bits, 16 bytes of nibbles.
pub(super) fn q5_0(block: &[u8]) -> Group {
    let codes = five_bits(long_at(block, 2), &block[6..]).map(|code| code - 16);
    Group::scaled(codes, Scale::one(half_at(block, 0)))
}

/// f16 d, f16 m, 32 fifth bits, 16 bytes of nibbles.
pub(super) fn q5_1(block: &[u8]) -> Group {
    Group {
        codes: five_bits(long_at(block, 4), &block[8..]),
        scale: Scale::one(half_at(block, 0)),
        min: Scale::one(half_at(block, 2)),
    }
}

/// f16 d, 16 bytes of nibbles that are looked up.
pub(super) fn iq4_nl(block: &[u8]) -> Group {
    let codes = nibbles(&block[2..]).map(|code| IQ4_VALUES[usize::from(code)]);
    Group::scaled(codes, Scale::one(half_at(block, 0)))
}

/// An exponent, 16 bytes of nibbles that are looked up.
pub(super) fn mxfp4(block: &[u8]) -> Group {
    let codes = nibbles(&block[1..]).map(|code| MXFP4_VALUES[usize::from(code)]);
    Group::scaled(codes, Scale::one(half_power(block[0])))
}

/// Half of the power of two that an E8M0 exponent means (`ggml_e8m0_to_fp32_half`): the values are
/// doubled. The two smallest are subnormal; the one that stands for NaN is read as a number, as
/// ggml does.
const fn half_power(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 | 1 => 0x0020_0000 << exponent,
        _ => (exponent as u32 - 1) << 23,
    })
}
