//! `cargo xtask bench-peers`: the comparison with other engines. The harness is Python, since one
//! of the peers is.

use std::process::Command;

use anyhow::Result;

use crate::process::{cargo_with, run};

/// The harness; its pure functions carry doctests.
pub const HARNESS: &str = "tests/oracle/bench_peers.py";

/// Runs the harness with `args`. Our own release binary is built first, unless no measurement was
/// asked for.
///
/// # Errors
/// When a build or a measurement fails.
pub fn run_harness(args: &[&str]) -> Result<()> {
    if !args
        .iter()
        .any(|arg| ["--help", "-h", "--build-only"].contains(arg))
    {
        run(&mut cargo_with(&[
            "build",
            "--release",
            "--locked",
            "--bin",
            "palimpsest",
        ]))?;
    }
    run(Command::new("python3").arg(HARNESS).args(args))
}
