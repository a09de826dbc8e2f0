//! `cargo xtask eval-quick`: the headline table of EVALUATION.md in miniature, from the indexer
//! that is shipped.

use std::process::Command;

use anyhow::Result;

use crate::process::{cargo_with, run};

/// Built by [`run_table`].
const PROGRAM: &str = "target/release/palimpsest";
/// Where records and plots go.
const OUT: &str = "target/eval-quick";
/// Minutes of measuring. Building is not counted.
const MINUTES: &str = "12";
/// Three needle tasks that the default model can do, the learned policy without and with memory,
/// and the best heuristic.
const ARGS: [&str; 17] = [
    "--task",
    "single_2,single_3,multikey_1",
    "--lengths",
    "2048",
    "--policies",
    "full,retention,retention+centroid,keydiff",
    "--head-budgets",
    "column",
    "--shares",
    "0.25,0.15,0.1",
    "--samples",
    "16",
    "--seed",
    "1",
    "--minutes",
    MINUTES,
    "--every-key",
];

/// Measures afresh and prints the table. `args` are added to those of `palimpsest eval ruler`.
///
/// # Errors
/// When the build, the download of the model or the evaluation fails.
pub fn run_table(args: &[&str]) -> Result<()> {
    run(&mut cargo_with(&[
        "build",
        "--release",
        "--locked",
        "--bin",
        "palimpsest",
    ]))?;
    run(Command::new(PROGRAM).arg("pull"))?;
    // Records of another build would be taken for this one's.
    if std::path::Path::new(OUT).exists() {
        std::fs::remove_dir_all(OUT)?;
    }
    run(Command::new(PROGRAM)
        .args(["eval", "ruler", "--out", OUT])
        .args(ARGS)
        .args(args))
}
