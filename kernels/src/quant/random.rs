//! Random weights in the blocks of any type, for tests and benches.

use half::{bf16, f16};

use crate::backend::{BlockSize, WeightType};

/// Where a type keeps a scale or minimum in half precision, and its size for weights of about unit
/// variance.
struct HalfAt {
    at: usize,
    size: f32,
}

/// The halves of a block.
fn halves(dtype: WeightType) -> Vec<HalfAt> {
    let list: &[(usize, f32)] = match dtype {
        WeightType::F32 | WeightType::BF16 | WeightType::Iq1M | WeightType::Mxfp4 => &[],
        WeightType::F16 => &[(0, 1.0)],
        WeightType::Q8_0 | WeightType::Iq4Nl => &[(0, 0.014)],
        WeightType::Q4_0 => &[(0, 0.2)],
        WeightType::Q4_1 => &[(0, 0.2), (2, -1.5)],
        WeightType::Q5_0 => &[(0, 0.1)],
        WeightType::Q5_1 => &[(0, 0.1), (2, -1.5)],
        WeightType::Q2K => &[(80, 0.1), (82, 0.13)],
        WeightType::Q3K => &[(108, 0.024)],
        WeightType::Q4K => &[(0, 0.006), (2, 0.04)],
        WeightType::Q5K => &[(0, 0.003), (2, 0.04)],
        WeightType::Q6K => &[(208, 0.0007)],
        WeightType::Iq1S => &[(0, 0.15)],
        WeightType::Iq2Xxs | WeightType::Iq2Xs | WeightType::Iq2S => &[(0, 0.018)],
        WeightType::Iq3Xxs => &[(0, 0.0066)],
        WeightType::Iq3S => &[(0, 0.007)],
        WeightType::Iq4Xs => &[(0, 0.0008)],
        WeightType::Tq1_0 => &[(52, 1.2)],
        WeightType::Tq2_0 => &[(64, 1.0)],
    };
    list.iter().map(|&(at, size)| HalfAt { at, size }).collect()
}

/// `len` weights as a file holds them, in whole blocks: random codes under moderate scales, some of
/// them negative where a scale may be. `next` gives random words.
pub fn random_blocks(dtype: WeightType, len: usize, mut next: impl FnMut() -> u64) -> Vec<u8> {
    let BlockSize {
        weights,
        bytes: size,
    } = dtype.block();
    let mut bytes = Vec::with_capacity(len / weights * size);
    for _ in 0..len / weights {
        let mut block: Vec<u8> = (0..size).map(|_| (next() >> 24) as u8).collect();
        // In 1/2 .. 3/2, of either sign; then of which sign.
        let mut moderate = || {
            let word = next();
            let size = 0.5 + (word >> 40) as f32 / (1 << 24) as f32;
            if word & 8 == 0 { size } else { -size }
        };
        for HalfAt { at, size } in halves(dtype) {
            let half = f16::from_f32(size * moderate());
            block[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        match dtype {
            WeightType::F32 => block.copy_from_slice(&moderate().to_le_bytes()),
            WeightType::BF16 => {
                block.copy_from_slice(&bf16::from_f32(moderate()).to_le_bytes());
            }
            // One of 1/4, 1/2, 1.
            WeightType::Mxfp4 => block[0] = 125 + block[0] % 3,
            WeightType::Iq1M => {
                let scale = f16::from_f32(0.15 * moderate()).to_bits();
                for (k, byte) in block[48..].iter_mut().skip(1).step_by(2).enumerate() {
                    *byte = *byte & 15 | ((scale >> (4 * k) & 15) as u8) << 4;
                }
            }
            _ => {}
        }
        bytes.extend(block);
    }
    bytes
}
