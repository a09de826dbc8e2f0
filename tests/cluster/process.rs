//! Child processes, and coordinators among them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use palimpsest_proto::v1::inference_client::InferenceClient;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_palimpsest");
pub const PATIENCE: Duration = Duration::from_secs(60);

/// It ends with this.
pub struct Process(pub Child);

impl Process {
    /// Starts the program, or a program that becomes it, which writes to `log`.
    pub fn spawn(mut command: Command, log: &Path) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log");
        Self(
            command
                .stderr(log)
                .stdin(Stdio::null())
                .spawn()
                .expect("a process"),
        )
    }

    pub fn signal(&self, signal: &str) {
        send(signal, self.0.id());
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.0.kill().expect("a child");
        self.0.wait().expect("a child");
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_some()
    }

    /// How it ended, if it does in time.
    pub fn ends_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        while started.elapsed() < limit {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// Whether it gives up by itself.
    pub fn fails_within(&mut self, limit: Duration) -> bool {
        self.ends_within(limit)
            .is_some_and(|status| !status.success())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal to a process of ours.
pub fn send(signal: &str, pid: u32) {
    let sent = Command::new("kill")
        .args([&format!("-{signal}"), &pid.to_string()])
        .status();
    assert!(
        sent.expect("kill runs").success(),
        "{signal} for process {pid}"
    );
}

/// A port that was free a moment ago.
pub fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

/// A coordinator's process, and ways to ask it.
pub struct Coordinator {
    pub process: Process,
    channel: Channel,
    probes: String,
    log: PathBuf,
}

impl Coordinator {
    /// Starts one that finds its ranks by `arguments`.
    pub fn start(arguments: &[String], log: PathBuf) -> Self {
        let (listen, probes) = (free_address(), free_address());
        let mut command = Command::new(PROGRAM);
        command.args([
            "coordinator",
            "--listen",
            &listen,
            "--no-http",
            "--health",
            &probes,
            "--log",
            "info",
        ]);
        command.args(arguments);
        let process = Process::spawn(command, &log);
        let endpoint = Endpoint::from_shared(format!("http://{listen}")).expect("an address");
        Self {
            process,
            channel: endpoint.connect_lazy(),
            probes,
            log,
        }
    }

    pub fn client(&self) -> InferenceClient<Channel> {
        InferenceClient::new(self.channel.clone())
    }

    /// Waits until health says that requests are served; what it says when it gives up is the
    /// error.
    pub async fn wait_until_served(&mut self) -> Result<(), String> {
        let started = Instant::now();
        while !self.is_ready().await {
            assert!(started.elapsed() < PATIENCE, "not ready: {}", self.log());
            if self.process.has_ended() {
                return Err(self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// What gRPC's health check says.
    pub async fn is_ready(&self) -> bool {
        let mut health = HealthClient::new(self.channel.clone());
        let ask = health.check(HealthCheckRequest {
            service: String::new(),
        });
        match tokio::time::timeout(Duration::from_secs(2), ask).await {
            Ok(Ok(answer)) => answer.into_inner().status() == ServingStatus::Serving,
            _ => false,
        }
    }

    /// What its port for probes answers, whole; `None` while nobody listens there.
    pub fn probe(&self, path: &str) -> Option<String> {
        get(&self.probes, path)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("a log")
    }

    /// Waits until it has said something.
    pub async fn says(&self, what: &str) {
        let started = Instant::now();
        while !self.log().contains(what) {
            assert!(
                started.elapsed() < PATIENCE,
                "`{what}` is not said: {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// An answer to a plain request, whole; `None` while nobody listens.
pub fn get(address: &str, path: &str) -> Option<String> {
    request(address, &format!("GET {path} HTTP/1.0\r\n\r\n"))
}

/// An answer to a request with a body of JSON, whole; `None` while nobody listens.
pub fn post(address: &str, path: &str, body: &str) -> Option<String> {
    request(
        address,
        &format!(
            "POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    )
}

fn request(address: &str, text: &str) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    stream.write_all(text.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
