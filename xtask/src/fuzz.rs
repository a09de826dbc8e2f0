//! `cargo xtask fuzz`: what reads bytes from outside, under mutations guided by coverage.
//!
//! The targets are in `fuzz/`, which is laid out as `cargo fuzz` wants it. They are built here with
//! the project's own compiler and without sanitizers: nothing that they reach is unsafe but the map
//! of a file of weights.

use std::fs::{self, File};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail, ensure};

use crate::crates;
use crate::process::{cargo_with, output, run};

/// A fuzzed reader.
#[derive(Clone, Copy)]
struct Target {
    /// Its program in `fuzz/targets`, and its folder in `fuzz/corpus`.
    name: &'static str,
    /// Longest input, in bytes.
    longest: usize,
}

const fn target(name: &'static str, longest: usize) -> Target {
    Target { name, longest }
}

const TARGETS: &[Target] = &[
    target("gguf", 256 << 10),
    target("safetensors", 256 << 10),
    target("indexer", 64 << 10),
    target("snapshot", 64 << 10),
    target("tokenizer", 64 << 10),
    target("template", 4 << 10),
    target("http", 16 << 10),
    target("grpc", 16 << 10),
    target("texts", 4 << 10),
    target("hub", 4 << 10),
    target("mesh", 4 << 10),
    target("config", 8 << 10),
];
/// Time of each target where none is given.
const USUAL_SECONDS: u64 = 60;
/// Resident memory at which an input has failed, in MiB.
const MEMORY_MIB: u32 = 2048;
/// Time of one input at which it has failed, in seconds.
const INPUT_SECONDS: u32 = 20;
/// Coverage counters, as libFuzzer reads them.
const FLAGS: &[&str] = &[
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Targets that run at once. Some of them wait for files, so there are more than cores.
fn at_once() -> Result<usize> {
    let cores = available_parallelism()?.get();
    Ok(cores + cores.div_ceil(2))
}

/// Runs all targets, or those named, `--seconds N` each.
///
/// # Errors
/// When a target cannot be built, or an input makes it panic, hang or take too much memory: the
/// input is kept, and its path printed.
pub fn run_targets(args: &[&str]) -> Result<()> {
    let asked = Asked::parse(args)?;
    let programs = build()?;
    let folder = crates::target_directory()?.join("fuzz-runs");
    let mut failed = Vec::new();
    for batch in asked.targets.chunks(at_once()?) {
        let start = |target: &Target| Running::start(*target, &programs, &folder, asked.seconds);
        let running = batch.iter().map(start).collect::<Result<Vec<_>>>()?;
        for one in running {
            let name = one.target.name;
            if !one.finish()? {
                failed.push(name);
            }
        }
    }
    ensure!(
        failed.is_empty(),
        "fuzzing broke {}; `cargo xtask fuzz` with the name repeats it",
        failed.join(", ")
    );
    Ok(())
}

/// What the command line asks for.
struct Asked {
    targets: Vec<Target>,
    seconds: u64,
}

impl Asked {
    fn parse(args: &[&str]) -> Result<Self> {
        let mut asked = Self {
            targets: Vec::new(),
            seconds: USUAL_SECONDS,
        };
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            if arg == "--seconds" {
                let value = args.next().context("--seconds needs a number")?;
                // To libFuzzer 0 is no limit.
                let seconds: NonZero<u64> = value.parse().context("--seconds is at least 1")?;
                asked.seconds = seconds.get();
            } else if let Some(target) = TARGETS.iter().find(|target| target.name == arg) {
                asked.targets.push(*target);
            } else {
                let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
                bail!("there is no target {arg}: use {}", names.join(", "));
            }
        }
        if asked.targets.is_empty() {
            asked.targets = TARGETS.to_vec();
        }
        Ok(asked)
    }
}

/// Builds all targets and returns the folder of the programs.
fn build() -> Result<PathBuf> {
    let host = output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let host = host.trim();
    let folder = crates::target_directory()?.join("fuzz");
    // With a target named, build scripts and macros are built without counters.
    let args = ["build", "--release", "--locked", "--target", host];
    run(cargo_with(&args)
        .args(["--manifest-path", "fuzz/Cargo.toml", "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", FLAGS.join(" ")))?;
    Ok(folder.join(host).join("release"))
}

/// A target under way.
struct Running {
    target: Target,
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(target: Target, programs: &Path, folder: &Path, seconds: u64) -> Result<Self> {
        let folder = folder.join(target.name);
        let found = folder.join("corpus");
        fs::create_dir_all(&found)?;
        let log = folder.join("log");
        let out = File::create(&log)?;
        let seeds = std::path::absolute(Path::new("fuzz/corpus").join(target.name))?;
        ensure!(seeds.is_dir(), "{} is missing", seeds.display());
        let child = Command::new(programs.join(target.name))
            .current_dir(&folder)
            // New inputs go to the first folder; the second one is only read.
            .arg(&found)
            .arg(&seeds)
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={}", target.longest))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .arg(format!("-timeout={INPUT_SECONDS}"))
            // An input that failed lies among those that the next run begins with.
            .args(["-print_final_stats=1", "-artifact_prefix=corpus/"])
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("{} cannot be started", target.name))?;
        Ok(Self { target, child, log })
    }

    /// Waits for the end, prints a line, and says whether nothing was found.
    fn finish(mut self) -> Result<bool> {
        let passed = self.child.wait()?.success();
        let log = fs::read_to_string(&self.log)?;
        let stat = |name: &str| {
            let line = log.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().last())
                .unwrap_or("?")
        };
        println!(
            "    {:<12} {:>10} inputs, {:>5} MiB at most{}",
            self.target.name,
            stat("stat::number_of_executed_units"),
            stat("stat::peak_rss_mb"),
            if passed { "" } else { ": BROKEN" }
        );
        if !passed {
            let tail: Vec<_> = log.lines().rev().take(60).collect();
            tail.iter()
                .rev()
                .for_each(|line| println!("        {line}"));
            println!("    see {}", self.log.display());
        }
        Ok(passed)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already where nothing went wrong.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_program_and_seeds() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
        for target in TARGETS {
            assert!(manifest.contains(&format!("name = \"{}\"", target.name)));
            assert!(
                root.join("targets")
                    .join(format!("{}.rs", target.name))
                    .is_file()
            );
            let mut seeds = fs::read_dir(root.join("corpus").join(target.name)).unwrap();
            assert!(seeds.next().is_some(), "{} has no seed", target.name);
        }
        let programs = fs::read_dir(root.join("targets")).unwrap().count();
        assert_eq!(programs, TARGETS.len());
    }

    #[test]
    fn a_command_line_names_targets_and_seconds() {
        let asked = Asked::parse(&["http", "--seconds", "5"]).unwrap();
        assert_eq!((asked.targets[0].name, asked.seconds), ("http", 5));
        assert_eq!(Asked::parse(&[]).unwrap().targets.len(), TARGETS.len());
        assert!(Asked::parse(&["nothing"]).is_err());
        assert!(Asked::parse(&["--seconds"]).is_err());
        assert!(Asked::parse(&["--seconds", "0"]).is_err());
    }
}
