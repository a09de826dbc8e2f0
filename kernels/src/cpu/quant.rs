//! GGML's quantised blocks, read plainly. Weights of a group of 32 share scales: `weight = code *
//! scale + min`.
//!
//! Layouts: ggml's `ggml-common.h` (structs) and `ggml-quants.c` (`dequantize_row_*`). In f32 the
//! product is exact for every type but Q6_K, so the value does not depend on how the formula is
//! arranged.

use half::{bf16, f16};

use crate::backend::{BlockSize, WeightType};
use crate::error::{Error, Result};

/// Weights of a group.
pub(crate) const GROUP: usize = 32;

/// 32 consecutive weights of one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Group {
    /// Integer codes, as the type defines them; Q4 codes are 0..15, Q6_K codes -32..31.
    pub codes: [i8; GROUP],
    /// Scale of the first and of the last 16 codes; they differ in Q6_K only.
    pub scale: [f32; 2],
    /// Added to every weight.
    pub min: f32,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            codes: [0; GROUP],
            scale: [0.0; 2],
            min: 0.0,
        }
    }
}

impl Group {
    fn weight(&self, i: usize) -> f32 {
        f32::from(self.codes[i]) * self.scale[i / 16] + self.min
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Codes of 16 bytes: low nibbles first, then high nibbles.
fn nibbles(bytes: &[u8]) -> [i8; GROUP] {
    std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 } as i8)
}

/// Group `index` of consecutive quantised blocks. `None` for float types, which have no groups.
pub(crate) fn group(dtype: WeightType, bytes: &[u8], index: usize) -> Option<Group> {
    let BlockSize {
        weights,
        bytes: size,
    } = dtype.block();
    let block = &bytes[index * GROUP / weights * size..][..size];
    let within = index % (weights / GROUP).max(1);
    match dtype {
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => None,
        WeightType::Q8_0 => Some(Group {
            codes: std::array::from_fn(|i| block[2 + i] as i8),
            scale: [half_at(block, 0); 2],
            min: 0.0,
        }),
        WeightType::Q4_0 => {
            let scale = half_at(block, 0);
            Some(Group {
                codes: nibbles(&block[2..]),
                scale: [scale; 2],
                min: -8.0 * scale,
            })
        }
        WeightType::Q4_1 => Some(Group {
            codes: nibbles(&block[4..]),
            scale: [half_at(block, 0); 2],
            min: half_at(block, 2),
        }),
        WeightType::Q4K => Some(group_q4k(block, within)),
        WeightType::Q6K => Some(group_q6k(block, within)),
    }
}

/// Q4_K: f16 d, f16 dmin, 12 bytes of 6-bit scales and minima, 128 bytes: 32 bytes hold two groups,
/// low nibbles first.
fn group_q4k(block: &[u8], j: usize) -> Group {
    let (d, dmin, s) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    let (scale, min) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (
            (s[j + 4] & 15) | (s[j - 4] >> 6 << 4),
            (s[j + 4] >> 4) | (s[j] >> 6 << 4),
        )
    };
    let q = &block[16 + j / 2 * 32..][..32];
    Group {
        codes: std::array::from_fn(|i| {
            (if j.is_multiple_of(2) {
                q[i] & 15
            } else {
                q[i] >> 4
            }) as i8
        }),
        scale: [d * f32::from(scale); 2],
        min: -(dmin * f32::from(min)),
    }
}

/// Q6_K: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales, f16 d. A half of
/// 128 weights has 64 bytes of low nibbles (groups 0 and 1 low, 2 and 3 high) and 32 bytes of pairs
/// (group `g` at bit `2g`).
fn group_q6k(block: &[u8], j: usize) -> Group {
    let (part, g) = (j / 4, j % 4);
    let low = &block[part * 64 + g % 2 * 32..][..32];
    let high = &block[128 + part * 32..][..32];
    let d = half_at(block, 208);
    let codes = std::array::from_fn(|i| {
        let nibble = if g < 2 { low[i] & 15 } else { low[i] >> 4 };
        (nibble | (high[i] >> (2 * g) & 3) << 4) as i8 - 32
    });
    let scale = |half: usize| d * f32::from(block[192 + 2 * j + half] as i8);
    Group {
        codes,
        scale: [scale(0), scale(1)],
        min: 0.0,
    }
}

/// Weights of consecutive blocks as f32. `bytes`: `dtype.bytes(out.len())` bytes.
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
mod tests {
    use super::*;

    fn bytes_of(dtype: WeightType, len: usize, seed: u64) -> Vec<u8> {
        crate::cpu::testing::weights(dtype, 1, len, seed)
    }

    fn h(b: &[u8], at: usize) -> f32 {
        half_at(b, at)
    }

    /// ggml's loops, transcribed one to one.
    fn ggml(dtype: WeightType, b: &[u8]) -> Vec<f32> {
        let mut y = vec![0.0; dtype.block().weights];
        match dtype {
            WeightType::Q8_0 => (0..32).for_each(|j| y[j] = f32::from(b[2 + j] as i8) * h(b, 0)),
            WeightType::Q4_0 => (0..16).for_each(|j| {
                y[j] = (i32::from(b[2 + j] & 15) - 8) as f32 * h(b, 0);
                y[j + 16] = (i32::from(b[2 + j] >> 4) - 8) as f32 * h(b, 0);
            }),
            WeightType::Q4_1 => (0..16).for_each(|j| {
                y[j] = f32::from(b[4 + j] & 15) * h(b, 0) + h(b, 2);
                y[j + 16] = f32::from(b[4 + j] >> 4) * h(b, 0) + h(b, 2);
            }),
            WeightType::Q4K => {
                let (d, min, q) = (h(b, 0), h(b, 2), &b[4..16]);
                let get = |j: usize| match j {
                    0..4 => (q[j] & 63, q[j + 4] & 63),
                    _ => (
                        (q[j + 4] & 0xF) | ((q[j - 4] >> 6) << 4),
                        (q[j + 4] >> 4) | ((q[j] >> 6) << 4),
                    ),
                };
                let (mut out, mut is) = (0, 0);
                for qs in b[16..].chunks(32) {
                    let ((s1, m1), (s2, m2)) = (get(is), get(is + 1));
                    for (l, q) in qs.iter().enumerate() {
                        y[out + l] = d * f32::from(s1) * f32::from(q & 15) - min * f32::from(m1);
                        y[out + 32 + l] =
                            d * f32::from(s2) * f32::from(q >> 4) - min * f32::from(m2);
                    }
                    out += 64;
                    is += 2;
                }
            }
            WeightType::Q6K => {
                for n in 0..2 {
                    let (ql, qh, sc) = (&b[64 * n..], &b[128 + 32 * n..], &b[192 + 8 * n..]);
                    for l in 0..32 {
                        let q = [
                            (ql[l] & 15) | ((qh[l] & 3) << 4),
                            (ql[l + 32] & 15) | (((qh[l] >> 2) & 3) << 4),
                            (ql[l] >> 4) | (((qh[l] >> 4) & 3) << 4),
                            (ql[l + 32] >> 4) | (((qh[l] >> 6) & 3) << 4),
                        ];
                        for (i, q) in q.into_iter().enumerate() {
                            let scale = f32::from(sc[l / 16 + 2 * i] as i8);
                            y[128 * n + 32 * i + l] =
                                h(b, 208) * scale * (i32::from(q) - 32) as f32;
                        }
                    }
                }
            }
            _ => unreachable!("float types have no blocks"),
        }
        y
    }

    #[test]
    fn blocks_read_as_ggml_reads_them() {
        for dtype in [
            WeightType::Q8_0,
            WeightType::Q4_0,
            WeightType::Q4_1,
            WeightType::Q4K,
            WeightType::Q6K,
        ] {
            for seed in 0..20 {
                let BlockSize {
                    weights,
                    bytes: size,
                } = dtype.block();
                let bytes = bytes_of(dtype, weights * 2, seed);
                let mut out = vec![0.0; weights * 2];
                dequantize(dtype, &bytes, &mut out).unwrap();
                assert_eq!(out[..weights], ggml(dtype, &bytes[..size]), "{dtype:?}");
                assert_eq!(out[weights..], ggml(dtype, &bytes[size..]), "{dtype:?}");
            }
        }
    }

    #[test]
    fn blocks_built_by_hand() {
        // Q4_1, d = 0.5, m = -1: byte j holds codes j and 15 - j.
        let mut block = [
            f16::from_f32(0.5).to_le_bytes(),
            f16::from_f32(-1.0).to_le_bytes(),
        ]
        .concat();
        block.extend((0..16u8).map(|j| j | (15 - j) << 4));
        let mut out = [0.0; 32];
        dequantize(WeightType::Q4_1, &block, &mut out).unwrap();
        assert_eq!(
            (out[0], out[3], out[15], out[16], out[31]),
            (-1.0, 0.5, 6.5, 6.5, -1.0)
        );

        // Q6_K, d = 0.25; weight 200 is in the second half (72 = group 2 at 8): low nibble high of
        // byte 64 + 8.
        let mut block = vec![0u8; 210];
        block[208..].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        block[64 + 8] = 0x50;
        block[128 + 32 + 8] = 0b11 << 4;
        block[192 + 12] = (-3i8) as u8;
        let mut out = [0.0; 256];
        dequantize(WeightType::Q6K, &block, &mut out).unwrap();
        assert_eq!(out[200], 0.25 * -3.0 * (0x35 - 32) as f32);
        assert_eq!((out[201], out[199], out[0]), (24.0, 24.0, 0.0));

        let mut out = [0.0; 2];
        dequantize(WeightType::BF16, &[0x80, 0x3f, 0x40, 0xc0], &mut out).unwrap();
        assert_eq!(out, [1.0, -3.0]);
        dequantize(WeightType::F16, &[0x00, 0x3c, 0x00, 0xc2], &mut out).unwrap();
        assert_eq!(out, [1.0, -3.0]);
    }

    #[test]
    fn wrong_sizes_are_refused() {
        let result = dequantize(WeightType::Q4_0, &[0; 18], &mut [0.0; 33]);
        assert!(matches!(
            result,
            Err(Error::Multiple {
                multiple: 32,
                got: 33,
                ..
            })
        ));
        let result = dequantize(WeightType::Q4_0, &[0; 17], &mut [0.0; 32]);
        assert!(matches!(
            result,
            Err(Error::Shape {
                got: 17,
                want: 18,
                ..
            })
        ));
    }
}
