//! Products against exact sums, and bit for bit against themselves in every way of calling them.

mod units;

use crate::backend::{WeightType, WeightView};
use crate::cpu::device::{Activations, CpuBackend};
use crate::cpu::matmul;
use crate::cpu::pack::CpuMatrix;
use crate::cpu::simd::SimdLevel;
use crate::cpu::testing::{TYPES, activations, backend, best, load, shapes, weights};
use crate::error::Error;
use crate::quant::{Group, dequantize, group};

const MODES: [Activations; 2] = [Activations::Int8, Activations::F32];

/// The bits of a product with a single part.
fn product(
    backend: &CpuBackend,
    dtype: WeightType,
    (n, cols): (usize, usize),
    x: &[f32],
    rows: usize,
) -> Vec<u32> {
    let matrix = load(backend, &[(dtype, n)], cols, &[weights(dtype, n, cols, 11)]);
    let mut out = vec![f32::NAN; rows * n];
    matmul::matmul(backend, &matrix, x, rows, None, &mut out).unwrap();
    out.into_iter().map(f32::to_bits).collect()
}

#[test]
fn products_are_close_to_exact_sums() {
    let rows = 5;
    for dtype in TYPES {
        for (n, cols) in shapes(dtype) {
            let bytes = weights(dtype, n, cols, 11);
            let mut dense = vec![0.0; n * cols];
            dequantize(dtype, &bytes, &mut dense).unwrap();
            let x = activations(rows * cols, 5);
            for mode in MODES {
                let got = product(&best(mode, 2), dtype, (n, cols), &x, rows);
                for (i, got) in got.into_iter().enumerate() {
                    let (x, w) = (&x[i / n * cols..][..cols], &dense[i % n * cols..][..cols]);
                    let pairs = || x.iter().zip(w).map(|(&x, &w)| (f64::from(x), f64::from(w)));
                    let exact: f64 = pairs().map(|(x, w)| x * w).sum();
                    let size: f64 = pairs().map(|(x, w)| (x * w).abs()).sum();
                    // f32 sums: a rounding of 2^-24 per addition, at most. Rounded activations: an
                    // error of up to half a step, max/254, for each input; outliers have magnitude
                    // 8.
                    let float =
                        matches!(dtype, WeightType::F32 | WeightType::F16 | WeightType::BF16);
                    let rounding = w.iter().map(|w| f64::from(w.abs())).sum::<f64>() * 8.0 / 254.0;
                    let tolerance = size * (cols + 4) as f64 * 2f64.powi(-24)
                        + if mode == Activations::Int8 && !float {
                            rounding * 1.001 + size * 1e-4
                        } else {
                            0.0
                        };
                    let error = (f64::from(f32::from_bits(got)) - exact).abs();
                    assert!(
                        error <= tolerance,
                        "{dtype:?} {mode:?} {n}x{cols} at {i}: {error} > {tolerance}"
                    );
                }
            }
        }
    }
}

/// The rounded product in plain scalar code: quantise, exact dot products, the two additions per
/// group.
fn int8_by_hand(dtype: WeightType, w: &[u8], x: &[f32]) -> f32 {
    let mut acc = 0f32;
    for (g, x) in x.chunks(32).enumerate() {
        let group = group(dtype, w, g).unwrap();
        let d = x.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
        let q: Vec<i32> = x
            .iter()
            .map(|x| {
                if d > 0.0 {
                    (x * (1.0 / d)).round_ties_even() as i32
                } else {
                    0
                }
            })
            .collect();
        let sum = |half: usize| q[16 * half..][..16].iter().sum::<i32>();
        let dot = |half: usize| {
            let inputs = 16 * half..16 * (half + 1);
            inputs
                .map(|i| q[i] * i32::from(group.codes[i]))
                .sum::<i32>()
        };
        acc = group_by_hand(dtype, &group, d, [dot(0), dot(1)], [sum(0), sum(1)], acc);
    }
    acc
}

/// Adds one group: `d` is the scale of the activations, `dots` are the sums of their codes times
/// the weights', `sums` those of their codes, of each half.
fn group_by_hand(
    dtype: WeightType,
    group: &Group,
    d: f32,
    dots: [i32; 2],
    sums: [i32; 2],
    acc: f32,
) -> f32 {
    let (scale, min) = (group.scale, group.min);
    let (dot, sum) = ((dots[0] + dots[1]) as f32, (sums[0] + sums[1]) as f32);
    let factored =
        |factors: [f32; 2], of: [i32; 2]| factors[0] as i32 * of[0] + factors[1] as i32 * of[1];
    match dtype {
        // Codes are stored without a sign.
        WeightType::Q4_0 => {
            let unsigned = dot + 8.0 * sum;
            let acc = unsigned.mul_add(scale.of(0) * d, acc);
            (-8.0 * scale.of(0)).mul_add(d * sum, acc)
        }
        WeightType::Q4_1 | WeightType::Q4K => min
            .of(0)
            .mul_add(d * sum, dot.mul_add(scale.of(0) * d, acc)),
        // Around the middle of the codes.
        WeightType::Q5_1 | WeightType::Q5K => {
            let acc = (dot - 16.0 * sum).mul_add(scale.of(0) * d, acc);
            scale.of(0).mul_add(16.0, min.of(0)).mul_add(d * sum, acc)
        }
        WeightType::Q8_0
        | WeightType::Q5_0
        | WeightType::Iq4Nl
        | WeightType::Iq4Xs
        | WeightType::Mxfp4 => dot.mul_add(scale.of(0) * d, acc),
        WeightType::Tq1_0 | WeightType::Tq2_0 => {
            let acc = (dot + sum).mul_add(scale.unit * d, acc);
            sum.mul_add(-scale.unit * d, acc)
        }
        WeightType::Q2K => {
            let acc = (factored(scale.by, dots) as f32).mul_add(scale.unit * d, acc);
            (factored(min.by, sums) as f32).mul_add(min.unit * d, acc)
        }
        WeightType::Q3K => (factored(scale.by, dots) as f32).mul_add(scale.unit * d, acc),
        _ => {
            let acc = (dots[0] as f32).mul_add(scale.of(0) * d, acc);
            (dots[1] as f32).mul_add(scale.of(1) * d, acc)
        }
    }
}

#[test]
fn rounded_products_equal_the_scalar_formula() {
    for dtype in TYPES.into_iter().filter(|dtype| dtype.block().weights > 1) {
        let (n, cols, rows) = (19, 768, 6);
        let x = activations(rows * cols, 9);
        let bytes = weights(dtype, n, cols, 11);
        let row_bytes = dtype.bytes(cols).unwrap();
        let got = product(&best(Activations::Int8, 2), dtype, (n, cols), &x, rows);
        for (i, got) in got.into_iter().enumerate() {
            let want = int8_by_hand(
                dtype,
                &bytes[i % n * row_bytes..][..row_bytes],
                &x[i / n * cols..][..cols],
            );
            assert_eq!(f32::from_bits(got), want, "{dtype:?} at {i}");
        }
    }
}

#[test]
fn float_products_equal_the_scalar_formula() {
    for dtype in TYPES {
        let (n, cols, rows) = (19, 768, 7);
        let x = activations(rows * cols, 9);
        let mut dense = vec![0.0; n * cols];
        dequantize(dtype, &weights(dtype, n, cols, 11), &mut dense).unwrap();
        let got = product(&best(Activations::F32, 2), dtype, (n, cols), &x, rows);
        for (i, got) in got.into_iter().enumerate() {
            let (x, w) = (&x[i / n * cols..][..cols], &dense[i % n * cols..][..cols]);
            let want = x.iter().zip(w).fold(0f32, |acc, (x, w)| w.mul_add(*x, acc));
            assert_eq!(f32::from_bits(got), want, "{dtype:?} at {i}");
        }
    }
}

#[test]
fn instruction_sets_give_the_same_bits() {
    for dtype in TYPES {
        for (n, cols) in shapes(dtype) {
            for mode in MODES {
                for rows in 1..=7 {
                    let x = activations(rows * cols, 21);
                    let portable = product(
                        &backend(mode, SimdLevel::Portable, 1),
                        dtype,
                        (n, cols),
                        &x,
                        rows,
                    );
                    let found = product(&best(mode, 1), dtype, (n, cols), &x, rows);
                    assert_eq!(portable, found, "{dtype:?} {mode:?} {n}x{cols} rows {rows}");
                }
            }
        }
    }
}

#[test]
fn a_row_alone_and_in_a_batch_has_the_same_bits() {
    for dtype in TYPES {
        for mode in MODES {
            let (n, cols) = (43, 256);
            let x = activations(256 * cols, 31);
            let backend = best(mode, 2);
            let batch = product(&backend, dtype, (n, cols), &x, 256);
            for rows in [1, 2, 3, 4, 5, 6, 7, 64, 97] {
                for first in [0, 5, 256 - rows] {
                    let part = product(
                        &backend,
                        dtype,
                        (n, cols),
                        &x[first * cols..][..rows * cols],
                        rows,
                    );
                    assert_eq!(
                        part,
                        batch[first * n..][..rows * n],
                        "{dtype:?} {mode:?} rows {rows} from {first}"
                    );
                }
            }
        }
    }
}

#[test]
fn thread_counts_give_the_same_bits() {
    for dtype in TYPES {
        for mode in MODES {
            let (shape, rows) = ((517, 512), 9);
            let x = activations(rows * shape.1, 41);
            let one = product(&best(mode, 1), dtype, shape, &x, rows);
            for threads in [2, 4] {
                assert_eq!(
                    one,
                    product(&best(mode, threads), dtype, shape, &x, rows),
                    "{dtype:?} {mode:?} {threads}"
                );
            }
        }
    }
}

#[test]
fn stacked_parts_and_bias_equal_separate_products() {
    let (cols, rows) = (256, 5);
    let parts = [
        (WeightType::Q4_1, 12),
        (WeightType::F16, 9),
        (WeightType::Q6K, 24),
        (WeightType::Q8_0, 3),
    ];
    let total: usize = parts.iter().map(|part| part.1).sum();
    let bytes: Vec<_> = parts
        .iter()
        .map(|&(dtype, n)| weights(dtype, n, cols, 11))
        .collect();
    let (x, bias) = (activations(rows * cols, 51), activations(total, 52));
    for mode in MODES {
        let backend = best(mode, 2);
        let matrix = load(&backend, &parts, cols, &bytes);
        let mut out = vec![f32::NAN; rows * total];
        matmul::matmul(&backend, &matrix, &x, rows, Some(&bias), &mut out).unwrap();
        let mut first = 0;
        for (dtype, n) in parts {
            let alone = product(&backend, dtype, (n, cols), &x, rows);
            for (i, alone) in alone.into_iter().enumerate() {
                let at = first + i % n;
                assert_eq!(
                    out[i / n * total + at],
                    f32::from_bits(alone) + bias[at],
                    "{dtype:?} {mode:?} at {i}"
                );
            }
            first += n;
        }
    }
}

#[test]
fn scales_that_overflow_a_half_are_kept() {
    // Q4_0 with d = 30000: the minimum -8 d is no half.
    let mut bytes = half::f16::from_f32(30000.0).to_le_bytes().to_vec();
    bytes.extend([0x9f; 16]);
    let backend = best(Activations::F32, 1);
    let matrix = load(&backend, &[(WeightType::Q4_0, 1)], 32, &[bytes]);
    let mut out = [0.0];
    matmul::matmul(&backend, &matrix, &[1.0; 32], 1, None, &mut out).unwrap();
    assert_eq!(out[0], 16.0 * 30000.0 * (7.0 + 1.0));
}

#[test]
fn zeros_extremes_and_non_finite_activations() {
    let (n, cols) = (8, 64);
    for dtype in [WeightType::Q8_0, WeightType::Q4_1] {
        for mode in MODES {
            let backend = best(mode, 1);
            let run = |x: &[f32]| -> Vec<f32> {
                product(&backend, dtype, (n, cols), x, 1)
                    .into_iter()
                    .map(f32::from_bits)
                    .collect()
            };
            assert!(run(&[0.0; 64]).iter().all(|&y| y == 0.0));
            assert!(
                run(&[f32::MIN_POSITIVE / 8.0; 64])
                    .iter()
                    .all(|y| y.is_finite())
            );
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = [0.5; 64];
                x[40] = bad;
                assert!(
                    run(&x).iter().all(|y| !y.is_finite()),
                    "{dtype:?} {mode:?} {bad}"
                );
            }
        }
    }
    // All codes at their extremes: -128 in Q8_0, where files hold -127 at least, must not saturate.
    let mut bytes = half::f16::ONE.to_le_bytes().to_vec();
    bytes.extend([0x80; 32]);
    for simd in [SimdLevel::Portable, SimdLevel::detect()] {
        let backend = backend(Activations::Int8, simd, 1);
        let matrix = load(
            &backend,
            &[(WeightType::Q8_0, 1)],
            32,
            std::slice::from_ref(&bytes),
        );
        let mut out = [0.0];
        matmul::matmul(&backend, &matrix, &[-127.0; 32], 1, None, &mut out).unwrap();
        assert_eq!(out[0], 32.0 * 127.0 * 128.0);
    }
}

#[test]
fn wrong_shapes_are_refused_before_anything_is_written() {
    let backend = best(Activations::Int8, 1);
    let bytes = weights(WeightType::Q4_0, 8, 64, 1);
    let load = |dtype, rows, cols, bytes: &[u8]| {
        CpuMatrix::load(&backend.pool, &[WeightView::new(dtype, rows, cols, bytes)])
            .map(|matrix| matrix.rows())
    };
    assert!(matches!(
        load(WeightType::Q4_0, 8, 65, &bytes),
        Err(Error::Multiple {
            got: 65,
            multiple: 32,
            ..
        })
    ));
    assert!(matches!(
        load(WeightType::Q4_0, 9, 64, &bytes),
        Err(Error::Shape { what: "bytes", .. })
    ));
    assert!(matches!(
        load(WeightType::Q4_0, usize::MAX, 64, &bytes),
        Err(Error::Shape { .. })
    ));
    let view = WeightView::new(WeightType::Q4_0, 8, 64, &bytes);
    let other = WeightView::new(WeightType::F32, 1, 1, &[0; 4]);
    assert!(CpuMatrix::load(&backend.pool, &[view, other]).is_err());

    let matrix = CpuMatrix::load(&backend.pool, &[view]).unwrap();
    let (x, mut out) = ([1.0; 128], [7.0; 16]);
    let mut run = |x: &[f32], rows, bias: Option<&[f32]>, len: usize| {
        matmul::matmul(&backend, &matrix, x, rows, bias, &mut out[..len]).is_err()
    };
    assert!(run(&x[..127], 2, None, 16));
    assert!(run(&x, 2, None, 15));
    assert!(run(&x, 2, Some(&[0.0; 7]), 16));
    assert!(run(&x, usize::MAX, None, 16));
    assert!(!run(&x, 0, None, 0));
    assert_eq!(out, [7.0; 16]);
}
