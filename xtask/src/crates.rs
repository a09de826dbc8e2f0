//! Which of our crates may depend on which. The direction is the design: see ARCHITECTURE.md.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::{cargo_with, output};

/// Each crate with the crates of ours it may name as a dependency of any kind. `None` stands for
/// all of them.
const ALLOWED: &[(&str, Option<&[&str]>)] = &[
    ("palimpsest-proto", Some(&[])),
    ("palimpsest-kernels", Some(&[])),
    ("palimpsest-tls", Some(&[])),
    ("palimpsest-registry", Some(&["palimpsest-tls"])),
    (
        "palimpsest-coordinator",
        Some(&["palimpsest-proto", "palimpsest-registry", "palimpsest-tls"]),
    ),
    ("palimpsest-models", Some(&["palimpsest-kernels"])),
    ("palimpsest-collective", Some(&["palimpsest-kernels"])),
    (
        "palimpsest-engine",
        Some(&[
            "palimpsest-proto",
            "palimpsest-kernels",
            "palimpsest-models",
            "palimpsest-collective",
        ]),
    ),
    (
        "palimpsest-worker",
        Some(&[
            "palimpsest-proto",
            "palimpsest-tls",
            "palimpsest-kernels",
            "palimpsest-collective",
            "palimpsest-engine",
        ]),
    ),
    (
        "palimpsest-calibrate",
        Some(&[
            "palimpsest-kernels",
            "palimpsest-models",
            "palimpsest-engine",
        ]),
    ),
    (
        "palimpsest-eval",
        Some(&[
            "palimpsest-proto",
            "palimpsest-kernels",
            "palimpsest-models",
            "palimpsest-engine",
        ]),
    ),
    ("xtask", Some(&[])),
    ("palimpsest", None),
    ("palimpsest-tests", None),
];

/// Where cargo puts what it builds.
///
/// # Errors
/// When `cargo metadata` fails.
pub fn target_directory() -> Result<PathBuf> {
    let metadata = metadata()?;
    Ok(metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target directory")?
        .into())
}

/// Checks every dependency between crates of the workspace against the table above.
///
/// # Errors
/// When a dependency is not allowed, or a crate is not in the table.
pub fn check_dependencies() -> Result<()> {
    println!("==> dependencies between crates");
    let crates = dependencies(&metadata()?)?;
    for (name, uses) in &crates {
        println!(
            "    {name} -> {}",
            if uses.is_empty() {
                "none of ours".to_owned()
            } else {
                uses.join(", ")
            }
        );
    }
    let broken = violations(&crates);
    ensure!(
        broken.is_empty(),
        "dependencies between crates:\n{}",
        broken.join("\n")
    );
    Ok(())
}

fn metadata() -> Result<Value> {
    let json = output(&mut cargo_with(&[
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
    ]))?;
    serde_json::from_str(&json).context("cargo metadata printed no JSON")
}

/// Crates of the workspace, each with those of ours it depends on.
fn dependencies(metadata: &Value) -> Result<BTreeMap<String, Vec<String>>> {
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let name = |value: &Value| {
        value["name"]
            .as_str()
            .map(str::to_owned)
            .context("a package without a name")
    };
    let mut crates = BTreeMap::new();
    for package in packages {
        let declared = package["dependencies"]
            .as_array()
            .context("a package without dependencies")?;
        // Only dependencies on this workspace have a path.
        let mut uses = declared
            .iter()
            .filter(|it| it["path"].is_string())
            .map(name)
            .collect::<Result<Vec<_>>>()?;
        uses.sort();
        uses.dedup();
        crates.insert(name(package)?, uses);
    }
    Ok(crates)
}

fn violations(crates: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, uses) in crates {
        match ALLOWED.iter().find(|(known, _)| known == name) {
            None => broken.push(format!(
                "  {name} is not in the table of xtask/src/crates.rs: add what it may use"
            )),
            Some((_, None)) => {}
            Some((_, Some(allowed))) => {
                let stray = uses.iter().filter(|it| !allowed.contains(&it.as_str()));
                broken.extend(stray.map(|it| format!("  {name} must not depend on {it}")));
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations_of(name: &str, uses: &[&str]) -> Vec<String> {
        let list = |names: &[&str]| {
            let entry = |name: &&str| format!(r#"{{"name": "{name}", "path": "/p"}}"#);
            names.iter().map(entry).collect::<Vec<_>>().join(",")
        };
        let outside = r#"{"name": "serde", "path": null}"#;
        let separator = if uses.is_empty() { "" } else { "," };
        let json = format!(
            r#"{{"packages": [{{"name": "{name}", "dependencies": [{outside}{separator}{}]}}]}}"#,
            list(uses)
        );
        violations(&dependencies(&serde_json::from_str(&json).unwrap()).unwrap())
    }

    #[test]
    fn the_arrow_points_one_way() {
        assert!(
            violations_of(
                "palimpsest-worker",
                &["palimpsest-engine", "palimpsest-proto"]
            )
            .is_empty()
        );
        assert!(
            violations_of(
                "palimpsest",
                &["palimpsest-coordinator", "palimpsest-worker"]
            )
            .is_empty()
        );
        assert!(violations_of("palimpsest-proto", &[]).is_empty());
        for (name, uses) in [
            ("palimpsest-coordinator", "palimpsest-kernels"),
            ("palimpsest-coordinator", "palimpsest-worker"),
            ("palimpsest-kernels", "palimpsest-proto"),
            ("palimpsest-proto", "palimpsest-kernels"),
        ] {
            assert_eq!(
                violations_of(name, &[uses]),
                [format!("  {name} must not depend on {uses}")]
            );
        }
    }

    #[test]
    fn a_crate_outside_the_table_is_refused() {
        assert_eq!(violations_of("palimpsest-extra", &[]).len(), 1);
    }
}
