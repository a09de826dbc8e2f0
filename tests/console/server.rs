//! The program, serving a model to browsers.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A server, which ends with this.
pub struct Server {
    child: Child,
    /// `http://host:port`.
    pub address: String,
}

impl Server {
    /// Serves a model with further arguments.
    pub fn start(model: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palimpsest"));
        command
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
                "--model",
            ])
            .arg(model)
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program runs");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut log = String::new();
        let address = loop {
            let start = log.len();
            let read = lines.read_line(&mut log).expect("text");
            assert!(read > 0, "it ended: {log}");
            if let Some((_, rest)) = log[start..].split_once("for people at ") {
                let console = rest.split_whitespace().next().unwrap_or_default();
                break console.trim_end_matches("/console").to_owned();
            }
        };
        // Somebody must read what it says, or it waits.
        std::thread::spawn(move || lines.read_to_string(&mut log));
        Self { child, address }
    }

    /// Where the console is.
    pub fn console(&self) -> String {
        format!("{}/console", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
