//! A process of Debian's etcd-server.
//!
//! This file is compiled into three programs: into these tests, into the registry's own, and into
//! `cargo xtask cluster`. It therefore uses the standard library alone.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// An etcd that ends with this, and its data with it.
#[derive(Debug)]
pub struct EtcdProcess {
    child: Child,
    /// Where its clients reach it.
    pub url: String,
    data: PathBuf,
}

impl EtcdProcess {
    /// Starts an empty etcd for clients at `url`, with more arguments. It takes a moment until it
    /// listens. `None`, and said so, where the program is not installed.
    pub fn spawn(url: String, more: &[&str]) -> Option<Self> {
        let peers = free_url();
        let port = peers.rsplit(':').next().unwrap_or_default();
        let data =
            std::env::temp_dir().join(format!("palimpsest-etcd-{}-{port}", std::process::id()));
        let spawned = command(&data, &url, &peers)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = spawned else {
            eprintln!("SKIPPED: no etcd here; `cargo xtask test` installs Debian's etcd-server");
            return None;
        };
        Some(Self { child, url, data })
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &self.child.id().to_string()])
            .status();
        assert!(sent.expect("kill runs").success(), "etcd has ended");
    }
}

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        // One that has ended already is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

/// The command that starts an etcd of one member: with its data in `data`, for clients at the URL
/// `clients`, listening for other members at the URL `peers`.
pub fn command(data: &Path, clients: &str, peers: &str) -> Command {
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(data)
        .args(["--listen-client-urls", clients])
        .args(["--advertise-client-urls", clients])
        .args(["--listen-peer-urls", peers])
        .args(["--initial-advertise-peer-urls", peers])
        .args(["--initial-cluster", &format!("default={peers}")]);
    command
}

/// A URL of this machine that was free a moment ago.
///
/// # Panics
/// When no port is free.
pub fn free_url() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("http://{}", listener.local_addr().expect("an address"))
}
