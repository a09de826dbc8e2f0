//! `cargo xtask deploy-check`: the Kubernetes manifests against schemas, against themselves and against the program.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::process::{cargo_with, run, succeeds};
use crate::{crates, tools};

const CHECK: &str = "deploy/check.py";
const OVERLAYS: &str = "deploy/overlays";

/// Checks every overlay.
///
/// # Errors
/// When something is wrong with one, or a tool cannot be installed.
pub fn check() -> Result<()> {
    if !succeeds(Command::new("kubectl").args(["version", "--client"])) {
        println!("==> manifests\n    SKIPPED: there is no kubectl here");
        return Ok(());
    }
    let packages = tools::python_packages("deploy", &["kubernetes-validate==1.31.0", "PyYAML", "jsonschema"])?;
    run(&mut cargo_with(&["build", "--locked", "--bins"]))?;
    let program = crates::target_directory()?.join("debug/palimpsest");
    let mut overlays: Vec<_> =
        std::fs::read_dir(OVERLAYS)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    overlays.sort();
    ensure!(overlays.iter().any(|path| path.is_dir()), "there are no overlays in {OVERLAYS}");
    let mut check = Command::new("python3");
    check.arg(Path::new(CHECK)).arg(program).args(overlays).env("PYTHONPATH", packages);
    run(&mut check)
}
