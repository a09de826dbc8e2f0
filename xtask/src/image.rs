//! `cargo xtask image`: what deploy/Dockerfile.cpu adds to its base, as a root filesystem, made
//! without a container engine.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{cargo_with, output, run, succeeds};
use crate::{crates, tools};

/// Below the target directory; made anew each time.
const ROOT: &str = "image";
const LIMIT_BYTES: u64 = 60_000_000;

/// Builds the binary as the Dockerfile does, puts it and every library it links into a directory,
/// runs it there as the only program (as root), and adds the sizes up.
///
/// # Errors
/// When something cannot be built or started there, or is larger than the limit.
pub fn measure() -> Result<()> {
    tools::install_system_packages()?;
    run(&mut cargo_with(&[
        "build",
        "--release",
        "--locked",
        "--features",
        "cluster",
        "--bin",
        "palimpsest",
    ]))?;
    let target = crates::target_directory()?;
    let (root, binary) = (target.join(ROOT), target.join("release/palimpsest"));
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot empty {}", root.display()))?;
    }
    let inside = "/usr/local/bin/palimpsest";
    let copy = root.join(inside.trim_start_matches('/'));
    fs::create_dir_all(copy.parent().context("a directory")?)?;
    run(Command::new("strip").arg("-o").arg(&copy).arg(&binary))?;
    for library in libraries(&output(Command::new("ldd").arg(&copy))?) {
        let place = root.join(library.strip_prefix("/")?);
        fs::create_dir_all(place.parent().context("a directory")?)?;
        fs::copy(&library, &place).with_context(|| library.display().to_string())?;
    }
    let mut total = 0;
    for file in files(&root)? {
        let size = fs::metadata(&file)?.size();
        println!("    {:>12} {}", size, file.strip_prefix(&root)?.display());
        total += size;
    }
    println!("    {total:>12} in all, the limit is {LIMIT_BYTES}");
    if succeeds(
        Command::new("chroot")
            .arg(&root)
            .args([inside, "--version"]),
    ) {
        println!("    it runs there");
    } else {
        let is_root = output(Command::new("id").arg("-u"))?.trim() == "0";
        ensure!(
            !is_root,
            "the binary does not run in {}: a library is missing",
            root.display()
        );
        println!("    SKIPPED: only root can run it there");
    }
    ensure!(
        total <= LIMIT_BYTES,
        "the image's content has {total} bytes, the limit is {LIMIT_BYTES}"
    );
    Ok(())
}

/// Files in what `ldd` prints: `name => /path (address)` or `/path (address)`.
fn libraries(printed: &str) -> BTreeSet<PathBuf> {
    let path = |line: &str| {
        let place = line
            .split_once("=> ")
            .map_or(line, |(_, place)| place)
            .trim();
        place
            .starts_with('/')
            .then(|| PathBuf::from(place.split(" (").next().unwrap_or(place)))
    };
    printed.lines().filter_map(path).collect()
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?)
        } else {
            found.push(path)
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let printed = "\tlinux-vdso.so.1 (0x1)\n\tlibm.so.6 => /lib/libm.so.6 \
                       (0x2)\n\t/lib64/ld.so.2 (0x3)\n\tx => not found";
        let expected = ["/lib/libm.so.6", "/lib64/ld.so.2"].map(PathBuf::from);
        assert_eq!(libraries(printed), BTreeSet::from(expected));
    }

    /// A tag or a script that is fetched is whatever stands there on the day of the build.
    #[test]
    fn images_are_made_of_what_has_a_hash() {
        for name in ["Dockerfile.cpu", "Dockerfile.cuda"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../deploy")
                .join(name);
            let text = fs::read_to_string(path).expect(name).replace("\\\n", " ");
            let arguments: Vec<(&str, &str)> = text
                .lines()
                .filter_map(|line| line.strip_prefix("ARG ")?.split_once('='))
                .collect();
            let bases: Vec<&str> = text
                .lines()
                .filter_map(|line| line.strip_prefix("FROM ")?.split_whitespace().next())
                .map(|base| {
                    let argument = arguments
                        .iter()
                        .find(|(argument, _)| base == format!("${{{argument}}}"));
                    argument.map_or(base, |(_, value)| value)
                })
                .collect();
            assert_eq!(bases.len(), 2, "{name}: what builds and what runs");
            for base in bases {
                let digest = base.split_once("@sha256:").map_or("", |(_, digest)| digest);
                assert_eq!(digest.len(), 64, "{name}: {base} has no digest");
            }
            for command in text.lines().filter(|line| line.contains("curl --")) {
                assert!(!command.contains("| sh "), "{name}: a script is run unseen");
                let fetches = command.contains("--output");
                assert_eq!(fetches, command.contains("sha256sum --check"), "{name}");
            }
        }
    }
}
