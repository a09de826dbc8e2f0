//! Which of our crates may depend on which. The direction is the design: see ARCHITECTURE.md.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::{cargo_with, output};

/// Each crate with the crates of ours it may name as a dependency of any kind. `None` stands for
/// all of them.
const ALLOWED: &[(&str, Option<&[&str]>)] = &[
    ("palimpsest-proto", Some(&[])),
    ("palimpsest-guide", Some(&["palimpsest-proto"])),
    ("palimpsest-kernels", Some(&[])),
    ("palimpsest-tls", Some(&[])),
    ("palimpsest-hub", Some(&[])),
    ("palimpsest-store", Some(&[])),
    ("palimpsest-registry", Some(&["palimpsest-tls"])),
    (
        "palimpsest-coordinator",
        Some(&[
            "palimpsest-proto",
            "palimpsest-guide",
            "palimpsest-registry",
            "palimpsest-store",
            "palimpsest-tls",
        ]),
    ),
    ("palimpsest-models", Some(&["palimpsest-kernels"])),
    ("palimpsest-collective", Some(&["palimpsest-kernels"])),
    (
        "palimpsest-engine",
        Some(&[
            "palimpsest-proto",
            "palimpsest-guide",
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
            "palimpsest-store",
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
    ("palimpsest-load", Some(&["palimpsest-tls"])),
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
    let page = fs::read_to_string(PAGE).with_context(|| PAGE.to_owned())?;
    check_page(&page).context(PAGE)
}

/// `cargo xtask crates`: prints the block of [`PAGE`] that draws the table.
///
/// # Errors
/// Never.
pub fn print_drawing() -> Result<()> {
    print!("{BEGIN}\n{}{END}\n", drawing());
    Ok(())
}

/// The page whose drawing of the crates is the table's.
const PAGE: &str = "ARCHITECTURE.md";
/// Between these lines.
const BEGIN: &str = "<!-- crates:begin -->";
const END: &str = "<!-- crates:end -->";

/// The table as a diagram that Markdown shows (Mermaid): each crate with those that it may use.
/// Crates that may use all are drawn with those that no other crate uses.
fn drawing() -> String {
    let short = |name: &str| name.strip_prefix("palimpsest-").unwrap_or(name).to_owned();
    let is_used = |name: &&str| {
        let used = |(_, uses): &(&str, Option<&[&str]>)| uses.is_some_and(|it| it.contains(name));
        ALLOWED.iter().any(used)
    };
    let tops = ALLOWED
        .iter()
        .filter(|(name, uses)| uses.is_some() && *name != "xtask")
        .map(|(name, _)| *name)
        .filter(|name| !is_used(name));
    let tops: Vec<String> = tops.map(short).collect();
    let mut text = "```mermaid\nflowchart TD\n".to_owned();
    text += &format!("    all[palimpsest, tests] --> {}\n", tops.join(" & "));
    for (name, uses) in ALLOWED {
        let uses: Vec<String> = uses
            .unwrap_or_default()
            .iter()
            .map(|it| short(it))
            .collect();
        if !uses.is_empty() {
            text += &format!("    {} --> {}\n", short(name), uses.join(" & "));
        }
    }
    text + "```\n"
}

/// Whether the page holds the drawing of today's table.
///
/// # Errors
/// What is wrong with it.
fn check_page(page: &str) -> Result<()> {
    let block = page
        .split_once(BEGIN)
        .and_then(|(_, rest)| rest.split_once(END))
        .map(|(block, _)| block.trim())
        .with_context(|| format!("no lines {BEGIN} and {END}"))?;
    ensure!(
        block == drawing().trim(),
        "its drawing of the crates is not the one of xtask/src/crates.rs; put in what \
         `cargo xtask crates` prints"
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
                // A crate that names itself asks for a feature of its own in its tests.
                let stray = uses
                    .iter()
                    .filter(|it| *it != name && !allowed.contains(&it.as_str()));
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
    fn the_page_shows_the_table() {
        let drawing = drawing();
        assert!(
            drawing.contains("\n    worker --> proto & tls & "),
            "{drawing}"
        );
        let page = |block: &str| format!("a\n{BEGIN}\n{block}{END}\nb\n");
        check_page(&page(&drawing)).unwrap();
        check_page(&page(&drawing.replace(" & ", " & x & "))).unwrap_err();
        check_page(&drawing).unwrap_err();
    }

    #[test]
    fn a_crate_outside_the_table_is_refused() {
        assert_eq!(violations_of("palimpsest-extra", &[]).len(), 1);
    }
}
