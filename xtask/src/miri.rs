//! `cargo xtask miri`: unsafe code of the CPU kernels under Miri, which sees reads of what is not
//! valid, two references to what one may write, and accesses by threads that nothing orders.
//!
//! Miri finds no instruction set of vectors, so the portable lanes run. It interprets: the tests
//! are those that reach the pool and the pointers that its tasks share, and the pool's have fewer
//! regions.

use std::process::Command;

use anyhow::{Context, Result};

use crate::crates;
use crate::process::{run, succeeds};

/// Miri comes with no other toolchain.
const TOOLCHAIN: &str = "nightly";
/// Tests of the kernels' library, by the beginnings of their paths.
const TESTS: &[&str] = &[
    "cpu::pool::tests::",
    "cpu::element::",
    "cpu::matmul::tests::scales_that_overflow_a_half_are_kept",
    "cpu::matmul::tests::wrong_shapes_are_refused_before_anything_is_written",
];

/// Installs Miri where it is missing, and runs the tests under it.
///
/// # Errors
/// When Miri cannot be installed, or finds something.
pub fn check() -> Result<()> {
    install()?;
    // A folder of its own: what is built here is built for Miri, by another compiler.
    let target = crates::target_directory()?.join("miri");
    let mut miri = nightly(&["cargo", "miri", "test", "--locked"]);
    miri.args(["--package", "palimpsest-kernels", "--lib", "--"])
        .args(TESTS)
        .env("CARGO_TARGET_DIR", target);
    run(&mut miri)
}

/// A command of the toolchain.
fn nightly(arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", TOOLCHAIN]).args(arguments);
    // What started this program is of another toolchain.
    command.env_remove("CARGO").env_remove("RUSTC");
    command
}

fn install() -> Result<()> {
    if succeeds(&mut nightly(&["cargo", "miri", "--version"])) {
        return Ok(());
    }
    let mut rustup = Command::new("rustup");
    rustup
        .args(["toolchain", "install", TOOLCHAIN, "--profile", "minimal"])
        .args(["--component", "miri", "--component", "rust-src"]);
    run(&mut rustup).context("Miri needs rustup and a nightly toolchain")
}
