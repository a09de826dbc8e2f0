//! `cargo xtask pin PURPOSE…`: makes files of `xtask/requirements` anew, each from the names in its
//! first line, for [`PYTHON`] on Linux.
//!
//! The clients that people bring need 500 packages. With the hashes of the wheels for every system
//! their files would have 20,000 lines, so these have the hashes of those wheels alone that pip
//! takes on Linux. pip chooses the packages, and reports which wheels it chose and their hashes.

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts::ARCH;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::process::output;

/// The version of Python that the files are for: the one that CI has.
const PYTHON: &str = "3.11";
/// The machines that they are for, by the names in wheels.
const MACHINES: [&str; 2] = ["x86_64", "aarch64"];
/// Releases 2.x of glibc whose wheels are taken. The newest are preferred.
const GLIBC: std::ops::RangeInclusive<u32> = 5..=36;
/// How the first line of such a file ends. The names of the packages stand before it.
const MARK: &str = ". For Python 3.11 on Linux, made by `cargo xtask pin`.";

/// By name and version, the hashes of the wheels that were chosen.
type Chosen = BTreeMap<Package, BTreeSet<String>>;

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Package {
    name: String,
    version: String,
}

/// The subcommand: writes the files of these purposes anew, in `folder`. With `--keep` first, a
/// file keeps its packages and their versions, and its hashes alone are made anew: pip cannot be
/// told to leave out a package, and lm-eval needs some that have no wheels.
///
/// # Errors
/// When a file is not of this kind, pip finds no packages that go together, or one of them has no
/// wheel for this machine.
pub fn make_files(folder: &Path, args: &[&str]) -> Result<()> {
    let (keeps, purposes) = match args {
        ["--keep", purposes @ ..] => (true, purposes),
        purposes => (false, purposes),
    };
    ensure!(
        !purposes.is_empty(),
        "which? NAME of {}/NAME.txt",
        folder.display()
    );
    check_python()?;
    for purpose in purposes {
        let path = folder.join(format!("{purpose}.txt"));
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let first = text.lines().next().unwrap_or_default();
        let names = names(first).with_context(|| path.display().to_string())?;
        let pinned = if keeps {
            pinned(&text)
        } else {
            resolve(&names)?
        };
        let chosen = choose(&pinned)?;
        fs::write(&path, file(first, &chosen))?;
        println!("    {}: {} packages", path.display(), chosen.len());
    }
    Ok(())
}

/// Checks that packages of a file can be installed here.
///
/// # Errors
/// When the file is for another system or another Python.
pub fn check_system(requirements: &str) -> Result<()> {
    let is_pinned = requirements
        .lines()
        .next()
        .is_some_and(|first| first.ends_with(MARK));
    if !is_pinned {
        return Ok(());
    }
    ensure!(
        cfg!(target_os = "linux"),
        "these packages are pinned for Linux"
    );
    check_python()
}

fn check_python() -> Result<()> {
    let says = "import sys; print('%d.%d' % sys.version_info[:2])";
    let have = output(Command::new("python3").args(["-I", "-c", says]))?;
    let have = have.trim();
    ensure!(
        have == PYTHON,
        "these packages are pinned for Python {PYTHON}, and `python3` is {have}: put Python {PYTHON} \
         first on PATH"
    );
    Ok(())
}

/// The names that a file is made from: `# What it is: NAME, NAME` and the mark.
fn names(first: &str) -> Result<Vec<&str>> {
    let names = first
        .strip_suffix(MARK)
        .and_then(|line| line.split_once(": "));
    let Some((_, names)) = names else {
        bail!("its first line is not `# WHAT: NAME, NAME{MARK}`");
    };
    Ok(names.split(", ").collect())
}

/// The packages of a file, as `NAME==VERSION`.
fn pinned(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| line.contains("=="));
    let package = |line: &str| line.split_whitespace().next().map(str::to_owned);
    lines.filter_map(package).collect()
}

/// All packages that these need, as `NAME==VERSION`.
fn resolve(names: &[&str]) -> Result<Vec<String>> {
    let mut chosen = Chosen::new();
    read_report(&output(pip_report().args(names))?, &mut chosen)?;
    let packages = chosen.keys();
    Ok(packages
        .map(|package| format!("{}=={}", package.name, package.version))
        .collect())
}

/// The packages, with the hashes of their wheels.
fn choose(pinned: &[String]) -> Result<Chosen> {
    let mut chosen = Chosen::new();
    for machine in MACHINES {
        let mut report = pip_report();
        report
            .args([
                "--no-deps",
                "--implementation",
                "cp",
                "--python-version",
                PYTHON,
            ])
            // pip asks for a folder where it is told of another system, and leaves it empty.
            .args(["--target", "target/tools/nothing"]);
        for release in GLIBC.rev() {
            report.arg(format!("--platform=manylinux_2_{release}_{machine}"));
        }
        report.arg(format!("--platform=manylinux2014_{machine}"));
        report.args(pinned);
        match output(&mut report) {
            Ok(report) => read_report(&report, &mut chosen)?,
            // pip has said which package it is.
            Err(_) if machine != ARCH => println!("    not for {machine}: a wheel is missing"),
            Err(error) => return Err(error),
        }
    }
    ensure!(
        chosen.len() == pinned.len(),
        "pip chose other packages than {pinned:?}"
    );
    Ok(chosen)
}

/// pip, which installs nothing and says as JSON what it would.
fn pip_report() -> Command {
    let mut pip = Command::new("python3");
    pip.args([
        "-I",
        "-m",
        "pip",
        "--quiet",
        "install",
        "--dry-run",
        "--report",
        "-",
    ])
    .args(["--ignore-installed", "--only-binary", ":all:"]);
    pip
}

/// Adds what a report of pip says it chose.
fn read_report(report: &str, chosen: &mut Chosen) -> Result<()> {
    let report: Value = serde_json::from_str(report).context("pip's report")?;
    let found = report["install"]
        .as_array()
        .context("pip's report has no packages")?;
    for one in found {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let metadata = &one["metadata"];
        let name = text(&metadata["name"]).context("a package without a name")?;
        let version = text(&metadata["version"]).with_context(|| name.clone())?;
        let hash = text(&one["download_info"]["archive_info"]["hashes"]["sha256"]);
        let hash = hash.with_context(|| format!("{name} has no hash"))?;
        let name = name.to_lowercase().replace(['_', '.'], "-");
        chosen
            .entry(Package { name, version })
            .or_default()
            .insert(hash);
    }
    Ok(())
}

/// The file, with the first line that it had.
fn file(first: &str, chosen: &Chosen) -> String {
    let mut text = format!("{first}\n");
    for (package, hashes) in chosen {
        text.push_str(&format!("{}=={}", package.name, package.version));
        for hash in hashes {
            text.push_str(&format!(" \\\n    --hash=sha256:{hash}"));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(name: &str, hash: &str) -> String {
        let archive = json!({"archive_info": {"hashes": {"sha256": hash}}});
        let metadata = json!({"name": name, "version": "1.2"});
        json!({"install": [{"metadata": metadata, "download_info": archive}]}).to_string()
    }

    #[test]
    fn the_first_line_has_the_names() {
        let first = format!("# LangChain: langchain, lm-eval[api]{MARK}");
        assert_eq!(names(&first).expect("names"), ["langchain", "lm-eval[api]"]);
        for wrong in [
            "",
            "# LangChain: langchain. CONTRIBUTING.md says how this is made.",
            MARK,
        ] {
            names(wrong).unwrap_err();
        }
    }

    #[test]
    fn a_wheel_for_every_machine_is_among_the_hashes() {
        let mut chosen = Chosen::new();
        for (name, hash) in [("a_B.c", "2"), ("a-b-c", "1"), ("a-b-c", "2")] {
            read_report(&report(name, hash), &mut chosen).expect("a report");
        }
        let text = "# X\na-b-c==1.2 \\\n    --hash=sha256:1 \\\n    --hash=sha256:2\n";
        assert_eq!(file("# X", &chosen), text);
        assert_eq!(pinned(text), ["a-b-c==1.2"]);
        read_report(r#"{"install": [{"metadata": {"name": "a"}}]}"#, &mut chosen).unwrap_err();
        read_report("{}", &mut chosen).unwrap_err();
    }

    #[test]
    fn the_mark_says_which_python() {
        assert!(MARK.contains(&format!("Python {PYTHON} on Linux")));
        check_system("# X: x. CONTRIBUTING.md says how this is made.\n").expect("for every system");
    }
}
