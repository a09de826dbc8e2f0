//! `cargo xtask ci`: every check that is not a test. The quick ones come first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{cargo_with, run, succeeds};
use crate::test::CLUSTER;
use crate::{bench_peers, crates, deploy_check, metrics, tools};

const KERNELS_DIR: &str = "kernels/cu";

/// Runs all checks and stops at the first that fails.
///
/// # Errors
/// When a check fails, or a tool it needs cannot be installed.
pub fn run_checks() -> Result<()> {
    run(&mut cargo_with(&["fmt", "--all", "--check"]))?;
    metrics::check()?;
    crates::check_dependencies()?;
    run(Command::new("python3").args(["-m", "doctest", bench_peers::HARNESS]))?;
    tools::install_system_packages()?;
    check_third_party()?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked"];
    run(cargo_with(&clippy).args(CLUSTER).args(["--", "-D", "warnings"]))?;
    let mut doc = cargo_with(&["doc", "--workspace", "--no-deps", "--locked", "--document-private-items"]);
    run(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    deploy_check::check()?;
    check_cuda_kernels()
}

/// Licences, sources and banned crates of everything we link, by deny.toml.
///
/// # Errors
/// When deny.toml is violated, or cargo-deny cannot be installed.
pub fn check_third_party() -> Result<()> {
    let deny = tools::cargo_deny()?;
    run(Command::new(deny).args(["--locked", "check", "bans", "licenses", "sources"]))?;
    println!("    SKIPPED: advisories (their database is a git repository; run `cargo deny check advisories` by hand)");
    Ok(())
}

/// Compiles every CUDA kernel to PTX, which needs a compiler and no GPU.
fn check_cuda_kernels() -> Result<()> {
    let Ok(entries) = fs::read_dir(KERNELS_DIR) else {
        println!("==> CUDA kernels\n    SKIPPED: there is no {KERNELS_DIR}");
        return Ok(());
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    let Some(nvcc) = find_nvcc() else {
        bail!("{KERNELS_DIR} exists but no nvcc was found: set NVCC or CUDA_HOME, or put nvcc on PATH");
    };
    let out = crates::target_directory()?.join("ptx");
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    for source in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "cu")) {
        let ptx = out.join(source.file_name().unwrap_or_default()).with_extension("ptx");
        run(Command::new(&nvcc).args(["-ptx", "-Werror", "all-warnings", "-o"]).arg(ptx).arg(source))?;
    }
    Ok(())
}

fn find_nvcc() -> Option<PathBuf> {
    let from_home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let candidates = [std::env::var_os("NVCC").map(PathBuf::from), from_home, Some("nvcc".into())];
    candidates.into_iter().flatten().find(|nvcc| succeeds(Command::new(nvcc).arg("--version")))
}
