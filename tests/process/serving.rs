//! A served tiny model, and where it listens.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use palimpsest_tests::{STRIDE, tiny_model};
use tempfile::TempDir;

/// A process that ends with this, also when a test fails before it has stopped it.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // One that has ended already is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends with it.
pub struct Serving {
    child: Ending,
    /// host:port of gRPC.
    pub grpc: String,
    /// host:port of HTTP.
    pub http: String,
    log: std::thread::JoinHandle<String>,
    _model: Option<TempDir>,
}

impl Serving {
    /// Starts it with variables of its environment, and waits until it serves.
    pub fn start(env: &[(&str, &str)]) -> Self {
        Self::start_with(env, &[])
    }

    /// With more arguments.
    pub fn start_with(env: &[(&str, &str)], args: &[&str]) -> Self {
        let model = tiny_model(1);
        let serving = Self::start_over(model.path(), env, args);
        Self {
            _model: Some(model),
            ..serving
        }
    }

    /// Over a model that others may serve as well.
    pub fn start_over(model: &Path, env: &[(&str, &str)], args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palimpsest"));
        command.envs(env.iter().copied());
        Self::run(command, model, args)
    }

    /// The same on a disk that takes no file beyond some kilobytes: a write fails in the middle, as
    /// it does where no room is left.
    pub fn start_on_full_disk(model: &Path, args: &[&str]) -> Self {
        let mut command = Command::new("sh");
        // The signal that comes with such a write would end the process.
        let limited = r#"trap '' XFSZ; ulimit -f 8; exec "$0" "$@""#;
        command.args(["-c", limited, env!("CARGO_BIN_EXE_palimpsest")]);
        Self::run(command, model, args)
    }

    fn run(mut command: Command, model: &Path, args: &[&str]) -> Self {
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--threads",
            "1",
            "--log",
            "info",
        ]);
        command.args([
            "--log-json",
            "--kv-memory-mib",
            "64",
            "--stride",
            &STRIDE.to_string(),
            "--model",
        ]);
        command
            .arg(model)
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = Ending(command.spawn().expect("the program runs"));
        let mut lines = BufReader::new(
            child
                .0
                .stderr
                .take()
                .expect("stderr was requested as a pipe"),
        );
        let mut log = String::new();
        let (grpc, http) = loop {
            let start = log.len();
            assert!(
                lines.read_line(&mut log).expect("text") > 0,
                "it ended: {log}"
            );
            if let Some((before, rest)) = log[start..].split_once(" (gRPC) and http://") {
                let grpc = before.rsplit_once("http://").expect("an address").1;
                let http = rest.split_once("/v1").expect("a path").0;
                break (grpc.to_owned(), http.to_owned());
            }
        };
        let log = std::thread::spawn(move || {
            let _ = lines.read_to_string(&mut log);
            log
        });
        Self {
            child,
            grpc,
            http,
            log,
            _model: None,
        }
    }

    /// KiB that the process has in memory.
    pub fn resident_kib(&self) -> u64 {
        self.figure_kib("VmRSS:")
    }

    /// KiB that the process has had in memory at most.
    pub fn peak_kib(&self) -> u64 {
        self.figure_kib("VmHWM:")
    }

    fn figure_kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.0.id()))
            .expect("a process");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("a figure");
        line.trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("a number")
    }

    /// Sends a request whole and reads the answer whole.
    pub fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.http).expect("a connection");
        let head = format!(
            "{method} {path} HTTP/1.0\r\nhost: localhost\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        stream
            .write_all(format!("{head}{body}").as_bytes())
            .expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text");
        answer
    }

    /// Ends it with SIGTERM and returns its log.
    pub fn stop(self) -> String {
        self.signal("TERM");
        self.ended().log
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &self.child.0.id().to_string()])
            .status();
        assert!(sent.expect("kill runs").success());
    }

    /// Waits until it ends.
    pub fn ended(mut self) -> Ended {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.0.try_wait().expect("a child") {
                break status;
            }
            if started.elapsed() > Duration::from_secs(30) {
                panic!("it does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        Ended {
            code: status.code(),
            log: self.log.join().expect("no panic"),
        }
    }
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` after a signal.
    pub code: Option<i32>,
    /// All that it wrote to standard error.
    pub log: String,
}
