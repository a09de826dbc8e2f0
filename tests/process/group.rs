//! A coordinator and its only rank as two processes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Time for a process to start, to load or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that ends with this.
pub struct Process(Child);

impl Process {
    /// Starts the program with nothing to read and nowhere to write.
    pub fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palimpsest"));
        command
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().expect("the program runs"))
    }

    /// A rank alone at `address`, as soon as its model is loaded.
    pub fn loaded_rank(address: &str, model: &str, env: &[(&str, &str)]) -> Self {
        Self::loaded_rank_with(address, model, env, &[])
    }

    /// A rank alone with more arguments.
    pub fn loaded_rank_with(
        address: &str,
        model: &str,
        env: &[(&str, &str)],
        more: &[&str],
    ) -> Self {
        let mut args = vec!["worker", "--rank", "0", "--listen", address];
        args.extend(["--model", model, "--threads", "1", "--stride", "16"]);
        args.extend(more);
        let rank = Self::start(&args, env);
        await_that(Instant::now(), || {
            let mut health = Command::new(env!("CARGO_BIN_EXE_palimpsest"));
            health.args([
                "health",
                &format!("http://{address}"),
                "--service",
                "palimpsest.internal.v1.Worker",
            ]);
            health
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .expect("the program runs")
                .success()
        });
        rank
    }

    /// Time that its threads have run so far, whatever else the machine does.
    pub fn cpu_time(&self) -> Duration {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("a process");
        // The name, in parentheses, may hold spaces; user and system time are fields 14 and 15, in
        // ticks of 1/100 s.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .expect("a name")
            .1
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|ticks| ticks.parse::<u64>().expect("a number"))
            .sum();
        Duration::from_millis(ticks * 10)
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_none()
    }

    /// Its exit code, when it ends by itself; `None` after a signal.
    pub fn code(&mut self) -> Option<i32> {
        await_that(Instant::now(), || {
            self.0.try_wait().expect("a child").is_some()
        });
        self.0.wait().expect("a child").code()
    }

    /// Ends it with SIGTERM.
    pub fn stop(mut self) {
        let sent = Command::new("kill")
            .args(["-TERM", &self.0.id().to_string()])
            .status();
        assert!(sent.expect("kill runs").success());
        await_that(Instant::now(), || {
            self.0.try_wait().expect("a child").is_some()
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is what we want.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address that is free now.
pub fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

/// What `address` answers to a request, head and all; `None` if it does not.
pub fn ask(address: &str, method: &str, path: &str, headers: &str, body: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let head = format!(
        "{method} {path} HTTP/1.0\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Whether `path` is answered with 200.
pub fn is_ok(address: &str, path: &str) -> bool {
    ask(address, "GET", path, "", "").is_some_and(|answer| answer.starts_with("HTTP/1.0 200"))
}

/// Time since `started` when `holds` does first.
pub fn await_that(started: Instant, mut holds: impl FnMut() -> bool) -> Duration {
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "it never comes");
        std::thread::sleep(Duration::from_millis(1));
    }
    started.elapsed()
}
