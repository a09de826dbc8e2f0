//! Embedding rows against dequantised weights.

use super::embed;
use crate::backend::WeightType;
use crate::cpu::device::Activations;
use crate::cpu::simd::SimdLevel;
use crate::cpu::testing::{TYPES, backend, best, load, shapes, weights};
use crate::error::Error;
use crate::quant::dequantize;

#[test]
fn embedding_rows_are_the_dequantised_rows() {
    for dtype in TYPES {
        for (n, cols) in shapes(dtype) {
            let bytes = weights(dtype, n, cols, 61);
            let mut dense = vec![0.0; n * cols];
            dequantize(dtype, &bytes, &mut dense).unwrap();
            for simd in [SimdLevel::Portable, SimdLevel::detect()] {
                let backend = backend(Activations::Int8, simd, 2);
                let table = load(&backend, &[(dtype, n)], cols, std::slice::from_ref(&bytes));
                let ids: Vec<u32> = (0..n as u32).rev().chain([0]).collect();
                let mut out = vec![f32::NAN; ids.len() * cols];
                embed(&backend, &table, &ids, &mut out).unwrap();
                for (&id, out) in ids.iter().zip(out.chunks(cols)) {
                    assert_eq!(
                        out,
                        &dense[id as usize * cols..][..cols],
                        "{dtype:?} row {id}"
                    );
                }
            }
        }
    }
}

#[test]
fn wrong_shapes_are_refused_before_anything_is_written() {
    let backend = best(Activations::Int8, 1);
    let bytes = [weights(WeightType::Q4_0, 8, 64, 1)];
    let matrix = load(&backend, &[(WeightType::Q4_0, 8)], 64, &bytes);
    let mut out = [7.0; 64];
    assert!(matches!(
        embed(&backend, &matrix, &[8], &mut out),
        Err(Error::Index {
            index: 8,
            len: 8,
            ..
        })
    ));
    assert!(embed(&backend, &matrix, &[0, 1], &mut out).is_err());
    assert_eq!(out, [7.0; 64]);
}
