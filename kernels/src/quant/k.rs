//! K-quants: blocks of 256 weights with a scale of scales. A group `j` is one of eight.

use super::group::{Group, Scale, half_at, nibble};

/// 16 bytes, each a scale in the low and a minimum in the high nibble; 64 bytes of codes; f16 d,
/// f16 dmin. A half of 128 weights has 32 bytes, group `g` of it at bit `2g`.
pub(super) fn q2_k(block: &[u8], j: usize) -> Group {
    let bytes = &block[16 + j / 4 * 32..][..32];
    let scales = [block[2 * j], block[2 * j + 1]];
    Group {
        codes: std::array::from_fn(|i| (bytes[i] >> (2 * (j % 4)) & 3) as i8),
        scale: Scale {
            unit: half_at(block, 80),
            by: scales.map(|scale| f32::from(scale & 15)),
        },
        min: Scale {
            unit: -half_at(block, 82),
            by: scales.map(|scale| f32::from(scale >> 4)),
        },
    }
}

/// 32 bytes of third bits, those of group `j` at bit `j`, which stand for 4 less where they are
/// clear; 64 bytes of low bits as in Q2_K; 12 bytes of 16 scales of 6 bits; f16 d.
pub(super) fn q3_k(block: &[u8], j: usize) -> Group {
    let (high, low) = (&block[..32], &block[32 + j / 4 * 32..][..32]);
    let packed = &block[96..108];
    // Eight bytes hold the low four bits of two scales, four bytes the high two bits of four.
    let scale = |index: usize| {
        let low = nibble(packed[index % 8], index / 8);
        let high = packed[8 + index % 4] >> (2 * (index / 4)) & 3;
        f32::from((low | high << 4) as i8 - 32)
    };
    let codes = std::array::from_fn(|i| {
        let low = low[i] >> (2 * (j % 4)) & 3;
        let high = high[i] >> j & 1;
        (low | high << 2) as i8 - 4
    });
    let scale = Scale {
        unit: half_at(block, 108),
        by: [scale(2 * j), scale(2 * j + 1)],
    };
    Group::scaled(codes, scale)
}

/// Scale and minimum of a group in the 12 bytes of Q4_K and Q5_K: six bits each.
struct SixBits {
    scale: f32,
    min: f32,
}

impl SixBits {
    fn new(packed: &[u8], j: usize) -> Self {
        let (scale, min) = if j < 4 {
            (packed[j] & 63, packed[j + 4] & 63)
        } else {
            (
                (packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4),
                (packed[j + 4] >> 4) | (packed[j] >> 6 << 4),
            )
        };
        Self {
            scale: f32::from(scale),
            min: f32::from(min),
        }
    }
}

/// The group of a block that begins with f16 d, f16 dmin and 12 bytes of scales and minima.
fn with_minima(block: &[u8], j: usize, codes: [i8; 32]) -> Group {
    let SixBits { scale, min } = SixBits::new(&block[4..16], j);
    Group {
        codes,
        scale: Scale::same(half_at(block, 0), scale),
        min: Scale::same(-half_at(block, 2), min),
    }
}

/// f16 d, f16 dmin, 12 bytes of 6-bit scales and minima, 128 bytes: 32 bytes hold two groups, low
/// nibbles first.
pub(super) fn q4_k(block: &[u8], j: usize) -> Group {
    let bytes = &block[16 + j / 2 * 32..][..32];
    let codes = std::array::from_fn(|i| nibble(bytes[i], j) as i8);
    with_minima(block, j, codes)
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles, those of group `j` at bit `j`.
pub(super) fn q5_k(block: &[u8], j: usize) -> Group {
    let (high, bytes) = (&block[16..48], &block[48 + j / 2 * 32..][..32]);
    let codes = std::array::from_fn(|i| (nibble(bytes[i], j) | (high[i] >> j & 1) << 4) as i8);
    with_minima(block, j, codes)
}

/// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales, f16 d. A half of 128
/// weights has 64 bytes of low nibbles (groups 0 and 1 low, 2 and 3 high) and 32 bytes of pairs
/// (group `g` at bit `2g`).
pub(super) fn q6_k(block: &[u8], j: usize) -> Group {
    let (part, g) = (j / 4, j % 4);
    let low = &block[part * 64 + g % 2 * 32..][..32];
    let high = &block[128 + part * 32..][..32];
    let codes =
        std::array::from_fn(|i| (nibble(low[i], g / 2) | (high[i] >> (2 * g) & 3) << 4) as i8 - 32);
    let scale = Scale {
        unit: half_at(block, 208),
        by: [block[192 + 2 * j], block[193 + 2 * j]].map(|scale| f32::from(scale as i8)),
    };
    Group::scaled(codes, scale)
}
