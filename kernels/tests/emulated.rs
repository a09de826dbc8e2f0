//! The CUDA kernels on the emulated device against the reference, and under several orders of their threads.
#![cfg(feature = "emulate")]

use palimpsest_kernels::KvType;
use palimpsest_kernels::conformance::{self, Tolerance};
use palimpsest_kernels::cuda::emulated::Emulated;
use palimpsest_kernels::cuda::{CudaBackend, Precision};

/// bf16 keeps 8 bits of a weight and of an activation, f16 keeps 11 of a query, key and probability.
fn tolerance(precision: Precision, kv: KvType) -> Tolerance {
    let exact = Tolerance::default();
    let attention = if kv == KvType::F16 { 4e-3 } else { exact.attention };
    match precision {
        Precision::F32 => Tolerance { attention, ..exact },
        Precision::Bf16 => Tolerance { attention, embed: 1.0 / 256.0, matmul: 0.02, matmul_quantised: 0.02, ..exact },
    }
}

fn check(precision: Precision, kv: KvType, seed: u64) {
    let backend = CudaBackend::new(Emulated::new(seed), precision);
    let outcomes = conformance::run(&backend, kv, tolerance(precision, kv), 3).unwrap_or_else(|e| panic!("{e}"));
    for operation in ["embed", "matmul", "split_qkv", "attention", "observe", "rotate_keys", "readout", "index"] {
        let of = outcomes.iter().filter(|outcome| outcome.case.starts_with(operation));
        let worst = of.map(|outcome| outcome.difference).fold(0.0, f32::max);
        println!("{precision:?} {kv:?}: {operation:<12} {worst:.1e}");
    }
}

#[test]
fn halves_on_tensor_cores() {
    check(Precision::Bf16, KvType::F16, 0);
}

#[test]
fn singles_for_parity() {
    check(Precision::F32, KvType::F32, 7);
}
