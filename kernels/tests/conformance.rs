//! The CPU backend against the reference, at every instruction set, number of threads, cache type
//! and precision.

use palimpsest_kernels::KvType;
use palimpsest_kernels::conformance::{self, Failure, Outcome, Suite, Tolerance};
use palimpsest_kernels::cpu::{Activations, CpuBackend, CpuOptions, SimdLevel};
use palimpsest_kernels::parts::*;

fn check(simd: SimdLevel, threads: usize, activations: Activations) {
    let backend = CpuBackend::new(CpuOptions {
        threads: Some(threads),
        activations,
        simd: Some(simd),
    });
    // One scale per 32 inputs of unit variance rounds each by 0.5 % of the root mean square; the
    // largest of the suite's outputs, over weights of uneven scales, are measured to be off by up
    // to 4.7 %. The exact integer arithmetic has unit tests of its own.
    let matmul_quantised = if activations == Activations::Int8 {
        0.06
    } else {
        1e-5
    };
    let tolerance = Tolerance {
        matmul_quantised,
        ..Tolerance::default()
    };
    for kv in [KvType::F32, KvType::F16, KvType::Q8] {
        let outcomes = conformance::run(&backend, kv, tolerance, 1 + threads as u64)
            .unwrap_or_else(|e| panic!("{e}"));
        for operation in [
            "rms_norm",
            "silu_mul",
            "split_qkv",
            "attention",
            "observe",
            "rotate_keys",
            "matmul",
        ] {
            let of: Vec<&Outcome> = outcomes
                .iter()
                .filter(|outcome| outcome.case.starts_with(operation))
                .collect();
            let worst = of
                .iter()
                .map(|outcome| outcome.difference)
                .fold(0.0, f32::max);
            println!(
                "{simd:?} {threads} threads {activations:?} {kv:?}: {operation:<12} {worst:.1e} \
                 in {} cases",
                of.len()
            );
        }
    }
}

#[test]
fn avx2_one_thread() {
    check(SimdLevel::detect(), 1, Activations::Int8);
}

#[test]
fn avx2_two_threads() {
    check(SimdLevel::detect(), 2, Activations::F32);
}

#[test]
fn avx2_four_threads() {
    check(SimdLevel::detect(), 4, Activations::Int8);
}

#[test]
fn portable_one_thread() {
    check(SimdLevel::Portable, 1, Activations::F32);
}

#[test]
fn portable_two_threads() {
    check(SimdLevel::Portable, 2, Activations::Int8);
}

#[test]
fn portable_four_threads() {
    check(SimdLevel::Portable, 4, Activations::F32);
}

/// Cases of a device that has these parts only.
fn products_and_rows<B: Products + Rows>(suite: &mut Suite<'_, B>) -> Result<(), Failure> {
    suite.buffers()?;
    suite.rows()?;
    suite.products()
}

/// Likewise.
fn cache_and_attention<B: Attention>(suite: &mut Suite<'_, B>) -> Result<(), Failure> {
    suite.cache()?;
    suite.attention()
}

#[test]
fn parts_have_cases_of_their_own() {
    let backend = CpuBackend::new(CpuOptions::default());
    let tolerance = Tolerance {
        matmul_quantised: 0.06,
        ..Tolerance::default()
    };
    let mut suite = Suite::new(&backend, KvType::F16, tolerance, 2);
    suite.part(products_and_rows);
    suite.part(cache_and_attention);
    let outcomes = suite.finish().unwrap_or_else(|e| panic!("{e}"));
    assert!(!outcomes.is_empty());
}

/// The suite has to notice a backend that is slightly wrong: here by a tolerance below what
/// rounding allows.
#[test]
fn the_suite_can_fail() {
    let backend = CpuBackend::new(CpuOptions::default());
    let strict = Tolerance {
        attention: 1e-9,
        ..Tolerance::default()
    };
    let strict = Tolerance {
        matmul_quantised: 1.0,
        ..strict
    };
    let failures =
        conformance::run(&backend, KvType::F16, strict, 1).expect_err("rounding differs from f64");
    assert!(failures.0.len() > 1, "all cases are told");
    let of_attention = |failure: &Failure| {
        let text = failure.to_string();
        text.starts_with("attention") || text.starts_with("observe")
    };
    assert!(failures.0.iter().any(of_attention), "{failures}");
}

/// Sizes that are served, on the CPU in its usual form.
#[test]
fn large_cases_agree_too() {
    let backend = CpuBackend::new(CpuOptions::default());
    conformance::run_large(&backend, KvType::F16, Tolerance::default(), 4)
        .unwrap_or_else(|e| panic!("{e}"));
}
