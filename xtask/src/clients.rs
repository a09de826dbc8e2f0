//! `cargo xtask clients`: the clients that people bring, unchanged, against a server of this build.
//!
//! ```text
//! tests/clients ─copied, with the server's addresses─▶ target/clients ─run in turn─▶ a line each
//! ```
//!
//! A client is a script of `tests/clients`, whose lines the book shows. It ends with `ok`.

mod server;
mod suite;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use self::server::{Addresses, Server};
use self::suite::{CLIENTS, Client, Kind};
use crate::process::{cargo_with, run};
use crate::{crates, node, tools};

/// The scripts, as the documents show them.
const SCRIPTS: &str = "tests/clients";
/// Where they run from, and what they print, below the target directory.
const FOLDER: &str = "clients";
/// Seconds that a client may take.
const LIMIT_SECONDS: &str = "300";
/// Characters of what is said of a failure; the log has all of it.
const MAX_SAID: usize = 300;

/// What is run.
#[derive(Debug, Default, Eq, PartialEq)]
struct Asked {
    names: Vec<String>,
    /// Those that CI runs.
    quick: bool,
    list: bool,
    /// A program that was built before.
    program: Option<PathBuf>,
    /// A server that runs already.
    http: Option<String>,
    grpc: Option<String>,
}

/// How one client fared.
struct Outcome {
    failure: Option<String>,
    seconds: f64,
}

/// The subcommand: installs what the clients need, starts a server, and runs them.
///
/// # Errors
/// When a client fails, or something cannot be installed or started.
pub fn run_suite(args: &[&str]) -> Result<()> {
    let asked = Asked::parse(args)?;
    if asked.list {
        for client in CLIENTS {
            let quick = if client.is_quick { "  in CI" } else { "" };
            println!("{:<14} {}{quick}", client.name, client.script);
        }
        return Ok(());
    }
    let clients = asked.clients()?;
    let folder = crates::target_directory()?.join(FOLDER);
    let logs = folder.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let program = asked.program()?;
    let started = Instant::now();
    let programs = clients
        .iter()
        .map(|client| interpreter(client.kind))
        .collect::<Result<Vec<_>>>()?;
    println!(
        "    installed after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    let server = match &asked.http {
        Some(_) => None,
        None => Some(Server::start(&program, &folder.join("server.log"))?),
    };
    let addresses = match &server {
        Some(server) => server.addresses.clone(),
        None => asked.addresses(),
    };
    let scripts = folder.join("scripts");
    copy_scripts(Path::new(SCRIPTS), &scripts, &addresses)?;

    let mut failed = 0;
    for (client, interpreter) in clients.iter().zip(programs) {
        let script = scripts.join(client.script);
        let log = logs.join(format!("{}.log", client.name));
        let outcome = run_client(interpreter, &script, &program, &log)?;
        println!("{}", outcome.line(client.name));
        if outcome.failure.is_some() {
            failed += 1;
            println!("     {}", log.display());
        }
    }
    drop(server);
    let passed = clients.len() - failed;
    // As cargo test closes: `cargo xtask test` counts these with its own.
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed");
    ensure!(failed == 0, "{failed} clients failed");
    Ok(())
}

/// The clients that CI runs, as a suite of tests over a program that was built.
///
/// # Errors
/// When cargo does not say where it builds.
pub fn quick_suite(program: &Path) -> Result<Command> {
    // The tests' build may have put another file in the place of this program.
    let mut suite = Command::new(crates::target_directory()?.join("debug/xtask"));
    suite.args(["clients", "--quick", "--program"]).arg(program);
    Ok(suite)
}

/// What runs the scripts of a kind, after what they need was installed.
fn interpreter(kind: Kind) -> Result<Command> {
    match kind {
        Kind::Python(purpose) => {
            let mut python = Command::new("python3");
            python.env("PYTHONPATH", tools::python_packages(purpose)?);
            Ok(python)
        }
        Kind::Node => {
            let node = node::install(&Path::new(SCRIPTS).join("node"))?;
            Ok(Command::new(node.program))
        }
        Kind::Shell(purpose) => {
            let mut shell = Command::new("sh");
            shell.arg("-eu");
            if let Some(purpose) = purpose {
                let packages = tools::python_packages(purpose)?;
                // Programs that came with the packages, by their names.
                let path = std::env::var_os("PATH").unwrap_or_default();
                let path =
                    std::iter::once(packages.join("bin")).chain(std::env::split_paths(&path));
                shell.env("PATH", std::env::join_paths(path)?);
                shell.env("PYTHONPATH", packages);
            }
            Ok(shell)
        }
    }
}

/// Runs a script to its end, with all that it prints in a file.
fn run_client(interpreter: Command, script: &Path, program: &Path, log: &Path) -> Result<Outcome> {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after", "5", LIMIT_SECONDS])
        .arg(interpreter.get_program())
        .args(interpreter.get_args())
        .arg(script);
    for (name, value) in interpreter.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command.env("PALIMPSEST", program);
    for (name, value) in suite::ENVIRONMENT {
        command.env(name, value);
    }
    let file = fs::File::create(log).with_context(|| log.display().to_string())?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let started = Instant::now();
    let status = command.status().context("cannot start `timeout`")?;
    let said = fs::read(log)?;
    let said = String::from_utf8_lossy(&said);
    let ended_well = said.lines().any(|line| line == "ok");
    let failure = match status.code() {
        Some(0) if ended_well => None,
        Some(0) => Some("it did not come to its end".to_owned()),
        Some(124) => Some(format!("it took longer than {LIMIT_SECONDS} s")),
        _ => Some(reason(&said)),
    };
    Ok(Outcome {
        failure,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// What a script that failed said last of an error.
fn reason(said: &str) -> String {
    let is_error = |line: &&str| {
        let named = ["Error", "Exception"]
            .iter()
            .any(|word| line.contains(word));
        named && !line.starts_with(char::is_whitespace)
    };
    let mut lines = said.lines().rev();
    let last = || said.lines().rfind(|line| !line.trim().is_empty());
    let line = lines.find(is_error).or_else(last).unwrap_or_default();
    line.chars().take(MAX_SAID).collect()
}

/// Copies the scripts, with the addresses of this server where they name the usual ones.
fn copy_scripts(from: &Path, to: &Path, addresses: &Addresses) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot empty {}", to.display()))?;
    }
    for kind in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let kind = kind?;
        if !kind.file_type()?.is_dir() {
            continue;
        }
        let folder = to.join(kind.file_name());
        fs::create_dir_all(&folder)?;
        for script in fs::read_dir(kind.path())? {
            let script = script?;
            if script.file_type()?.is_file() {
                let text = fs::read_to_string(script.path())?;
                fs::write(folder.join(script.file_name()), addresses.put_into(&text))?;
            }
        }
    }
    // Modules are looked for above the script.
    let modules = node::modules()?;
    if modules.exists() {
        std::os::unix::fs::symlink(modules, to.join("node/node_modules"))?;
    }
    Ok(())
}

impl Asked {
    fn parse(args: &[&str]) -> Result<Self> {
        let mut asked = Self::default();
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            let mut value = || {
                let value = args
                    .next()
                    .with_context(|| format!("{arg} needs a value"))?;
                anyhow::Ok((*value).to_owned())
            };
            match arg {
                "--quick" => asked.quick = true,
                "--list" => asked.list = true,
                "--program" => asked.program = Some(std::path::absolute(value()?)?),
                "--server" => asked.http = Some(value()?),
                "--grpc" => asked.grpc = Some(value()?),
                _ if arg.starts_with('-') => bail!(
                    "unknown argument `{arg}`: [--list] [--quick] [--program FILE] [--server URL \
                     [--grpc ADDRESS]] [NAME…]"
                ),
                name => asked.names.push(name.to_owned()),
            }
        }
        ensure!(
            asked.grpc.is_none() || asked.http.is_some(),
            "--grpc is where the server of --server speaks gRPC: give both"
        );
        Ok(asked)
    }

    /// The clients that are asked for, in the suite's order.
    fn clients(&self) -> Result<Vec<&'static Client>> {
        let is_unknown = |name: &&String| !CLIENTS.iter().any(|client| client.name == **name);
        if let Some(name) = self.names.iter().find(is_unknown) {
            bail!("no client is called {name}: `cargo xtask clients --list` lists them");
        }
        let is_asked = |client: &&Client| {
            let by_name = self.names.is_empty() || self.names.iter().any(|n| n == client.name);
            by_name && (!self.quick || client.is_quick)
        };
        Ok(CLIENTS.iter().filter(is_asked).collect())
    }

    /// The program that serves, and that clients compare with.
    fn program(&self) -> Result<PathBuf> {
        if let Some(program) = &self.program {
            return Ok(program.clone());
        }
        let build = ["build", "--release", "--locked", "--bin", "palimpsest"];
        run(&mut cargo_with(&build))?;
        Ok(crates::target_directory()?.join("release/palimpsest"))
    }

    /// Where a server is that runs already.
    fn addresses(&self) -> Addresses {
        let usual = Addresses::default();
        let http = self.http.as_deref().unwrap_or(&usual.http);
        Addresses {
            http: http.trim_end_matches('/').to_owned(),
            grpc: self.grpc.clone().unwrap_or(usual.grpc),
        }
    }
}

impl Outcome {
    fn line(&self, name: &str) -> String {
        let seconds = self.seconds;
        match &self.failure {
            None => format!("PASS {name:<16} {seconds:6.1} s"),
            Some(why) => format!("FAIL {name:<16} {seconds:6.1} s  {why}"),
        }
    }
}

#[cfg(test)]
mod tests;
