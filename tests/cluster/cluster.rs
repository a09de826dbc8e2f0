//! A coordinator and its ranks as child processes, with their logs in files.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use palimpsest_proto::v1::inference_client::InferenceClient;
use palimpsest_tests::{STRIDE, tiny_model};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::etcd::Etcd;
use crate::hosts::Hosts;
use crate::process::{Coordinator, PROGRAM, Process, free_address};

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
    pub coordinator: Coordinator,
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
        Self {
            address: free_address(),
            namespace: None,
            more: Vec::new(),
        }
    }
}

/// What the program says when it refuses to run.
pub fn palimpsest(args: &[&str]) -> String {
    let output = Command::new(PROGRAM)
        .args(args)
        .output()
        .expect("the program runs");
    assert!(!output.status.success(), "{args:?} should be refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

impl Cluster {
    /// Starts `tp` ranks over `tiny` and a coordinator, and waits until it serves.
    pub async fn start(tiny: &Tiny, tp: usize) -> Self {
        Self::start_mixed(&vec![tiny; tp]).await.expect("a group")
    }

    /// Starts one rank over each model. What the coordinator says when it refuses them is the
    /// error.
    pub async fn start_mixed(models: &[&Tiny]) -> Result<Self, String> {
        let places = models.iter().map(|_| RankPlace::here()).collect();
        Self::start_at(models, places).await
    }

    /// Starts `tp` ranks, of which `rank` computes something else in the given steps of its life.
    pub async fn start_diverging(tiny: &Tiny, tp: usize, rank: usize, steps: &str) -> Self {
        let mut places: Vec<_> = (0..tp).map(|_| RankPlace::here()).collect();
        places[rank].more = vec!["--inject-divergence".into(), steps.into()];
        Self::start_at(&vec![tiny; tp], places)
            .await
            .expect("a group")
    }

    /// Starts `tp` ranks that exchange tensors over `collective`.
    pub async fn start_over(collective: &str, tiny: &Tiny, tp: usize) -> Self {
        let more = || vec!["--collective".into(), collective.into()];
        let places = (0..tp)
            .map(|_| RankPlace {
                more: more(),
                ..RankPlace::here()
            })
            .collect();
        Self::start_at(&vec![tiny; tp], places)
            .await
            .expect("a group")
    }

    /// Starts `tp` ranks that are found in `etcd`.
    pub async fn start_in(etcd: &Etcd, tiny: &Tiny, tp: usize) -> Self {
        let places = (0..tp)
            .map(|_| RankPlace {
                more: etcd.arguments(),
                ..RankPlace::here()
            })
            .collect();
        Self::start_at(&vec![tiny; tp], places)
            .await
            .expect("a group")
    }

    /// Starts one rank on each host.
    pub async fn start_on(tiny: &Tiny, hosts: &Hosts) -> Self {
        let place = |host| RankPlace {
            address: format!("{}:50061", hosts.address(Some(host))),
            namespace: Some(hosts.name(host).to_owned()),
            more: vec![INSECURE.into()],
        };
        let places = (0..hosts.len()).map(place).collect();
        Self::start_at(&vec![tiny; hosts.len()], places)
            .await
            .expect("a group")
    }

    /// Starts `tp` ranks that exchange tensors over TCP, with these flags of certificates, and a
    /// coordinator with those.
    pub async fn start_secured(
        tiny: &Tiny,
        tp: usize,
        ranks: &[String],
        coordinator: &[String],
    ) -> Self {
        let place = |_| RankPlace {
            more: [&["--collective".into(), "tcp".into()], ranks].concat(),
            ..RankPlace::here()
        };
        let places = (0..tp).map(place).collect();
        Self::start_driven(&vec![tiny; tp], places, coordinator)
            .await
            .expect("a group")
    }

    async fn start_at(models: &[&Tiny], places: Vec<RankPlace>) -> Result<Self, String> {
        Self::start_driven(models, places, &[]).await
    }

    async fn start_driven(
        models: &[&Tiny],
        places: Vec<RankPlace>,
        more: &[String],
    ) -> Result<Self, String> {
        let logs = tempfile::tempdir().expect("a directory");
        let models: Vec<PathBuf> = models.iter().map(|tiny| tiny.0.path().to_owned()).collect();
        let spawn =
            |rank: usize| spawn_rank(&models[rank], rank, models.len(), &places[rank], &logs);
        let ranks = (0..models.len()).map(spawn).collect();
        let mut coordinator = Coordinator::start(
            &[coordinator_arguments(&places), more.to_vec()].concat(),
            logs.path().join("coordinator"),
        );
        coordinator.wait_until_served().await?;
        Ok(Self {
            client: coordinator.client(),
            coordinator,
            ranks,
            places,
            models,
            logs,
        })
    }

    pub async fn wait_until_ready(&mut self) {
        self.coordinator
            .wait_until_served()
            .await
            .expect("a coordinator that lives");
    }

    /// Starts another coordinator of the same group.
    pub fn stand_by(&self) -> Coordinator {
        Coordinator::start(
            &coordinator_arguments(&self.places),
            self.logs.path().join("standby"),
        )
    }

    /// Asks another coordinator from now on, and returns the former one.
    pub fn follow(&mut self, coordinator: Coordinator) -> Coordinator {
        self.client = coordinator.client();
        std::mem::replace(&mut self.coordinator, coordinator)
    }

    pub fn start_rank(&mut self, rank: usize) {
        let started = spawn_rank(
            &self.models[rank],
            rank,
            self.models.len(),
            &self.places[rank],
            &self.logs,
        );
        self.ranks[rank] = started;
    }

    /// Starts another process as `rank`, somewhere else, and leaves the old one alone.
    pub fn double(&mut self, rank: usize) -> Process {
        self.places[rank].address = free_address();
        let started = spawn_rank(
            &self.models[rank],
            rank,
            self.models.len(),
            &self.places[rank],
            &self.logs,
        );
        std::mem::replace(&mut self.ranks[rank], started)
    }

    /// kill -9.
    pub fn kill(&mut self, rank: usize) {
        self.ranks[rank].kill();
    }

    pub fn signal(&self, rank: usize, signal: &str) {
        self.ranks[rank].signal(signal);
    }

    pub fn assert_alive(&mut self) {
        for (rank, process) in self.ranks.iter_mut().enumerate() {
            assert!(!process.has_ended(), "rank {rank} has ended");
        }
    }

    pub fn pid(&self, rank: usize) -> u32 {
        self.ranks[rank].0.id()
    }

    pub fn address(&self, rank: usize) -> &str {
        &self.places[rank].address
    }

    pub fn coordinator_log(&self) -> String {
        self.coordinator.log()
    }

    pub fn rank_log(&self, rank: usize) -> String {
        std::fs::read_to_string(self.logs.path().join(format!("rank-{rank}"))).expect("a log")
    }

    /// How often processes of a rank have loaded the model.
    pub fn loads(&self, rank: usize) -> usize {
        self.rank_log(rank)
            .matches(&format!("rank {rank} of {} on ", self.ranks.len()))
            .count()
    }

    /// Groups that were lost so far.
    pub fn losses(&self) -> usize {
        self.coordinator_log()
            .matches("the worker group is lost")
            .count()
    }
}

fn spawn_rank(
    model: &std::path::Path,
    rank: usize,
    tp: usize,
    place: &RankPlace,
    logs: &TempDir,
) -> Process {
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
    command.args([
        "--listen",
        &place.address,
        "--threads",
        "1",
        "--log",
        "info",
    ]);
    command.args([
        "--rank",
        &rank.to_string(),
        "--tp",
        &tp.to_string(),
        "--kv-memory-mib",
        "64",
    ]);
    command.args(&place.more).args([
        "--stride",
        &STRIDE.to_string(),
        "--kv-type",
        "f32",
        "--activations",
        "f32",
    ]);
    Process::spawn(command, &logs.path().join(format!("rank-{rank}")))
}

/// Ranks on hosts of their own without certificates, and who drives them, say so.
const INSECURE: &str = "--insecure";

/// How a coordinator finds the ranks.
fn coordinator_arguments(places: &[RankPlace]) -> Vec<String> {
    if let Some(place) = places
        .iter()
        .find(|place| place.more.contains(&"--etcd".into()))
    {
        return place
            .more
            .iter()
            .cloned()
            .chain(["--tp".into(), places.len().to_string()])
            .collect();
    }
    let addresses: Vec<&str> = places.iter().map(|place| place.address.as_str()).collect();
    let mut arguments = vec!["--ranks".into(), addresses.join(",")];
    if places
        .iter()
        .any(|place| place.more.contains(&INSECURE.into()))
    {
        arguments.push(INSECURE.into());
    }
    arguments
}

/// A coordinator whose ranks are not there, and where it speaks HTTP.
pub fn coordinator_alone() -> (Child, String) {
    let (http, listen) = (free_address(), free_address());
    let mut command = Command::new(PROGRAM);
    command.args([
        "coordinator",
        "--ranks",
        &free_address(),
        "--listen",
        &listen,
        "--http",
        &http,
    ]);
    (
        command
            .stderr(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .expect("a coordinator"),
        http,
    )
}

/// Whether a process ends with success within ten seconds of SIGTERM.
pub fn ends_on_term(child: Child) -> bool {
    let mut process = Process(child);
    process.signal("TERM");
    process
        .ends_within(Duration::from_secs(10))
        .is_some_and(|status| status.success())
}
