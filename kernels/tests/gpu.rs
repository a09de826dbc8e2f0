//! The CUDA kernels on a GPU against the reference, where there is one.

use palimpsest_kernels::KvType;
use palimpsest_kernels::conformance::{self, Failures, Outcome, Tolerance};
use palimpsest_kernels::cuda::driver::{Driver, has_kernels};
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_kernels::error::Error;

/// The device, unless this machine has none.
fn device() -> Option<Driver> {
    match Driver::open(0) {
        Ok(driver) => Some(driver),
        Err(error @ Error::Unavailable(_)) => {
            println!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn tolerance(precision: Precision, kv: KvType) -> Tolerance {
    let exact = Tolerance::default();
    // What is 8-bit becomes halves.
    let attention = if kv == KvType::F32 {
        exact.attention
    } else {
        4e-3
    };
    // bf16 keeps 8 bits of a weight and of an activation.
    match precision {
        Precision::F32 => Tolerance { attention, ..exact },
        Precision::Bf16 => Tolerance {
            attention,
            embed: 1.0 / 256.0,
            matmul: 0.025,
            matmul_quantised: 0.025,
            ..exact
        },
    }
}

/// Everything in small sizes.
fn check(precision: Precision, kv: KvType) {
    let Some(driver) = device() else { return };
    let backend = CudaBackend::new(driver, precision);
    tell(conformance::run(&backend, kv, tolerance(precision, kv), 3));
}

/// What depends on the size, in sizes that are served.
fn check_large(kv: KvType) {
    let Some(driver) = device() else { return };
    let precision = Precision::Bf16;
    let backend = CudaBackend::new(driver, precision);
    tell(conformance::run_large(
        &backend,
        kv,
        tolerance(precision, kv),
        4,
    ));
}

fn tell(outcomes: Result<Vec<Outcome>, Failures>) {
    for outcome in outcomes.unwrap_or_else(|failures| panic!("{failures}")) {
        println!("{outcome}");
    }
}

#[test]
fn halves_on_tensor_cores() {
    check(Precision::Bf16, KvType::F16);
}

#[test]
fn eight_bits_on_tensor_cores() {
    check(Precision::Bf16, KvType::Q8);
}

#[test]
fn large_with_halves() {
    check_large(KvType::F16);
}

#[test]
fn large_with_eight_bits() {
    check_large(KvType::Q8);
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
