//! Modules inside a crate depend on each other one way: no circle. A circle is a room whose parts
//! cannot be read, tested or moved one by one.

mod graph;
mod paths;
mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use graph::Graph;
use tree::Tree;

/// Crates, by folder, in which a circle is refused.
const REFUSED: &[&str] = &[
    "proto",
    "guide",
    "hub",
    "tls",
    "registry",
    "coordinator",
    "models",
    "collective",
    "engine",
    "worker",
    "calibrate",
    "eval",
    "load",
    "xtask",
    "kernels",
    ".",
];

/// Prints the circles between the modules of each crate.
///
/// # Errors
/// When a crate that must have none has one, or a file cannot be read.
pub fn check() -> Result<()> {
    println!("==> circles between modules");
    let mut refused = Vec::new();
    for folder in REFUSED {
        if !Path::new(folder).join("src").is_dir() {
            continue;
        }
        let circles = circles_of(Path::new(folder))?;
        println!("    {:>5} in {folder}", circles.len());
        circles.iter().for_each(|circle| print!("{circle}"));
        if !circles.is_empty() {
            refused.push(*folder);
        }
    }
    ensure!(
        refused.is_empty(),
        "circles between the modules of {}: move what ties them into a module that both use",
        refused.join(", ")
    );
    Ok(())
}

/// The circles of one crate, as text: its modules, and the names that tie them.
fn circles_of(folder: &Path) -> Result<Vec<String>> {
    let root = folder.join("src");
    let entry = ["lib.rs", "main.rs"]
        .map(|name| root.join(name))
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("{} has neither lib.rs nor main.rs", root.display()))?;
    let mut sources = BTreeMap::new();
    read_folder(&root, &root, &mut sources)?;
    let entry = entry
        .file_name()
        .context("a file")?
        .to_string_lossy()
        .into_owned();
    let graph = Graph::of(&Tree::read(&entry, &sources));
    let circles = graph.circles();
    Ok(circles.iter().map(|circle| graph.show(circle)).collect())
}

/// Rust files below `folder`, by path from `root`.
fn read_folder(root: &Path, folder: &Path, sources: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    let read = || fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>();
    for entry in read().with_context(|| folder.display().to_string())? {
        let path = entry.path();
        if path.is_dir() {
            read_folder(root, &path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            sources.insert(path.strip_prefix(root)?.to_owned(), source);
        }
    }
    Ok(())
}
