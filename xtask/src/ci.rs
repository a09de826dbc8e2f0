//! `cargo xtask ci`: every check that is not a test. The quick ones come first.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::process::{cargo_with, output, run, succeeds};
use crate::test::CLUSTER;
use crate::{bench_peers, crates, deploy_check, formats, kernels, metrics, modules, sbom, tools};

/// Set where advisories must be checked, such as before a release.
const ADVISORIES_VARIABLE: &str = "PALIMPSEST_REQUIRE_ADVISORIES";
/// Time to fetch their database.
const FETCH_SECONDS: &str = "120";

/// Runs all checks and stops at the first that fails.
///
/// # Errors
/// When a check fails, or a tool it needs cannot be installed.
pub fn run_checks() -> Result<()> {
    run(&mut cargo_with(&["fmt", "--all", "--check"]))?;
    metrics::check()?;
    modules::check()?;
    crates::check_dependencies()?;
    // The fuzzers are a workspace of their own, whose lock no other build would look at.
    let lock = ["metadata", "--format-version", "1", "--locked"];
    output(cargo_with(&lock).args(["--manifest-path", "fuzz/Cargo.toml"]))?;
    for harness in bench_peers::ALL {
        run(Command::new("python3").args(["-m", "doctest", harness]))?;
    }
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
    // With the features of the lints: what they checked is not checked a second time.
    doc.args(CLUSTER);
    run(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    deploy_check::check()?;
    kernels::check()
}

/// Licences, sources, banned crates and advisories of everything we link, by deny.toml, and a list
/// of it.
///
/// # Errors
/// When deny.toml is violated, or cargo-deny cannot be installed.
pub fn check_third_party() -> Result<()> {
    let deny = tools::cargo_deny()?;
    run(Command::new(&deny).args(["--locked", "check", "bans", "licenses", "sources"]))?;
    check_advisories(&deny)?;
    sbom::write()
}

/// Known faults of what we link, where their database can be fetched; where it cannot, that is
/// said, and is an error for who set [`ADVISORIES_VARIABLE`].
fn check_advisories(deny: &Path) -> Result<()> {
    let mut fetch = Command::new("timeout");
    fetch.arg(FETCH_SECONDS).arg(deny);
    if succeeds(fetch.args(["--locked", "fetch", "db"])) {
        return run(Command::new(deny).args(["--locked", "--offline", "check", "advisories"]));
    }
    let why = "their database at github.com/RustSec/advisory-db cannot be fetched from here; git's \
               `url.….insteadOf` names a mirror";
    ensure!(
        std::env::var_os(ADVISORIES_VARIABLE).is_none(),
        "advisories cannot be checked: {why}"
    );
    println!("    NOT CHECKED: advisories: {why}");
    println!("    {ADVISORIES_VARIABLE}=1 makes this an error");
    Ok(())
}
