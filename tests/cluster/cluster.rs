//! A coordinator and its ranks as child processes, with their logs in files.

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::etcd::Etcd;
use crate::hosts::Hosts;
use palimpsest_proto::v1::inference_client::InferenceClient;
use palimpsest_tests::{STRIDE, tiny_model};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const PROGRAM: &str = env!("CARGO_BIN_EXE_palimpsest");
const PATIENCE: Duration = Duration::from_secs(60);

/// A tiny model on disk.
pub struct Tiny(TempDir);

impl Tiny {
    pub fn new() -> Self {
        Self::with_seed(1)
    }

    pub fn with_seed(seed: u64) -> Self {
        Self(tiny_model(seed))
    }
}

/// Processes end with it.
pub struct Cluster {
    pub client: InferenceClient<Channel>,
    channel: Channel,
    coordinator: Process,
    ranks: Vec<Process>,
    places: Vec<RankPlace>,
    models: Vec<PathBuf>,
    logs: TempDir,
}

/// Where and how a rank runs.
struct RankPlace {
    address: String,
    namespace: Option<String>,
    /// Arguments of its own.
    more: Vec<String>,
}

impl RankPlace {
    fn here() -> Self {
        Self { address: free_address(), namespace: None, more: Vec::new() }
    }
}

struct Process(Child);

impl Process {
    /// How it ended, if it does in time.
    fn ends_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        while started.elapsed() < limit {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }
}

/// A process whose rank another one has.
pub struct Former(Process);

impl Former {
    pub fn signal(&self, signal: &str) {
        send(signal, self.0.0.id());
    }

    /// Whether it gives up by itself.
    pub fn fails_within(&mut self, limit: Duration) -> bool {
        self.0.ends_within(limit).is_some_and(|status| !status.success())
    }
}

/// Sends a signal to a process of ours.
pub fn send(signal: &str, pid: u32) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status();
    assert!(sent.expect("kill runs").success(), "{signal} for process {pid}");
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that was free a moment ago.
pub fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

/// What the program says when it refuses to run.
pub fn palimpsest(args: &[&str]) -> String {
    let output = Command::new(PROGRAM).args(args).output().expect("the program runs");
    assert!(!output.status.success(), "{args:?} should be refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

impl Cluster {
    /// Starts `tp` ranks over `tiny` and a coordinator, and waits until it serves.
    pub async fn start(tiny: &Tiny, tp: usize) -> Self {
        Self::start_mixed(&vec![tiny; tp]).await.expect("a group")
    }

    /// Starts one rank over each model. What the coordinator says when it refuses them is the error.
    pub async fn start_mixed(models: &[&Tiny]) -> Result<Self, String> {
        let places = models.iter().map(|_| RankPlace::here()).collect();
        Self::start_at(models, places).await
    }

    /// Starts `tp` ranks, of which `rank` computes something else in the given steps of its life.
    pub async fn start_diverging(tiny: &Tiny, tp: usize, rank: usize, steps: &str) -> Self {
        let mut places: Vec<_> = (0..tp).map(|_| RankPlace::here()).collect();
        places[rank].more = vec!["--inject-divergence".into(), steps.into()];
        Self::start_at(&vec![tiny; tp], places).await.expect("a group")
    }

    /// Starts `tp` ranks that are found in `etcd`.
    pub async fn start_in(etcd: &Etcd, tiny: &Tiny, tp: usize) -> Self {
        let places = (0..tp).map(|_| RankPlace { more: etcd.arguments(), ..RankPlace::here() }).collect();
        Self::start_at(&vec![tiny; tp], places).await.expect("a group")
    }

    /// Starts one rank on each host.
    pub async fn start_on(tiny: &Tiny, hosts: &Hosts) -> Self {
        let place = |host| RankPlace {
            address: format!("{}:50061", hosts.address(Some(host))),
            namespace: Some(hosts.name(host).to_owned()),
            more: Vec::new(),
        };
        let places = (0..hosts.len()).map(place).collect();
        Self::start_at(&vec![tiny; hosts.len()], places).await.expect("a group")
    }

    async fn start_at(models: &[&Tiny], places: Vec<RankPlace>) -> Result<Self, String> {
        let logs = tempfile::tempdir().expect("a directory");
        let addresses: Vec<String> = places.iter().map(|place| place.address.clone()).collect();
        let models: Vec<PathBuf> = models.iter().map(|tiny| tiny.0.path().to_owned()).collect();
        let listen = free_address();
        let spawn = |rank: usize| spawn_rank(&models[rank], rank, models.len(), &places[rank], &logs);
        let ranks = (0..models.len()).map(spawn).collect();
        let log = File::create(logs.path().join("coordinator")).expect("a log");
        let mut command = Command::new(PROGRAM);
        command.args(["coordinator", "--listen", &listen, "--no-http", "--log", "info"]);
        match places.iter().find(|place| place.more.contains(&"--etcd".into())) {
            Some(place) => command.args(&place.more).args(["--tp", &places.len().to_string()]),
            None => command.args(["--ranks", &addresses.join(",")]),
        };
        let mut coordinator = Process(command.stderr(log).stdin(Stdio::null()).spawn().expect("a coordinator"));
        let endpoint = Endpoint::from_shared(format!("http://{listen}")).expect("an address");
        let started = Instant::now();
        let channel = loop {
            if let Ok(channel) = endpoint.connect().await {
                break channel;
            }
            assert!(started.elapsed() < PATIENCE, "the coordinator does not listen");
            if coordinator.0.try_wait().expect("a child").is_some() {
                return Err(std::fs::read_to_string(logs.path().join("coordinator")).expect("a log"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let client = InferenceClient::new(channel.clone());
        let mut cluster = Self { client, channel, coordinator, ranks, places, models, logs };
        cluster.wait_until_served().await?;
        Ok(cluster)
    }

    /// Waits until health says that requests are served, or the coordinator gives up.
    async fn wait_until_served(&mut self) -> Result<(), String> {
        let started = Instant::now();
        while !self.is_ready().await {
            assert!(started.elapsed() < PATIENCE, "not ready: {}", self.coordinator_log());
            if self.coordinator.0.try_wait().expect("a child").is_some() {
                return Err(self.coordinator_log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub async fn wait_until_ready(&mut self) {
        self.wait_until_served().await.expect("a coordinator that lives");
    }

    async fn is_ready(&self) -> bool {
        let check = HealthClient::new(self.channel.clone());
        let ask = async move { check.clone().check(HealthCheckRequest { service: String::new() }).await };
        match tokio::time::timeout(Duration::from_secs(2), ask).await {
            Ok(Ok(answer)) => answer.into_inner().status() == ServingStatus::Serving,
            _ => false,
        }
    }

    pub fn start_rank(&mut self, rank: usize) {
        let started = spawn_rank(&self.models[rank], rank, self.models.len(), &self.places[rank], &self.logs);
        self.ranks[rank] = started;
    }

    /// Starts another process as `rank`, somewhere else, and leaves the old one alone.
    pub fn double(&mut self, rank: usize) -> Former {
        self.places[rank].address = free_address();
        let started = spawn_rank(&self.models[rank], rank, self.models.len(), &self.places[rank], &self.logs);
        Former(std::mem::replace(&mut self.ranks[rank], started))
    }

    /// kill -9.
    pub fn kill(&mut self, rank: usize) {
        self.ranks[rank].0.kill().expect("a child");
        self.ranks[rank].0.wait().expect("a child");
    }

    pub fn signal(&self, rank: usize, signal: &str) {
        send(signal, self.pid(rank));
    }

    pub fn pid(&self, rank: usize) -> u32 {
        self.ranks[rank].0.id()
    }

    pub fn assert_alive(&mut self) {
        for (rank, process) in self.ranks.iter_mut().enumerate() {
            assert!(process.0.try_wait().expect("a child").is_none(), "rank {rank} has ended");
        }
    }

    pub fn address(&self, rank: usize) -> &str {
        &self.places[rank].address
    }

    pub fn coordinator_log(&self) -> String {
        std::fs::read_to_string(self.logs.path().join("coordinator")).expect("a log")
    }

    pub fn rank_log(&self, rank: usize) -> String {
        std::fs::read_to_string(self.logs.path().join(format!("rank-{rank}"))).expect("a log")
    }

    /// How often processes of a rank have loaded the model.
    pub fn loads(&self, rank: usize) -> usize {
        self.rank_log(rank).matches(&format!("rank {rank} of {} on ", self.ranks.len())).count()
    }

    /// Groups that were lost so far.
    pub fn losses(&self) -> usize {
        self.coordinator_log().matches("the worker group is lost").count()
    }
}

fn spawn_rank(model: &std::path::Path, rank: usize, tp: usize, place: &RankPlace, logs: &TempDir) -> Process {
    let log = logs.path().join(format!("rank-{rank}"));
    let log = File::options().create(true).append(true).open(log).expect("a log");
    let mut command = match &place.namespace {
        None => Command::new(PROGRAM),
        // It becomes the program: the process that is killed is the rank.
        Some(namespace) => {
            let mut ip = Command::new("ip");
            ip.args(["netns", "exec", namespace, PROGRAM]);
            ip
        }
    };
    command.arg("worker").arg("--model").arg(model);
    command.args(["--listen", &place.address, "--threads", "1", "--log", "info"]);
    command.args(["--rank", &rank.to_string(), "--tp", &tp.to_string(), "--kv-memory-mib", "64"]);
    command.args(&place.more).args(["--stride", &STRIDE.to_string(), "--kv-type", "f32", "--activations", "f32"]);
    Process(command.stderr(log).stdin(Stdio::null()).spawn().expect("a rank"))
}

/// A coordinator whose ranks are not there, and where it speaks HTTP.
pub fn coordinator_alone() -> (std::process::Child, String) {
    let (http, listen) = (free_address(), free_address());
    let mut command = Command::new(PROGRAM);
    command.args(["coordinator", "--ranks", &free_address(), "--listen", &listen, "--http", &http]);
    (command.stderr(Stdio::null()).stdin(Stdio::null()).spawn().expect("a coordinator"), http)
}

/// An answer to a plain request, whole; `None` while nobody listens.
pub fn get(address: &str, path: &str) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Whether a process ends with success within ten seconds of SIGTERM.
pub fn ends_on_term(child: std::process::Child) -> bool {
    let mut process = Process(child);
    send("TERM", process.0.id());
    process.ends_within(Duration::from_secs(10)).is_some_and(|status| status.success())
}
