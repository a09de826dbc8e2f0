//! Cases without a cache: buffers, norms, activations, weights.

use super::{Check, Named, Random, Suite, refused};
use crate::backend::{Backend, WeightType, WeightView};
use crate::fixed;
use crate::reference::{ReferenceBackend, ReferenceMatrix};

/// Allocation, offsets, and their limits.
pub(super) fn buffers<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    for len in [0, 1, 7, 1000] {
        let case = format!("alloc {len}");
        let buffer = suite.backend.alloc(len).named(&case)?;
        let got = suite.download(&buffer, len)?;
        suite.compare(&case, &got, &vec![0.0; len], 0.0)?;
    }
    let values = suite.random.values(5);
    let mut buffer = suite.backend.alloc(9).named("alloc 9")?;
    suite
        .backend
        .upload(&values, &mut buffer, 3)
        .named("upload at 3")?;
    let mut got = vec![0.0; 4];
    suite
        .backend
        .download(&buffer, 4, &mut got)
        .named("download at 4")?;
    suite.compare("upload at 3, download at 4", &got, &values[1..], 0.0)?;
    refused(
        "upload past the end",
        suite.backend.upload(&values, &mut buffer, 5),
    )?;
    refused(
        "download past the end",
        suite.backend.download(&buffer, 6, &mut got),
    )
}

/// `rms_norm`.
pub(super) fn norms<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    for (rows, width) in [
        (0, 8),
        (1, 1),
        (1, 8),
        (3, 13),
        (2, 64),
        (33, 576),
        (70, 960),
    ] {
        let case = format!("rms_norm {rows} x {width}");
        let (x, weight) = (
            suite.random.values(rows * width),
            suite.random.values(width),
        );
        let mut want = vec![0.0; rows * width];
        ReferenceBackend
            .rms_norm(&x, &weight, 1e-5, rows, &mut want)
            .named(&case)?;
        let (x, weight) = (suite.upload(&x)?, suite.upload(&weight)?);
        let mut out = suite.backend.alloc(rows * width).named(&case)?;
        suite
            .backend
            .rms_norm(&x, &weight, 1e-5, rows, &mut out)
            .named(&case)?;
        let got = suite.download(&out, rows * width)?;
        suite.compare(&case, &got, &want, suite.tolerance.elementwise)?;
    }
    Ok(())
}

/// `add`, `silu_mul`, `gather_rows`.
pub(super) fn elementwise<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    for len in [0, 1, 7, 100, 20_001] {
        let case = format!("add {len}");
        let (mut want, y) = (suite.random.values(len + 2), suite.random.values(len + 1));
        let (mut x, device_y) = (suite.upload(&want)?, suite.upload(&y)?);
        ReferenceBackend.add(&mut want, &y, len).named(&case)?;
        suite.backend.add(&mut x, &device_y, len).named(&case)?;
        let got = suite.download(&x, len + 2)?;
        suite.compare(&case, &got, &want, 0.0)?;
    }
    for (rows, width) in [(0, 4), (1, 1), (3, 13), (5, 1536), (40, 256)] {
        let case = format!("silu_mul {rows} x {width}");
        // Buffers may be longer than the rows need.
        let mut gate_up = suite.random.values(rows * 2 * width + 10);
        // Beyond where the exponential overflows or vanishes.
        gate_up.iter_mut().step_by(3).for_each(|x| *x *= 60.0);
        let mut want = vec![0.0; rows * width];
        ReferenceBackend
            .silu_mul(&gate_up, rows, width, &mut want)
            .named(&case)?;
        let gate_up = suite.upload(&gate_up)?;
        let mut out = suite.backend.alloc(rows * width).named(&case)?;
        suite
            .backend
            .silu_mul(&gate_up, rows, width, &mut out)
            .named(&case)?;
        let got = suite.download(&out, rows * width)?;
        suite.compare(&case, &got, &want, suite.tolerance.elementwise)?;
    }
    let (x, rows) = (suite.random.values(5 * 7), [4, 0, 4, 2]);
    let device = suite.upload(&x)?;
    let (mut out, mut want) = (
        suite.backend.alloc(4 * 7).named("gather_rows")?,
        vec![0.0; 4 * 7],
    );
    suite
        .backend
        .gather_rows(&device, 7, &rows, &mut out)
        .named("gather_rows")?;
    ReferenceBackend
        .gather_rows(&x, 7, &rows, &mut want)
        .named("gather_rows")?;
    let got = suite.download(&out, 4 * 7)?;
    suite.compare("gather_rows", &got, &want, 0.0)
}

/// Every weight type.
const TYPES: [WeightType; 8] = [
    WeightType::F32,
    WeightType::F16,
    WeightType::BF16,
    WeightType::Q8_0,
    WeightType::Q4_0,
    WeightType::Q4_1,
    WeightType::Q4K,
    WeightType::Q6K,
];

/// Random weights of about unit variance in the blocks of `dtype`.
fn random_weights(random: &mut Random, dtype: WeightType, len: usize) -> Vec<u8> {
    let half = |at: usize, block: &mut [u8], scale: f32, random: &mut Random| {
        let x = half::f16::from_f32(scale * (0.5 + random.value().abs()));
        block[at..at + 2].copy_from_slice(&x.to_le_bytes());
    };
    let (weights, size) = dtype.block();
    let mut bytes = Vec::with_capacity(len / weights * size);
    for _ in 0..len / weights {
        let mut block: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
        match dtype {
            WeightType::F32 => block.copy_from_slice(&random.value().to_le_bytes()),
            WeightType::F16 => {
                block.copy_from_slice(&half::f16::from_f32(random.value()).to_le_bytes())
            }
            WeightType::BF16 => {
                block.copy_from_slice(&half::bf16::from_f32(random.value()).to_le_bytes())
            }
            WeightType::Q8_0 => half(0, &mut block, 0.014, random),
            WeightType::Q4_0 => half(0, &mut block, 0.2, random),
            WeightType::Q4_1 => {
                half(0, &mut block, 0.2, random);
                half(2, &mut block, -1.5, random);
            }
            WeightType::Q4K => {
                half(0, &mut block, 0.006, random);
                half(2, &mut block, 0.04, random);
            }
            WeightType::Q6K => half(208, &mut block, 0.0007, random),
        }
        bytes.extend(block);
    }
    bytes
}

/// `load_matrix`, `embed`, `matmul` for every weight type, alone and stacked.
pub(super) fn weights<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    for dtype in TYPES {
        let block = dtype.block().0;
        for (outputs, cols) in [
            (1, block),
            (5, 3 * block),
            (37, 256),
            (48, 576usize.next_multiple_of(block)),
        ] {
            matrix(suite, &[(dtype, outputs)], cols)?;
        }
    }
    matrix(
        suite,
        &[
            (WeightType::Q8_0, 24),
            (WeightType::F16, 7),
            (WeightType::Q4_1, 9),
        ],
        64,
    )?;
    matrix(suite, &[(WeightType::Q4K, 33), (WeightType::Q6K, 16)], 512)
}

fn matrix<B: Backend>(
    suite: &mut Suite<'_, B>,
    parts: &[(WeightType, usize)],
    cols: usize,
) -> Check {
    let name = format!("{parts:?} x {cols}");
    let bytes: Vec<Vec<u8>> = parts
        .iter()
        .map(|&(dtype, rows)| random_weights(&mut suite.random, dtype, rows * cols))
        .collect();
    let views: Vec<WeightView<'_>> = parts
        .iter()
        .zip(&bytes)
        .map(|(&(dtype, rows), bytes)| WeightView {
            dtype,
            rows,
            cols,
            bytes,
        })
        .collect();
    let case = format!("load_matrix {name}");
    let (matrix, reference) = (
        suite.backend.load_matrix(&views).named(&case)?,
        ReferenceBackend.load_matrix(&views).named(&case)?,
    );
    let outputs: usize = parts.iter().map(|part| part.1).sum();

    let ids: Vec<u32> = (0..outputs.min(9))
        .map(|_| suite.random.below(outputs) as u32)
        .collect();
    let case = format!("embed {name}");
    let (mut want, mut out) = (
        vec![0.0; ids.len() * cols],
        suite.backend.alloc(ids.len() * cols).named(&case)?,
    );
    ReferenceBackend
        .embed(&reference, &ids, &mut want)
        .named(&case)?;
    suite.backend.embed(&matrix, &ids, &mut out).named(&case)?;
    let got = suite.download(&out, want.len())?;
    suite.compare(&case, &got, &want, suite.tolerance.embed)?;
    refused(
        &format!("{case}, id out of range"),
        suite.backend.embed(&matrix, &[outputs as u32], &mut out),
    )?;

    let quantised = parts.iter().any(|part| part.0.block().0 > 1);
    let allowed = if quantised {
        suite.tolerance.matmul_quantised
    } else {
        suite.tolerance.matmul
    };
    for (rows, with_bias) in [(1, false), (2, true), (7, false), (33, true)] {
        let case = format!("matmul {rows} x {name}, bias {with_bias}");
        let x = suite.random.values(rows * cols);
        let bias = with_bias.then(|| suite.random.values(outputs));
        let mut want = vec![0.0; rows * outputs];
        ReferenceBackend
            .matmul(&reference, &x, rows, bias.as_ref(), &mut want)
            .named(&case)?;
        let (x, bias) = (
            suite.upload(&x)?,
            bias.map(|bias| suite.upload(&bias)).transpose()?,
        );
        let mut out = suite.backend.alloc(rows * outputs).named(&case)?;
        suite
            .backend
            .matmul(&matrix, &x, rows, bias.as_ref(), &mut out)
            .named(&case)?;
        let got = suite.download(&out, want.len())?;
        suite.compare_scaled(&case, &got, &want, allowed, scale(&want, cols))?;
    }
    units(
        suite,
        (&matrix, &reference),
        (outputs, cols),
        allowed,
        &name,
    )
}

/// What differences of a product are divided by: the root mean square. Of a single output that says
/// little: then what random values of this length give.
fn scale(product: &[f32], cols: usize) -> f32 {
    let squares = product.iter().map(|x| x * x).sum::<f32>();
    (squares / product.len().max(1) as f32)
        .sqrt()
        .max((cols as f32).sqrt())
}

/// `matmul_units`, and `matmul_share` of a rank that is alone.
fn units<B: Backend>(
    suite: &mut Suite<'_, B>,
    (matrix, reference): (&B::Matrix, &ReferenceMatrix),
    (outputs, cols): (usize, usize),
    allowed: f32,
    name: &str,
) -> Check {
    for rows in [0, 1, 6] {
        let case = format!("matmul_units {rows} x {name}");
        // Ragged units, one of them cut through a block.
        let mut ends = vec![cols / 3, cols / 2, cols];
        ends.dedup();
        ends.retain(|&end| end > 0);
        let x = suite.random.values(rows * cols);
        let mut want = vec![0.0; rows * outputs];
        ReferenceBackend
            .matmul_units(reference, &x, rows, &ends, &mut want)
            .named(&case)?;
        let x = suite.upload(&x)?;
        let mut out = suite.backend.alloc(rows * outputs).named(&case)?;
        suite
            .backend
            .matmul_units(matrix, &x, rows, &ends, &mut out)
            .named(&case)?;
        let got = suite.download(&out, want.len())?;
        let rms = scale(&want, cols);
        suite.compare_scaled(&case, &got, &want, allowed, rms)?;
        let mut share = vec![-1; rows * outputs];
        suite
            .backend
            .matmul_share(matrix, &x, rows, &ends, &mut share)
            .named(&case)?;
        let share: Vec<f32> = share.into_iter().map(fixed::to_f32).collect();
        suite.compare_scaled(
            &format!("{case}, as a share"),
            &share,
            &got,
            fixed::STEP as f32,
            1.0,
        )?;
        let refuse = |ends: &[usize]| {
            suite.backend.matmul_units(
                matrix,
                &x,
                rows,
                ends,
                &mut suite.backend.alloc(rows * outputs)?,
            )
        };
        refused(
            &format!("{case}, units of too few columns"),
            refuse(&ends[..ends.len() - 1]),
        )?;
        refused(
            &format!("{case}, units out of order"),
            refuse(&[cols, 0, cols]),
        )?;
    }
    Ok(())
}

/// Shapes that do not fit are refused.
pub(super) fn refusals<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    let backend = suite.backend;
    let (small, ten) = (suite.upload(&[0.0; 4])?, suite.upload(&[0.0; 10])?);
    let mut out = suite.upload(&[0.0; 10])?;
    refused(
        "rms_norm of too few values",
        backend.rms_norm(&small, &small, 1e-5, 2, &mut out),
    )?;
    refused("add of too few values", backend.add(&mut out, &small, 5))?;
    refused(
        "gather of a missing row",
        backend.gather_rows(&ten, 5, &[2], &mut out),
    )?;
    let bytes = vec![0; 4 * 34];
    let view = |rows, cols, bytes| WeightView {
        dtype: WeightType::Q8_0,
        rows,
        cols,
        bytes,
    };
    refused(
        "matrix of too few bytes",
        backend.load_matrix(&[view(4, 32, &bytes[1..])]),
    )?;
    refused(
        "matrix of half blocks",
        backend.load_matrix(&[view(8, 16, &bytes)]),
    )?;
    refused(
        "stack of different widths",
        backend.load_matrix(&[view(4, 32, &bytes), view(2, 64, &bytes)]),
    )?;
    let matrix = backend
        .load_matrix(&[view(4, 32, &bytes)])
        .named("load_matrix")?;
    refused(
        "matmul of too few inputs",
        backend.matmul(&matrix, &ten, 1, None, &mut out),
    )
}
