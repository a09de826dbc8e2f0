//! Formats of what is not Rust: CUDA and C++ by `.clang-format`, Python by `ruff.toml`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{output, run};
use crate::tools;

/// Fails when a file is formatted otherwise; `cargo xtask format` mends it.
///
/// # Errors
/// When a file is, or a formatter cannot be installed.
pub fn check() -> Result<()> {
    run(cpp()?.args(["--dry-run", "-Werror"]).args(sources()?))?;
    run(python()?.args(["format", "--check", "--quiet", "."]))
}

/// Formats all files in place.
///
/// # Errors
/// When a formatter cannot be installed or run.
pub fn apply() -> Result<()> {
    run(cpp()?.arg("-i").args(sources()?))?;
    run(python()?.args(["format", "."]))
}

fn cpp() -> Result<Command> {
    // The script beside it would look for its package in the interpreter.
    let program = "clang_format/data/bin/clang-format";
    Ok(Command::new(folder()?.join(program)))
}

fn python() -> Result<Command> {
    Ok(Command::new(folder()?.join("bin/ruff")))
}

/// Where the formatters are, as Python packages.
fn folder() -> Result<PathBuf> {
    tools::python_packages("formats")
}

/// Files of CUDA and C++ that git knows.
fn sources() -> Result<Vec<String>> {
    let list = ["ls-files", "*.cu", "*.cuh", "*.h", "*.cpp", "*.cc"];
    let files = output(Command::new("git").args(list)).context("git lists no files")?;
    Ok(files.lines().map(str::to_owned).collect())
}
