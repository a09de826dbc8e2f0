//! The server that the clients ask.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Where documents find a server.
const HTTP: &str = "http://127.0.0.1:8000";
const GRPC: &str = "127.0.0.1:50051";
/// Time in which a server loads the default model, in a debug build on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(300);
/// Time in which it ends.
const END_LIMIT: Duration = Duration::from_secs(20);

/// Where a server is.
#[derive(Debug, Clone, Eq, PartialEq)]
pub struct Addresses {
    /// With `http://` or `https://`, without a slash behind it.
    pub http: String,
    pub grpc: String,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            http: HTTP.to_owned(),
            grpc: GRPC.to_owned(),
        }
    }
}

impl Addresses {
    /// A script as it stands, with these addresses for those of the documents.
    pub fn put_into(&self, script: &str) -> String {
        let host = |url: &str| {
            url.split_once("://")
                .map_or(url, |(_, host)| host)
                .to_owned()
        };
        script
            .replace(HTTP, &self.http)
            .replace(&host(HTTP), &host(&self.http))
            .replace(GRPC, &self.grpc)
    }
}

/// A server of ours, which ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    pub addresses: Addresses,
    child: Child,
}

impl Server {
    /// Starts the program on ports that nobody uses, with its default model, and waits until it
    /// serves. What it says goes to `log`.
    ///
    /// # Errors
    /// When it ends or does not serve in time.
    pub fn start(program: &Path, log: &Path) -> Result<Self> {
        let (http, grpc) = (free_address()?, free_address()?);
        let mut command = Command::new(program);
        command
            .args([
                "serve",
                "--kv-budget",
                "512",
                "--http",
                &http,
                "--listen",
                &grpc,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log).with_context(|| log.display().to_string())?);
        println!("==> {}", crate::process::display(&command));
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let addresses = Addresses {
            http: format!("http://{http}"),
            grpc,
        };
        let mut server = Self { addresses, child };
        let started = Instant::now();
        loop {
            let said = fs::read_to_string(log).unwrap_or_default();
            if said.lines().any(|line| line.starts_with("serving ")) {
                return Ok(server);
            }
            let ended = server.child.try_wait()?.is_some();
            ensure!(
                !ended && started.elapsed() < START_LIMIT,
                "the server does not serve: {said}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let id = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &id]).status();
        let asked = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && asked.elapsed() < END_LIMIT {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port")?;
    Ok(listener.local_addr()?.to_string())
}
