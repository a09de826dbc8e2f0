use super::group::half_at;
use super::*;

fn bytes_of(dtype: WeightType, len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    random_blocks(dtype, len, || {
        state = state.wrapping_add(1).wrapping_mul(0x5851_f42d_4c95_7f2d);
        state ^ (state >> 29)
    })
}

fn bits(weights: &[f32]) -> Vec<u32> {
    weights.iter().map(|weight| weight.to_bits()).collect()
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
                    y[out + 32 + l] = d * f32::from(s2) * f32::from(q >> 4) - min * f32::from(m2);
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
                        y[128 * n + 32 * i + l] = h(b, 208) * scale * (i32::from(q) - 32) as f32;
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
            let want = [&bytes[..size], &bytes[size..]].map(|block| ggml(dtype, block));
            assert_eq!(bits(&out), bits(&want.concat()), "{dtype:?}");
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
