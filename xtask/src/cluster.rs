//! `cargo xtask cluster`: etcd, a coordinator and its ranks as processes of this machine, until
//! Ctrl-C.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The file of the tests that start an etcd; only its command is of use here.
#[path = "../../tests/src/etcd.rs"]
#[allow(dead_code)]
mod etcd;

use crate::process::{cargo_with, run};
use crate::{crates, tools};

/// Where etcd keeps its data, below the target directory; emptied at each start.
const DATA: &str = "cluster/etcd";
const ETCD: &str = "http://127.0.0.1:23790";
const ETCD_PEERS: &str = "http://127.0.0.1:23800";
const FIRST_RANK_PORT: u16 = 50061;

/// Ends with what holds it.
struct Process {
    name: String,
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the cluster. `args`: `--tp N`, then what goes to every worker (`--model`, `--kv-budget`,
/// …).
///
/// # Errors
/// When something cannot be built or started, or when a process ends by itself.
pub fn run_local(args: &[&str]) -> Result<()> {
    let (tp, rest) = match args {
        ["--tp", count, rest @ ..] => (count.parse::<u16>().context("--tp wants a number")?, rest),
        rest => (2, rest),
    };
    tools::install_system_packages()?;
    run(&mut cargo_with(&[
        "build",
        "--release",
        "--locked",
        "--features",
        "cluster",
    ]))?;
    let target = crates::target_directory()?;
    let program = target.join("release/palimpsest");
    let mut processes = vec![start_etcd(&target.join(DATA))?];
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (threads, tp_text) = ((cores / usize::from(tp)).max(1).to_string(), tp.to_string());
    for rank in 0..tp {
        let mut worker = Command::new(&program);
        worker.args([
            "worker",
            "--etcd",
            ETCD,
            "--tp",
            &tp_text,
            "--rank",
            &rank.to_string(),
            "--threads",
            &threads,
        ]);
        worker
            .args([
                "--listen",
                &format!("127.0.0.1:{}", FIRST_RANK_PORT + rank),
                "--log",
                "info",
            ])
            .args(rest);
        processes.push(start(&format!("rank {rank}"), &mut worker)?);
    }
    let mut coordinator = Command::new(&program);
    coordinator.args([
        "coordinator",
        "--etcd",
        ETCD,
        "--tp",
        &tp_text,
        "--log",
        "info",
    ]);
    processes.push(start("coordinator", &mut coordinator)?);
    println!(
        "ask with: {} generate --prompt \"…\"; end with Ctrl-C",
        program.display()
    );
    wait(&mut processes)
}

fn start_etcd(data: &Path) -> Result<Process> {
    // Leases of processes that were killed would keep their ranks taken.
    if data.exists() {
        std::fs::remove_dir_all(data)
            .with_context(|| format!("cannot empty {}", data.display()))?;
    }
    let mut etcd = etcd::command(data, ETCD, ETCD_PEERS);
    etcd.args(["--log-level", "error"]);
    let process = start("etcd", &mut etcd)?;
    let address = ETCD
        .trim_start_matches("http://")
        .parse()
        .context("etcd's address")?;
    for _ in 0..200 {
        if std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
            return Ok(process);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("etcd does not listen at {ETCD}")
}

/// Starts a process whose lines are printed behind its name.
fn start(name: &str, command: &mut Command) -> Result<Process> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    for stream in [
        child.stdout.take().map(erase),
        child.stderr.take().map(erase),
    ]
    .into_iter()
    .flatten()
    {
        let name = name.to_owned();
        std::thread::spawn(move || {
            for line in BufReader::new(stream)
                .lines()
                .map_while(std::result::Result::ok)
            {
                println!("{name:>12} | {line}");
            }
        });
    }
    Ok(Process {
        name: name.to_owned(),
        child,
    })
}

fn erase<R: std::io::Read + Send + 'static>(stream: R) -> Box<dyn std::io::Read + Send> {
    Box::new(stream)
}

/// Waits until one of them ends. Ctrl-C reaches them all: the coordinator drains.
fn wait(processes: &mut [Process]) -> Result<()> {
    loop {
        for process in processes.iter_mut() {
            if let Some(status) = process.child.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!("{} ended: {status}", process.name);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
