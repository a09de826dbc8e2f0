//! `cargo xtask wheel`: the program as a Python wheel, and the first minute of who installs it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::process::{output, run};
use crate::{crates, tools};

/// Below the target directory; made anew each time.
const FOLDER: &str = "wheel";
/// What the answer to the built-in question says.
const ANSWER: &str = "1996";

/// Builds the wheel, installs it in an empty environment, asks the program there for its version,
/// and runs the quickstart where its model was fetched before.
///
/// # Errors
/// When something cannot be built, installed or started, or the answer is not the document's.
pub fn build_and_try() -> Result<()> {
    let folder = crates::target_directory()?.join(FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    let maturin = tools::python_packages("maturin")?.join("bin/maturin");
    run(Command::new(maturin)
        .args(["build", "--release", "--out"])
        .arg(&folder))?;
    let wheel = only_wheel(&folder)?;
    let name = wheel.file_name().unwrap_or_default().to_string_lossy();
    println!("    {} ({} bytes)", name, fs::metadata(&wheel)?.len());
    println!("    runs on {}", platform(&name));
    let environment = folder.join("environment");
    // Debian's Python has no ensurepip to make environments with.
    let virtualenv = tools::python_packages("virtualenv")?;
    run(Command::new("python3")
        .env("PYTHONPATH", virtualenv)
        .args(["-m", "virtualenv", "--quiet"])
        .arg(&environment))?;
    run(Command::new(environment.join("bin/pip"))
        .args(["install", "--quiet", "--no-index"])
        .arg(&wheel))?;
    try_program(&environment.join("bin"))
}

/// The wheel in the folder.
fn only_wheel(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    let mut wheels = entries
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| path.extension() == Some(OsStr::new("whl")));
    let wheel = wheels.next().context("maturin made no wheel")?;
    ensure!(wheels.next().is_none(), "maturin made several wheels");
    Ok(wheel)
}

/// The last part of a wheel's name, in words: `manylinux_2_34_x86_64` is Linux with glibc 2.34.
fn platform(wheel: &str) -> String {
    let tag = wheel
        .trim_end_matches(".whl")
        .rsplit('-')
        .next()
        .unwrap_or_default();
    let glibc = tag.strip_prefix("manylinux_").and_then(|rest| {
        let mut parts = rest.splitn(3, '_');
        Some((parts.next()?, parts.next()?, parts.next()?))
    });
    match glibc {
        Some((major, minor, machine)) => {
            format!("Linux with glibc {major}.{minor} or later, {machine} ({tag})")
        }
        None => format!("{tag}: not every Linux can install it"),
    }
}

/// Runs what was installed in `programs`, with that folder first on the path as after `activate`.
fn try_program(programs: &Path) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(programs.to_owned()).chain(std::env::split_paths(&path));
    let path = std::env::join_paths(path)?;
    let palimpsest = || {
        let mut command = Command::new(programs.join("palimpsest"));
        command.env("PATH", &path);
        command
    };
    let version = output(palimpsest().arg("--version"))?;
    ensure!(
        version.starts_with("palimpsest "),
        "the installed program says {version:?} for its version"
    );
    println!("    {}", version.trim());
    if !has_model() {
        println!("    SKIPPED: quickstart (its model is not in the cache: `palimpsest pull`)");
        return Ok(());
    }
    let started = Instant::now();
    let answer = output(palimpsest().arg("quickstart"))?;
    ensure!(answer.contains(ANSWER), "quickstart answers {answer:?}");
    let seconds = started.elapsed().as_secs_f64();
    println!("    quickstart answers after {seconds:.1} s");
    Ok(())
}

/// Whether a model lies where `palimpsest pull` puts it.
fn has_model() -> bool {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let folder = variable("PALIMPSEST_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&variable("XDG_CACHE_HOME")?).join("palimpsest")))
        .or_else(|| Some(Path::new(&variable("HOME")?).join(".cache/palimpsest")));
    let entries = folder.and_then(|folder| fs::read_dir(folder).ok());
    entries.into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        path.extension() == Some(OsStr::new("gguf"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wheels_name_says_where_it_runs() {
        assert_eq!(
            platform("palimpsest-0.1.0-py3-none-manylinux_2_34_x86_64.whl"),
            "Linux with glibc 2.34 or later, x86_64 (manylinux_2_34_x86_64)"
        );
        assert!(platform("palimpsest-0.1.0-py3-none-linux_x86_64.whl").contains("not every"));
    }
}
