//! `cargo xtask gpu-check`: one bundle that checks and measures the CUDA backend on a machine with
//! a GPU and without Rust.
//!
//! What can be built is built here: the program, the conformance suite, the tests of whole models,
//! the benchmark of kernels, and this very program, which runs there as `gpu-run` and writes the
//! report that is committed under `tests/gpu`.

pub mod goals;
pub mod libraries;
pub mod outcome;
pub mod plan;
pub mod report;
pub mod stages;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::process::{cargo_with, display, output, run};
use crate::{crates, kernels};

/// Name of the folder in the archive.
const NAME: &str = "palimpsest-gpu-check";
/// Below `target/gpu-check`: cargo's target directory may be elsewhere, the bundle is looked for
/// here.
const OUT: &str = "target/gpu-check";
/// What a machine may be handed at most, by those who lend it.
const CARRIED_BYTES: u64 = 64 << 20;
/// What is built: `(package, target)` and its name in the bundle.
const PROGRAMS: [(&str, &str, &str); 5] = [
    ("palimpsest", "palimpsest", "palimpsest"),
    ("palimpsest-kernels", "gpu:test", "kernels-conformance"),
    ("palimpsest-kernels", "gpu:bench", "kernels-bench"),
    ("palimpsest-tests", "gpu:test", "models-check"),
    ("xtask", "xtask", "xtask"),
];
/// Runs the stages; what it says when it cannot start is the first thing that can go wrong over
/// there.
const SCRIPT: &str = "#!/bin/sh
# Checks and measures the CUDA backend of this bundle: ./gpu-check.sh [--minutes N] [--out DIR] \
                      [--model FILE] [--stages A,B]
cd \"$(dirname \"$0\")\" || exit 1
if ! bin/xtask help > /dev/null; then
    echo \"the programs of this bundle do not start here: they need the glibc that manifest.json \
                      names\" >&2
    exit 1
fi
exec bin/xtask gpu-run \"$@\"
";

/// Builds the bundle.
///
/// # Errors
/// When something does not build, or an argument is not known.
pub fn bundle(args: &[&str]) -> Result<()> {
    let (profile, args) = match args {
        ["--dev", rest @ ..] => ("dev", rest),
        _ => ("release", args),
    };
    let model = match args {
        [] => None,
        ["--model", file] => Some(Path::new(file)),
        _ => bail!(
            "usage: cargo xtask gpu-check [--dev] [--model GGUF]; the bundle's gpu-check.sh takes \
             --minutes"
        ),
    };
    kernels::check()?;
    let folder = Path::new(OUT).join(NAME);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder.join("bin"))?;
    let built = build(profile)?;
    for (package, target, name) in PROGRAMS {
        let program = built.get(&(package.to_owned(), target.to_owned()));
        let program = program.with_context(|| format!("cargo built no {target} of {package}"))?;
        run(Command::new("strip")
            .arg("-o")
            .arg(folder.join("bin").join(name))
            .arg(program))?;
    }
    ensure_kernels(&folder.join("bin/kernels-bench"))?;
    add_files(&folder, model)?;
    let manifest = manifest(&folder.join("bin"), profile)?;
    fs::write(folder.join("manifest.json"), format!("{manifest:#}\n"))?;
    let archive = Path::new(OUT).join(format!("{NAME}.tar.gz"));
    run(Command::new("tar")
        .arg("-C")
        .arg(OUT)
        .arg("-czf")
        .arg(&archive)
        .arg(NAME))?;
    let bytes = fs::metadata(&archive)?.len();
    println!(
        "    {} of {bytes} bytes, for glibc {} and later",
        archive.display(),
        manifest["glibc"]
    );
    let tracked = tracked_bytes()?;
    if bytes + tracked > CARRIED_BYTES {
        println!(
            "    with the {tracked} bytes of the tracked files more than {CARRIED_BYTES}: leave \
             --model out, or put the file beside gpu-check.sh over there"
        );
    }
    println!("    there: tar -xzf {NAME}.tar.gz && {NAME}/gpu-check.sh --minutes 9 --out report");
    Ok(())
}

/// Adds what is no program of ours: models, scripts, kernels and their sources.
fn add_files(folder: &Path, model: Option<&Path>) -> Result<()> {
    let models = folder.join("fixtures");
    fs::create_dir_all(&models)?;
    run(Command::new("cp")
        .args(["-r", "tests/fixtures/models"])
        .arg(&models))?;
    if let Some(model) = model {
        fs::copy(model, folder.join(stages::MODEL)).with_context(|| model.display().to_string())?;
    }
    // For machines without Rust: single kernels, their sources, and PyTorch as the peer.
    let peer = Path::new("tests/gpu/peer");
    run(Command::new("cp").arg("-r").arg(peer).arg(folder))?;
    run(Command::new("cp")
        .args(["-r", "kernels/cu"])
        .arg(folder.join("peer/cu")))?;
    fs::copy(kernels::fatbin()?, folder.join(plan::FATBIN))?;
    fs::write(folder.join("gpu-check.sh"), SCRIPT)?;
    run(Command::new("chmod")
        .arg("+x")
        .arg(folder.join("gpu-check.sh")))
}

/// Bytes of all files that git knows, which travel with the archive.
fn tracked_bytes() -> Result<u64> {
    let files = output(Command::new("git").args(["ls-files", "-z"]))?;
    let size = |name: &str| fs::metadata(name).map_or(0, |file| file.len());
    Ok(files
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(size)
        .sum())
}

/// A build from before nvcc was installed has no kernels, and would say so only over there. All
/// programs are of one build, so the benchmark's word, a JSON line that needs no driver, goes for
/// all of them.
fn ensure_kernels(benchmark: &Path) -> Result<()> {
    let said = output(Command::new(benchmark).arg("embedded"))?;
    ensure!(
        has_kernels(&said)?,
        "{} has no kernels; `cargo clean --package palimpsest-kernels` (with --release, too) and \
         try again",
        benchmark.display()
    );
    Ok(())
}

/// What `kernels-bench embedded` printed.
fn has_kernels(said: &str) -> Result<bool> {
    let fact: Value =
        serde_json::from_str(said.trim()).with_context(|| format!("no JSON: {said}"))?;
    fact["embedded"]
        .as_bool()
        .with_context(|| format!("it does not say whether kernels are embedded: {said}"))
}

/// Builds all programs in one go, so that features of dependencies are those of one build; returns
/// where they lie.
fn build(profile: &str) -> Result<BTreeMap<(String, String), PathBuf>> {
    let mut cargo = cargo_with(&[
        "build",
        "--profile",
        profile,
        "--locked",
        "--message-format=json-render-diagnostics",
    ]);
    cargo.args([
        "-p",
        "palimpsest",
        "-p",
        "palimpsest-kernels",
        "-p",
        "palimpsest-tests",
        "-p",
        "xtask",
    ]);
    cargo.args([
        "--bin",
        "palimpsest",
        "--bin",
        "xtask",
        "--test",
        "gpu",
        "--bench",
        "gpu",
    ]);
    println!("==> {}", display(&cargo));
    let built = artifacts(&output(&mut cargo)?)?;
    ensure!(
        !built.is_empty(),
        "cargo built no program in {}",
        crates::target_directory()?.display()
    );
    Ok(built)
}

/// Programs in what cargo prints as JSON, by package and target: `NAME` of a binary, `NAME:test`,
/// `NAME:bench`.
fn artifacts(printed: &str) -> Result<BTreeMap<(String, String), PathBuf>> {
    let mut found = BTreeMap::new();
    for line in printed.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("cargo printed what is no JSON")?;
        let Some(program) = message["executable"].as_str() else {
            continue;
        };
        let manifest = message["manifest_path"]
            .as_str()
            .context("an artifact without a manifest")?;
        let package = package_of(Path::new(manifest))?;
        let name = message["target"]["name"]
            .as_str()
            .context("an artifact without a name")?;
        let target = match message["target"]["kind"][0].as_str() {
            Some("bin") => name.to_owned(),
            Some(kind) => format!("{name}:{kind}"),
            None => bail!("an artifact without a kind"),
        };
        found.insert((package, target), PathBuf::from(program));
    }
    Ok(found)
}

/// The package of one of our manifests: its folder's name, but for the root.
fn package_of(manifest: &Path) -> Result<String> {
    let folder = manifest.parent().context("a manifest in a folder")?;
    let root = folder.join("Cargo.lock").exists();
    let name = folder
        .file_name()
        .context("a folder with a name")?
        .to_string_lossy();
    Ok(if root {
        "palimpsest".into()
    } else if name == "xtask" {
        name.into()
    } else {
        format!("palimpsest-{name}")
    })
}

/// What the bundle was made of, for the report.
fn manifest(programs: &Path, profile: &str) -> Result<Value> {
    let commit = output(Command::new("git").args(["rev-parse", "HEAD"]))?;
    let changed = !output(Command::new("git").args(["status", "--porcelain"]))?
        .trim()
        .is_empty();
    let mut symbols = String::new();
    for (_, _, name) in PROGRAMS {
        symbols += &output(
            Command::new("objdump")
                .arg("-T")
                .arg(programs.join(name))
                .stderr(Stdio::inherit()),
        )?;
    }
    let (major, minor) = newest_glibc(&symbols).context("objdump names no version of glibc")?;
    Ok(json!({
        "commit": commit.trim(), "changed": changed, "profile": profile,
        "glibc": format!("{major}.{minor}"),
    }))
}

/// The newest version of glibc that symbols are taken from, in what `objdump -T` prints.
fn newest_glibc(symbols: &str) -> Option<(u32, u32)> {
    let version = |text: &str| {
        let digits: String = text
            .chars()
            .take_while(|c| c.is_ascii_digit() || *c == '.')
            .collect();
        let mut parts = digits.split('.').map(str::parse);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    };
    symbols.split("GLIBC_").skip(1).filter_map(version).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_what_cargo_prints() {
        let message = |folder: &str, name: &str, kind: &str, program: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/{folder}/Cargo.toml","target":{{"name":"{name}","kind":["{kind}"]}},"executable":{program}}}"#
            )
        };
        let printed = [
            message("kernels", "gpu", "test", "\"/t/gpu-1\""),
            message("kernels", "gpu", "bench", "\"/t/gpu-2\""),
            message("kernels", "palimpsest_kernels", "lib", "null"),
            message("xtask", "xtask", "bin", "\"/t/xtask\""),
            "not JSON".into(),
        ];
        let found = artifacts(&printed.join("\n")).unwrap();
        let at = |package: &str, target: &str| {
            found[&(package.to_owned(), target.to_owned())]
                .display()
                .to_string()
        };
        assert_eq!(found.len(), 3);
        assert_eq!(at("palimpsest-kernels", "gpu:test"), "/t/gpu-1");
        assert_eq!(at("palimpsest-kernels", "gpu:bench"), "/t/gpu-2");
        assert_eq!(at("xtask", "xtask"), "/t/xtask");
    }

    #[test]
    fn programs_say_whether_they_have_kernels() {
        assert!(has_kernels("{\"kind\":\"kernels\",\"embedded\":true}\n").unwrap());
        assert!(!has_kernels("{\"embedded\":false}").unwrap());
        has_kernels("{}").unwrap_err();
        has_kernels("error: unknown part").unwrap_err();
    }

    #[test]
    fn the_newest_glibc_counts_as_numbers_do() {
        let printed = "0 DF *UND* (GLIBC_2.9) a\n0 DF *UND* (GLIBC_2.34) b\n0 (GLIBC_2.2.5) \
                       c\n(GLIBC_PRIVATE) d";
        assert_eq!(newest_glibc(printed), Some((2, 34)));
        assert_eq!(newest_glibc("nothing"), None);
    }
}
