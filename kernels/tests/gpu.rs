//! The CUDA kernels on a GPU against the reference, where there is one.

use palimpsest_kernels::KvType;
use palimpsest_kernels::conformance::{self, Tolerance};
use palimpsest_kernels::cuda::driver::{Driver, has_kernels};
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_kernels::error::Error;

fn check(precision: Precision, kv: KvType) {
    let driver = match Driver::open(0) {
        Ok(driver) => driver,
        Err(error @ Error::Unavailable(_)) => {
            println!("SKIPPED: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let exact = Tolerance::default();
    let attention = if kv == KvType::F16 {
        4e-3
    } else {
        exact.attention
    };
    // bf16 keeps 8 bits of a weight and of an activation.
    let tolerance = match precision {
        Precision::F32 => Tolerance { attention, ..exact },
        Precision::Bf16 => Tolerance {
            attention,
            embed: 1.0 / 256.0,
            matmul: 0.02,
            matmul_quantised: 0.02,
            ..exact
        },
    };
    let outcomes = conformance::run(&CudaBackend::new(driver, precision), kv, tolerance, 3);
    for outcome in outcomes.unwrap_or_else(|failure| panic!("{failure}")) {
        println!("{outcome}");
    }
}

#[test]
fn halves_on_tensor_cores() {
    check(Precision::Bf16, KvType::F16);
}

#[test]
fn singles_for_parity() {
    check(Precision::F32, KvType::F32);
}

/// Whatever this machine lacks is said with what to do about it.
#[test]
fn a_device_that_is_not_there_is_refused_by_name() {
    match Driver::open(4096) {
        Ok(_) => panic!("no machine has so many GPUs"),
        Err(Error::Unavailable(text)) if !has_kernels() => {
            assert!(text.contains("cargo xtask kernels"), "{text}")
        }
        Err(Error::Unavailable(text)) => {
            assert!(
                text.contains("--device cpu")
                    || text.contains("cuda:4096")
                    || text.contains("update"),
                "{text}"
            );
        }
        Err(error) => panic!("{error}"),
    }
}
