//! What the kernels reach on a GPU, beside what the GPU reaches: `cargo bench -p palimpsest-kernels
//! --bench gpu -- kernels`.
//!
//! Prints JSON lines. `embedded` says whether this build has kernels, `identify` what the GPU is,
//! `kernels` measures. `cargo xtask gpu-check` runs both.

mod measure;

use std::process::ExitCode;

use measure::{Sizes, Timed};
use palimpsest_kernels::cuda::driver::{Driver, DriverMemory, has_kernels};
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_kernels::error::Result;

impl Timed for Driver {
    fn seconds(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        Self::seconds(self, work)
    }

    fn kernel_seconds(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<(String, f64)>> {
        Self::kernel_seconds(self, work)
    }

    fn copy(&self, src: &DriverMemory, dst: &DriverMemory, bytes: usize) -> Result<()> {
        Self::copy(self, src, dst, bytes)
    }
}

fn run(part: &str) -> Result<()> {
    if part == "embedded" {
        println!(
            "{}",
            serde_json::json!({"kind": "kernels", "embedded": has_kernels()})
        );
        return Ok(());
    }
    let driver = Driver::open(0)?;
    let facts = driver.facts()?;
    let (major, minor) = facts.capability;
    println!(
        "{}",
        serde_json::json!({
            "kind": "device",
            "name": facts.name,
            "capability": format!("{major}.{minor}"),
            "driver": facts.driver,
            "multiprocessors": facts.multiprocessors,
            "free_bytes": facts.free,
            "total_bytes": facts.total,
            "cublas": facts.blas,
        })
    );
    if part == "kernels" {
        let backend = CudaBackend::new(driver, Precision::Bf16);
        measure::all(&backend, &Sizes::REAL, &mut |figure| println!("{figure}"))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let part = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .unwrap_or_else(|| "identify".into());
    match run(&part) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
