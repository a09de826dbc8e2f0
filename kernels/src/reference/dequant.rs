//! Weights to f32, those of the older types one at a time, straight from the description of each
//! format (GGML, `ggml-common.h`). The others are read by [`dequantize`], whose oracle is
//! llama.cpp's own (`kernels/tests/dequantized.rs`).

use crate::backend::{BlockSize, WeightType, WeightView};
use crate::error::Result;
use crate::quant::dequantize;

/// The weights `[rows, cols]` of a matrix, each row of which takes `row_bytes` bytes.
pub(super) fn weights(view: &WeightView<'_>, row_bytes: usize) -> Result<Vec<f32>> {
    let BlockSize { weights, bytes } = view.dtype.block();
    let mut row = vec![0.0; row_bytes / bytes * weights];
    let mut all = Vec::with_capacity(view.rows * view.cols);
    for stored in view.bytes.chunks_exact(row_bytes.max(1)) {
        if is_told(view.dtype) {
            let each = row.iter_mut().enumerate();
            each.for_each(|(i, out)| *out = weight(view.dtype, stored, i));
        } else {
            dequantize(view.dtype, stored, &mut row)?;
        }
        all.extend_from_slice(&row[view.skip..][..view.cols]);
    }
    Ok(all)
}

/// Whether [`weight`] knows a type.
const fn is_told(dtype: WeightType) -> bool {
    matches!(
        dtype,
        WeightType::F32
            | WeightType::F16
            | WeightType::BF16
            | WeightType::Q8_0
            | WeightType::Q4_0
            | WeightType::Q4_1
            | WeightType::Q4K
            | WeightType::Q6K
    )
}

/// Weight `index` of consecutive blocks of type `dtype`.
fn weight(dtype: WeightType, bytes: &[u8], index: usize) -> f32 {
    let BlockSize {
        weights,
        bytes: size,
    } = dtype.block();
    let block = &bytes[index / weights * size..][..size];
    let i = index % weights;
    match dtype {
        WeightType::F32 => f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
        WeightType::F16 => half(block, 0),
        WeightType::BF16 => half::bf16::from_le_bytes([block[0], block[1]]).to_f32(),
        WeightType::Q8_0 => half(block, 0) * f32::from(block[2 + i] as i8),
        WeightType::Q4_0 => half(block, 0) * (f32::from(nibble(&block[2..], i)) - 8.0),
        WeightType::Q4_1 => half(block, 0) * f32::from(nibble(&block[4..], i)) + half(block, 2),
        WeightType::Q4K => q4_k(block, i),
        WeightType::Q6K => q6_k(block, i),
        _ => unreachable!("`is_told` says which types there are"),
    }
}

/// The half at byte `at`.
fn half(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 4-bit weight `i` of 32: the low nibbles hold the first 16.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    if i < 16 {
        bytes[i] & 15
    } else {
        bytes[i - 16] >> 4
    }
}

/// Super-block of 256: `d`, `dmin`, 12 bytes of eight 6-bit scales and minima, 128 bytes of
/// nibbles.
fn q4_k(block: &[u8], i: usize) -> f32 {
    let (d, dmin, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    let group = i / 32;
    let (scale, min) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        (
            (low & 15) | (packed[group - 4] >> 6 << 4),
            (low >> 4) | (packed[group] >> 6 << 4),
        )
    };
    // Two groups share 32 bytes: the even one in the low nibbles.
    let byte = block[16 + group / 2 * 32 + i % 32];
    let quant = if group.is_multiple_of(2) {
        byte & 15
    } else {
        byte >> 4
    };
    d * f32::from(scale) * f32::from(quant) - dmin * f32::from(min)
}

/// Super-block of 256: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales, `d`.
fn q6_k(block: &[u8], i: usize) -> f32 {
    let (low, high, scales, d) = (
        &block[..128],
        &block[128..192],
        &block[192..208],
        half(block, 208),
    );
    // Halves of 128 weights; in each, four rows of 32.
    let (part, row, lane) = (i / 128, i % 128 / 32, i % 32);
    let byte = low[part * 64 + row % 2 * 32 + lane];
    let nibble = if row < 2 { byte & 15 } else { byte >> 4 };
    let pair = (high[part * 32 + lane] >> (2 * row)) & 3;
    let quant = i32::from(nibble | (pair << 4)) - 32;
    d * f32::from(scales[i / 16] as i8) * quant as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_by_hand() {
        let one = half::f16::from_f32(1.0).to_le_bytes();
        let mut q4_0 = [0u8; 18];
        q4_0[..2].copy_from_slice(&one);
        q4_0[2] = 0x9f;
        assert_eq!(weight(WeightType::Q4_0, &q4_0, 0), 7.0);
        assert_eq!(weight(WeightType::Q4_0, &q4_0, 16), 1.0);
        assert_eq!(weight(WeightType::Q4_0, &q4_0, 1), -8.0);

        let mut q4_k = [0u8; 144];
        q4_k[..2].copy_from_slice(&one);
        q4_k[2..4].copy_from_slice(&one);
        q4_k[4] = 0x80 | 5; // scale 0 is 5; top bits of scale 4: 2
        q4_k[8] = 0xc0 | 3; // min 0 is 3; top bits of min 4: 3
        q4_k[12] = 0x21; // low bits of scale 4: 1, of min 4: 2
        q4_k[16] = 0x0a;
        q4_k[16 + 64] = 0x07;
        assert_eq!(weight(WeightType::Q4K, &q4_k, 0), 5.0 * 10.0 - 3.0);
        assert_eq!(weight(WeightType::Q4K, &q4_k, 128), 33.0 * 7.0 - 50.0);

        let mut q6_k = [0u8; 210];
        q6_k[208..].copy_from_slice(&one);
        q6_k[192 + 2] = 0xff; // scale of weights 32..48: -1
        q6_k[32] = 0x05; // low nibble of weight 32, high nibble of weight 96
        q6_k[128] = 0b00_00_10_00; // high bits of weight 32: 2
        assert_eq!(weight(WeightType::Q6K, &q6_k, 32), -5.0);
    }
}
