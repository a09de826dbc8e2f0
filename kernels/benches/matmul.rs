//! Matrix products: `cargo bench -p palimpsest-kernels --bench matmul [-- FILTER]`. Prints a table.
//!
//! GMAC/s counts multiply-adds, GB/s the packed weights read once per call. Decode rows cycle
//! through enough matrices to exceed the last-level cache, as the layers of a model do. Every
//! figure is the best of 60 runs of 2 ms or more: on a shared machine the best run is the one with
//! the fewest interruptions.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use palimpsest_kernels::cpu::{Activations, CpuBackend, CpuOptions, Pool};
use palimpsest_kernels::parts::*;
use palimpsest_kernels::{Products, WeightType, WeightView, random_blocks};

/// Weights cycled through, in bytes.
const WORKING_SET: usize = 96 << 20;
const RUNS: usize = 60;
const RUN_SECONDS: f64 = 0.002;

struct Case {
    name: &'static str,
    dtype: WeightType,
    rows: usize,
    cols: usize,
    /// Columns of a unit of a row-parallel matrix.
    unit: Option<usize>,
}

fn noise(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(0x5851_f42d_4c95_7f2d)
        .wrapping_add(0x1405_7b7e_f767_814f);
    *state >> 33
}

fn measure(backend: &CpuBackend, case: &Case) {
    let mut state = 7;
    let bytes = random_blocks(case.dtype, case.rows * case.cols, || noise(&mut state));
    let view = WeightView::new(case.dtype, case.rows, case.cols, &bytes);
    let first = backend.load_matrix(&[view]).expect("valid weights");
    let packed = backend.matrix_bytes(&first);
    let mut matrices = vec![first];
    while matrices.len() * packed < WORKING_SET {
        matrices.push(backend.load_matrix(&[view]).expect("valid weights"));
    }
    let ends: Option<Vec<usize>> = case
        .unit
        .map(|unit| (1..=case.cols / unit).map(|end| end * unit).collect());
    for rows in [1, 8, 64, 256] {
        let mut state = 3;
        let x: Vec<f32> = (0..rows * case.cols)
            .map(|_| noise(&mut state) as f32 / (1u64 << 30) as f32 - 1.0)
            .collect();
        let mut out = vec![0.0; rows * case.rows];
        let (mut best, mut next) = (f64::INFINITY, 0);
        for _ in 0..RUNS {
            let (start, mut calls) = (Instant::now(), 0);
            while start.elapsed().as_secs_f64() < RUN_SECONDS {
                match &ends {
                    None => backend.matmul(&matrices[next], &x, rows, None, &mut out),
                    Some(ends) => backend.matmul_units(&matrices[next], &x, rows, ends, &mut out),
                }
                .expect("shapes agree");
                next = (next + 1) % matrices.len();
                calls += 1;
            }
            best = best.min(start.elapsed().as_secs_f64() / f64::from(calls));
        }
        let macs = (rows * case.rows * case.cols) as f64;
        println!(
            "{:<10} {:>6} x {:<6} {:<5} rows {rows:<4} {:>10.1} us {:>8.1} GMAC/s {:>7.2} GB/s",
            case.unit.map_or(case.name.to_string(), |unit| format!(
                "{} /{unit}",
                case.name
            )),
            case.rows,
            case.cols,
            format!("{:?}", case.dtype),
            best * 1e6,
            macs / best / 1e9,
            packed as f64 / best / 1e9,
        );
    }
}

/// Best mean seconds of a fork-join region in which every thread meets all others and does nothing
/// else.
fn region_seconds(threads: usize) -> f64 {
    let pool = Pool::new(threads);
    let mean = |_| {
        let start = Instant::now();
        for _ in 0..200 {
            let arrived = AtomicUsize::new(0);
            pool.run(threads, &|_| {
                arrived.fetch_add(1, Ordering::AcqRel);
                while arrived.load(Ordering::Acquire) < threads {
                    std::hint::spin_loop();
                }
            });
        }
        start.elapsed().as_secs_f64() / 200.0
    };
    (0..RUNS).map(mean).fold(f64::INFINITY, f64::min)
}

fn main() {
    let filter = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .unwrap_or_default();
    let case = |name, dtype, rows, cols| Case {
        name,
        dtype,
        rows,
        cols,
        unit: None,
    };
    let units = |unit, case| Case {
        unit: Some(unit),
        ..case
    };
    let cases = [
        case("qkv", WeightType::Q4_1, 960, 576),
        case("o", WeightType::Q4_1, 576, 576),
        // As many units as the shards of SmolLM2 have, and others.
        units(96, case("o", WeightType::Q4_1, 576, 576)),
        units(64, case("o", WeightType::Q4_1, 576, 576)),
        case("gate_up", WeightType::Q4_1, 3072, 576),
        case("down", WeightType::Q4_1, 576, 1536),
        units(32, case("down", WeightType::Q4_1, 576, 1536)),
        units(64, case("down", WeightType::Q4_1, 576, 1536)),
        units(96, case("down", WeightType::Q4_1, 576, 1536)),
        units(128, case("down", WeightType::Q4_1, 576, 1536)),
        case("head", WeightType::Q8_0, 49152, 576),
        case("ffn", WeightType::Q8_0, 3072, 1024),
        case("ffn", WeightType::Q4_0, 3072, 1024),
        case("ffn", WeightType::Q5_0, 3072, 1024),
        case("ffn", WeightType::Q5_1, 3072, 1024),
        case("ffn", WeightType::Q2K, 3072, 1024),
        case("ffn", WeightType::Q3K, 3072, 1024),
        case("ffn", WeightType::Q4K, 3072, 1024),
        case("ffn", WeightType::Q5K, 3072, 1024),
        case("ffn", WeightType::Q6K, 3072, 1024),
        case("ffn", WeightType::Iq4Nl, 3072, 1024),
        case("ffn", WeightType::Iq4Xs, 3072, 1024),
        case("ffn", WeightType::Mxfp4, 3072, 1024),
        case("ffn", WeightType::Iq3S, 3072, 1024),
        case("ffn", WeightType::Iq2Xs, 3072, 1024),
        case("ffn", WeightType::F16, 3072, 1024),
        case("ffn", WeightType::BF16, 3072, 1024),
        case("ffn", WeightType::F32, 3072, 1024),
        case("wide", WeightType::Q4K, 4096, 14336),
    ];
    let most = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let modes =
        [Activations::Int8, Activations::F32].map(|mode| [1, most].map(|threads| (mode, threads)));
    for (activations, threads) in modes.into_iter().flatten() {
        let backend = CpuBackend::new(CpuOptions {
            activations,
            threads: Some(threads),
            simd: None,
        });
        let title = backend.name();
        println!(
            "{title}, {:.2} us for all threads to meet",
            region_seconds(threads) * 1e6
        );
        for case in cases
            .iter()
            .filter(|case| format!("{title} {} {:?}", case.name, case.dtype).contains(&filter))
        {
            measure(&backend, case);
        }
    }
}
