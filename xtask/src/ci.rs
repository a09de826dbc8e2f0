//! `cargo xtask ci`: every check that is not a test. The quick ones come first.

use std::process::Command;

use anyhow::Result;

use crate::process::{cargo_with, run};
use crate::test::CLUSTER;
use crate::{bench_peers, crates, deploy_check, formats, kernels, metrics, modules, tools};

/// Runs all checks and stops at the first that fails.
///
/// # Errors
/// When a check fails, or a tool it needs cannot be installed.
pub fn run_checks() -> Result<()> {
    run(&mut cargo_with(&["fmt", "--all", "--check"]))?;
    metrics::check()?;
    modules::check()?;
    crates::check_dependencies()?;
    run(Command::new("python3").args(["-m", "doctest", bench_peers::HARNESS]))?;
    tools::install_system_packages()?;
    formats::check()?;
    check_third_party()?;
    run(Command::new(tools::mdbook()?).args(["build", "docs"]))?;
    // Before anything is built: what is built from here on has kernels.
    kernels::install_compiler()?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked"];
    run(cargo_with(&clippy)
        .args(CLUSTER)
        .args(["--", "-D", "warnings"]))?;
    let mut doc = cargo_with(&[
        "doc",
        "--workspace",
        "--no-deps",
        "--locked",
        "--document-private-items",
    ]);
    run(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    deploy_check::check()?;
    kernels::check()
}

/// Licences, sources and banned crates of everything we link, by deny.toml.
///
/// # Errors
/// When deny.toml is violated, or cargo-deny cannot be installed.
pub fn check_third_party() -> Result<()> {
    let deny = tools::cargo_deny()?;
    run(Command::new(deny).args(["--locked", "check", "bans", "licenses", "sources"]))?;
    println!(
        "    SKIPPED: advisories (their database is a git repository; run `cargo deny check \
         advisories` by hand)"
    );
    Ok(())
}
