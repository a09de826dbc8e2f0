//! `cargo xtask deploy-check`: the manifests in deploy/, rendered, against schemas, against each
//! other, and against the program they start; some overlays are started, as processes. No cluster
//! is needed, and none is proven to run them.

mod commands;
mod manifests;
mod metrics;
mod pods;
mod references;
mod secrets;
mod start;
mod trust;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use manifests::Manifests;
use serde_json::Value;

use crate::process::{output, succeeds};
use crate::tools;

const DEPLOY: &str = "deploy";
/// Where base, or an overlay, and components are put together, so that components that no overlay
/// uses are checked as well.
const SCRATCH: &str = "target/deploy-check";
/// What this machine can run.
const STARTED: [&str; 3] = ["dev", "cpu", "dev with tls"];
/// Manifests whose coordinators are told the same, in two places.
const COMPARED: [&str; 2] = ["base with recreate-group", "base with scale-out"];
const VALIDATE: &str = "deploy/schemas/validate.py";

/// Renders and checks every overlay, and the base with every component.
///
/// # Errors
/// When a manifest is wrong, or a tool other than kubectl is missing.
pub fn check() -> Result<()> {
    println!("==> deploy");
    if !succeeds(Command::new("kubectl").args(["version", "--client"])) {
        println!("    SKIPPED: kubectl is not installed");
        return Ok(());
    }
    // The schemas of Kubernetes 1.34, and what reads them.
    let packages = tools::python_packages("deploy")?;
    let readme =
        fs::read_to_string(Path::new(DEPLOY).join("README.md")).context("deploy/README.md")?;
    let names = metrics::Names::read(&Path::new(DEPLOY).join("metrics.txt"))?;
    let program = commands::Program::find()?;
    let mut problems = metrics::dashboard_problems(&names)?;
    let (mut runnable, mut compared) = (Vec::new(), Vec::new());
    for (name, root) in roots()? {
        let (manifests, mut found) = validated(&packages, &root)?;
        found.extend(pods::problems(&manifests));
        found.extend(pods::drain_problems(
            &manifests,
            pods::drain_limit_seconds()?,
        ));
        found.extend(references::problems(&manifests, &readme));
        found.extend(metrics::alert_problems(&manifests, &names));
        found.extend(commands::group_problems(&manifests));
        found.extend(program.problems(&manifests));
        found.extend(trust::problems(&name, &manifests));
        println!(
            "    {name}: {} objects, {} problems",
            manifests.len(),
            found.len()
        );
        problems.extend(
            found
                .into_iter()
                .map(|problem| format!("{name}: {problem}")),
        );
        if COMPARED.contains(&name.as_str()) {
            compared.push(manifests.clone());
        }
        if STARTED.contains(&name.as_str()) {
            runnable.push((name, manifests));
        }
    }
    match compared.as_slice() {
        [one, other] => problems.extend(commands::coordinator_problems(COMPARED, [one, other])),
        _ => bail!("deploy/ has not both of {COMPARED:?}"),
    }
    ensure!(
        problems.is_empty(),
        "deploy/ has problems:\n  {}",
        problems.join("\n  ")
    );
    ensure!(
        runnable.len() == STARTED.len(),
        "deploy/ has not all of {STARTED:?}"
    );
    if !succeeds(Command::new("etcd").arg("--version")) {
        println!("    SKIPPED: nothing is started, etcd is not installed");
        return Ok(());
    }
    let model = PathBuf::from(output(Command::new(program.path()).arg("pull"))?.trim());
    runnable
        .iter()
        .try_for_each(|(name, manifests)| start::overlay(name, manifests, &program, &model))
}

/// What is rendered: a name and a directory with a kustomization.
fn roots() -> Result<Vec<(String, PathBuf)>> {
    let mut roots = Vec::new();
    for directory in directories("overlays")? {
        roots.push((name_of(&directory), directory));
    }
    ensure!(!roots.is_empty(), "{DEPLOY}/overlays is empty");
    for component in directories("components")? {
        for (below, components) in stacks(&name_of(&component)) {
            let name = format!(
                "{} with {}",
                below.trim_start_matches("overlays/"),
                components.join(" and ")
            );
            let scratch = Path::new(SCRATCH).join(name.replace(' ', "-"));
            fs::create_dir_all(&scratch)
                .with_context(|| format!("cannot create {}", scratch.display()))?;
            let up = "../../..";
            let components: Vec<String> = components
                .iter()
                .map(|component| format!("{up}/{DEPLOY}/components/{component}"))
                .collect();
            // The image has no tag in the base: overlays choose it.
            let text = format!(
                "namespace: palimpsest\nresources: [{up}/{DEPLOY}/{below}]\ncomponents: \
                 [{}]\nimages: [{{name: palimpsest, newTag: check}}]\n",
                components.join(", ")
            );
            fs::write(scratch.join("kustomization.yaml"), text)?;
            roots.push((name, scratch));
        }
    }
    Ok(roots)
}

/// What a component is checked above, and with which components, in their order.
fn stacks(component: &str) -> Vec<(&'static str, Vec<&str>)> {
    match component {
        // The overlays cpu and cuda have it. What it changes in monitoring is checked only where
        // that is.
        "tls" => vec![
            ("overlays/dev", vec!["tls"]),
            ("base", vec!["monitoring", "scale-out", "tls"]),
            ("base", vec!["monitoring", "cuda", "scale-out", "tls"]),
        ],
        other => vec![("base", vec![other])],
    }
}

fn directories(kind: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(DEPLOY).join(kind);
    let entries = fs::read_dir(&path).with_context(|| path.display().to_string())?;
    let mut directories: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    directories.retain(|directory| directory.join("kustomization.yaml").exists());
    directories.sort();
    Ok(directories)
}

fn name_of(directory: &Path) -> String {
    directory
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The objects of a kustomization, and what its schemas say against them.
fn validated(packages: &Path, root: &Path) -> Result<(Manifests, Vec<String>)> {
    let rendered = output(Command::new("kubectl").arg("kustomize").arg(root))?;
    let mut validate = Command::new("python3");
    validate
        .arg(VALIDATE)
        .env("PYTHONPATH", packages)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = validate.spawn().context("cannot start python3")?;
    // The script reads everything before it writes, so neither side waits for the other.
    child
        .stdin
        .take()
        .expect("stdin was requested as a pipe")
        .write_all(rendered.as_bytes())?;
    let answer = child.wait_with_output()?;
    if !answer.status.success() {
        bail!("{VALIDATE} failed: {}", answer.status);
    }
    let mut answer: Value = serde_json::from_slice(&answer.stdout).context(VALIDATE)?;
    let problems = serde_json::from_value(answer["problems"].take())?;
    Ok((
        Manifests::new(serde_json::from_value(answer["documents"].take())?),
        problems,
    ))
}
