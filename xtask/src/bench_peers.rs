//! `cargo xtask bench-peers`, `bench-turns`, `bench-state`, `bench-guide` and `bench-against`:
//! comparisons with other engines and servers and with our own earlier programs, what keeping
//! states costs, and what guides cost. The harnesses are Python, since one of the peers is.

use std::process::Command;

use anyhow::Result;

use crate::process::{cargo_with, run};

/// The harness; its pure functions carry doctests.
pub const HARNESS: &str = "tests/oracle/bench_peers.py";

/// The harness of conversations and of questions about one document.
pub const TURNS: &str = "tests/oracle/bench_turns.py";

/// The harness of what keeping states costs, and of what reading does to the answers of others.
pub const STATE: &str = "tests/oracle/bench_state.py";

/// The harness of what guides and the log-probabilities of prompts cost.
pub const GUIDE: &str = "tests/oracle/bench_guide.py";

/// The harness that compares this program with another one of ours.
pub const AGAINST: &str = "tests/oracle/bench_against.py";

/// All of them: their examples are tests.
pub const ALL: [&str; 5] = [HARNESS, TURNS, STATE, GUIDE, AGAINST];

/// Runs a harness with `args`. Our own release binary is built first, unless no measurement was
/// asked for.
///
/// # Errors
/// When a build or a measurement fails.
pub fn run_harness(harness: &str, args: &[&str]) -> Result<()> {
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
    run(Command::new("python3").arg(harness).args(args))
}
