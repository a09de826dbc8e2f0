//! `cargo xtask sbom`: what the program is made of, in CycloneDX's form: every crate that is linked
//! into it, with its version, licence and checksum. It is read from `cargo metadata` and
//! Cargo.lock, which is what a build with `--locked` takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::crates;
use crate::process::{cargo_with, output};
use crate::test::CLUSTER;

/// The package that is shipped.
const PROGRAM: &str = "palimpsest";
/// Where the list is written, below the target directory.
const FILE: &str = "sbom/palimpsest.cdx.json";

/// Writes the list and says where.
///
/// # Errors
/// When a crate of somebody else has no checksum, or cargo fails.
pub fn write() -> Result<()> {
    let path = crates::target_directory()?.join(FILE);
    let list = list(&metadata()?, &fs::read_to_string("Cargo.lock")?)?;
    let count = list["components"].as_array().map_or(0, Vec::len);
    fs::create_dir_all(path.parent().context("the file has a folder")?)?;
    fs::write(&path, format!("{list:#}\n"))?;
    println!("    {}: {count} crates", path.display());
    Ok(())
}

/// What cargo knows of the crates of an image.
fn metadata() -> Result<Value> {
    let mut metadata = cargo_with(&["metadata", "--format-version", "1", "--locked"]);
    let json = output(metadata.args(CLUSTER))?;
    serde_json::from_str(&json).context("cargo metadata printed no JSON")
}

fn list(metadata: &Value, lock: &str) -> Result<Value> {
    let checksums = checksums(lock);
    let packages: BTreeMap<&str, &Value> = array(&metadata["packages"])
        .map(|package| (text(&package["id"]), package))
        .collect();
    let program = packages
        .values()
        .find(|package| text(&package["name"]) == PROGRAM)
        .context("cargo metadata does not know the program")?;
    let nodes: BTreeMap<&str, &Value> = array(&metadata["resolve"]["nodes"])
        .map(|node| (text(&node["id"]), node))
        .collect();
    let linked = linked(text(&program["id"]), &nodes);
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for id in &linked {
        let package = packages.get(id).context("a crate without a package")?;
        let needs: Vec<String> = needs(nodes.get(id).copied())
            .filter_map(|id| packages.get(id).map(|package| purl(package)))
            .collect();
        dependencies.push(json!({"ref": purl(package), "dependsOn": needs}));
        if text(&package["name"]) != PROGRAM {
            components.push(component(package, &checksums)?);
        }
    }
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {
            "type": "application", "bom-ref": purl(program), "name": PROGRAM,
            "version": program["version"], "purl": purl(program),
        }},
        "components": components,
        "dependencies": dependencies,
    }))
}

/// Ids of a crate and of all that it links, not of what builds or tests it alone.
fn linked<'a>(program: &'a str, nodes: &BTreeMap<&'a str, &'a Value>) -> BTreeSet<&'a str> {
    let (mut found, mut open) = (BTreeSet::new(), vec![program]);
    while let Some(id) = open.pop() {
        if found.insert(id) {
            open.extend(needs(nodes.get(id).copied()));
        }
    }
    found
}

/// Ids of what a crate links itself.
fn needs(node: Option<&Value>) -> impl Iterator<Item = &str> {
    let dependencies = node.into_iter().flat_map(|node| array(&node["deps"]));
    let is_linked =
        |dependency: &&Value| array(&dependency["dep_kinds"]).any(|kind| kind["kind"].is_null());
    dependencies
        .filter(is_linked)
        .map(|dependency| text(&dependency["pkg"]))
}

fn component(package: &Value, checksums: &BTreeMap<String, String>) -> Result<Value> {
    let (name, version) = (text(&package["name"]), text(&package["version"]));
    let mut component = json!({
        "type": "library", "bom-ref": purl(package), "name": name, "version": version,
        "purl": purl(package),
    });
    if let Some(licence) = package["license"].as_str() {
        component["licenses"] = json!([{"expression": licence}]);
    }
    // Our own crates come with the source itself.
    if !package["source"].is_null() {
        let checksum = checksums.get(&format!("{name} {version}"));
        ensure!(
            checksum.is_some(),
            "{name} {version} has no checksum in Cargo.lock"
        );
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    Ok(component)
}

/// Name of a package in the form that scanners look up.
fn purl(package: &Value) -> String {
    let (name, version) = (text(&package["name"]), text(&package["version"]));
    format!("pkg:cargo/{name}@{version}")
}

/// `name version` to checksum, of the packages in Cargo.lock that have one.
fn checksums(lock: &str) -> BTreeMap<String, String> {
    let mut checksums = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let start = format!("{name} = \"");
            let line = package.lines().find_map(|line| line.strip_prefix(&start));
            line.and_then(|line| line.strip_suffix('"'))
        };
        if let (Some(name), Some(version), Some(checksum)) =
            (field("name"), field("version"), field("checksum"))
        {
            checksums.insert(format!("{name} {version}"), checksum.to_owned());
        }
    }
    checksums
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, source: Option<&str>) -> Value {
        json!({
            "id": name, "name": name, "version": "1.2.3", "license": "MIT", "source": source,
        })
    }

    fn node(name: &str, needs: &[(&str, Option<&str>)]) -> Value {
        let needs = needs
            .iter()
            .map(|(name, kind)| json!({"pkg": name, "dep_kinds": [{"kind": kind}]}));
        json!({"id": name, "deps": needs.collect::<Vec<_>>()})
    }

    fn tree() -> Value {
        let registry = Some("registry+https://example.org");
        json!({
            "packages": [
                package("palimpsest", None), package("ours", None),
                package("theirs", registry), package("builds", registry),
            ],
            "resolve": {"nodes": [
                node("palimpsest", &[("ours", None), ("builds", Some("build"))]),
                node("ours", &[("theirs", None), ("builds", Some("dev"))]),
                node("theirs", &[]), node("builds", &[]),
            ]},
        })
    }

    const LOCK: &str = "version = 4\n\n[[package]]\nname = \"theirs\"\nversion = \"1.2.3\"\n\
                        checksum = \"abcd\"\n\n[[package]]\nname = \"ours\"\n\
                        version = \"1.2.3\"\ndependencies = [\n \"theirs\",\n]\n";

    #[test]
    fn what_is_linked_is_listed_with_licence_and_checksum() {
        let list = list(&tree(), LOCK).expect("a list");
        let names: Vec<&str> = array(&list["components"])
            .map(|component| text(&component["name"]))
            .collect();
        assert_eq!(names, ["ours", "theirs"], "not what builds and tests");
        let theirs = &list["components"][1];
        assert_eq!(theirs["purl"], "pkg:cargo/theirs@1.2.3");
        assert_eq!(theirs["licenses"][0]["expression"], "MIT");
        assert_eq!(theirs["hashes"][0]["content"], "abcd");
        assert!(list["components"][0]["hashes"].is_null());
        let needs = array(&list["dependencies"])
            .find(|one| one["ref"] == "pkg:cargo/ours@1.2.3")
            .expect("ours");
        assert_eq!(needs["dependsOn"], json!(["pkg:cargo/theirs@1.2.3"]));
    }

    #[test]
    fn a_crate_of_others_without_a_checksum_is_refused() {
        let refused = list(&tree(), "").expect_err("no checksum");
        assert!(refused.to_string().contains("theirs 1.2.3"), "{refused}");
    }
}
