//! What was typed. Every flag of a service has an environment twin.

use crate::pull::{DEFAULT_MODEL, PullOptions};
use clap::{Args, Parser, Subcommand, ValueEnum};
use palimpsest_proto::v1;
use palimpsest_tls::{ClientFiles, ClusterFiles};
use palimpsest_worker::model::decoder::CacheBytes;
use std::net::SocketAddr;
use std::path::PathBuf;

/// LLM inference with a bounded KV cache.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
pub struct Cli {
    /// Log filter, such as `info` or `palimpsest_coordinator=debug`.
    #[arg(long, global = true, env = "PALIMPSEST_LOG", default_value = "warn")]
    pub log: String,
    /// Logs as JSON lines.
    #[arg(long, global = true, env = "PALIMPSEST_LOG_JSON")]
    pub log_json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch the default model, serve it in this process and ask a question about a long document.
    Quickstart(QuickstartArgs),
    /// Fetch a model into the cache directory.
    Pull(PullArgs),
    /// Serve a model over gRPC, all in one process.
    Serve(ServeArgs),
    /// Serve a model whose ranks are processes, started with `palimpsest worker`.
    Coordinator(CoordinatorArgs),
    /// Run one rank of a worker group.
    Worker(WorkerArgs),
    /// Ask a running server.
    Generate(GenerateArgs),
    /// Ask a server or a rank for its health, as a probe does: exit code 0 when it serves.
    Health(HealthArgs),
    /// Measure this engine.
    Bench(BenchArgs),
    /// Train the indexer of a model from text.
    Calibrate(CalibrateArgs),
    /// Measure retrieval and perplexity under eviction.
    Eval(Box<crate::eval::EvalArgs>),
    /// Say what a model file or directory holds.
    Inspect(InspectArgs),
}

/// Which model, and how it runs.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// A known model's name, a GGUF file, a directory with config.json, or random:SHAPE for random weights.
    #[arg(long, env = "PALIMPSEST_MODEL", default_value = DEFAULT_MODEL)]
    pub model: String,
    /// Where the model runs: cpu, or cuda:N for the N-th GPU.
    #[arg(long, env = "PALIMPSEST_DEVICE", default_value = "cpu")]
    pub device: DeviceArg,
    /// Kernel threads; all cores when not given.
    #[arg(long, env = "PALIMPSEST_THREADS")]
    pub threads: Option<usize>,
    /// Activations in products with quantised weights: 8-bit (fast) or float (exact).
    #[arg(long, env = "PALIMPSEST_ACTIVATIONS", value_enum, default_value = "int8")]
    pub activations: ActivationsArg,
    /// Element type of cached keys and values; q8 holds nearly twice the entries of f16 in the same memory.
    #[arg(long, env = "PALIMPSEST_KV_TYPE", value_enum, default_value = "f16")]
    pub kv_type: KvTypeArg,
    /// MiB for the caches of all sequences: pages with notes, and latent memories. A CPU uses it as sequences need it, a GPU sets it
    /// aside at start.
    #[arg(long, env = "PALIMPSEST_KV_MEMORY_MIB", default_value_t = 2048)]
    pub kv_memory_mib: usize,
    /// MiB of these for latent memories, the rest is for pages; an eighth when not given, enough for default contracts.
    #[arg(long, env = "PALIMPSEST_LATENT_MEMORY_MIB")]
    pub latent_memory_mib: Option<usize>,
    /// Tokens between two evictions.
    #[arg(long, env = "PALIMPSEST_STRIDE", default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=8192))]
    pub stride: u32,
    /// On a GPU, capture steps of decoding as graphs: the same kernels, started by one call of the driver.
    #[arg(long, env = "PALIMPSEST_CUDA_GRAPHS", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub cuda_graphs: bool,
    /// Trained indexer file; the default model has one built in.
    #[arg(long, env = "PALIMPSEST_INDEXER")]
    pub indexer: Option<PathBuf>,
}

impl ModelArgs {
    /// What the caches of all sequences may take.
    pub fn cache(&self) -> CacheBytes {
        let bytes = |mib: usize| mib.saturating_mul(1 << 20);
        CacheBytes::of(bytes(self.kv_memory_mib), self.latent_memory_mib.map(bytes))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CollectiveArg {
    Tcp,
    Gloo,
    Nccl,
}

/// A device of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceArg {
    Cpu,
    /// GPU, as the CUDA driver counts.
    Cuda(usize),
}

impl std::str::FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("`{text}` is no device: use cpu, cuda:0, cuda:1, …")),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ActivationsArg {
    Int8,
    F32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TargetArg {
    Attention,
    Surprisal,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum KvTypeArg {
    Q8,
    F16,
    F32,
}

/// The KV contract of a request.
#[derive(Debug, Clone, Args)]
pub struct KvArgs {
    /// Mean entries per KV head, latent memory included. The server's default when not given.
    #[arg(long, env = "PALIMPSEST_KV_BUDGET")]
    pub kv_budget: Option<u32>,
    /// Eviction policy; `full` keeps everything.
    #[arg(long, env = "PALIMPSEST_POLICY")]
    pub policy: Option<String>,
    /// Latent memory of evicted entries.
    #[arg(long, env = "PALIMPSEST_MEMORY")]
    pub memory: Option<String>,
    /// Head budgets: uniform, column, layer or group.
    #[arg(long)]
    pub head_budget: Option<String>,
    /// First positions that are never evicted.
    #[arg(long)]
    pub sinks: Option<u32>,
    /// Last positions that are never evicted at a boundary.
    #[arg(long)]
    pub window: Option<u32>,
    /// Rotary positions: absolute or compacted.
    #[arg(long)]
    pub positions: Option<String>,
    /// Entries of the budget that pay for latent memory.
    #[arg(long)]
    pub memory_slots: Option<u32>,
}

impl KvArgs {
    /// Nothing asked: every default.
    pub fn none() -> Self {
        Self {
            kv_budget: None,
            policy: None,
            memory: None,
            head_budget: None,
            sinks: None,
            window: None,
            positions: None,
            memory_slots: None,
        }
    }

    /// The contract on the wire; what is unset stays the server's choice.
    pub fn wire(&self) -> v1::KvContract {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        v1::KvContract {
            budget: self.kv_budget.unwrap_or(0),
            policy: text(&self.policy),
            memory: text(&self.memory),
            head_budget: text(&self.head_budget),
            sinks: self.sinks,
            window: self.window,
            positions: text(&self.positions),
            memory_slots: self.memory_slots,
        }
    }
}

#[derive(Debug, Args)]
pub struct QuickstartArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub kv: KvArgs,
    /// Ranks that share the model, as threads of this process: tensor parallelism.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub tp: u8,
    /// Your own document instead of the built-in one.
    #[arg(long)]
    pub document: Option<PathBuf>,
    /// Your own question about it.
    #[arg(long, requires = "document")]
    pub question: Option<String>,
    /// Tokens of the answer at most.
    #[arg(long, default_value_t = 48)]
    pub max_tokens: u32,
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// Name of a known model.
    #[arg(default_value = DEFAULT_MODEL)]
    pub model: String,
}

impl PullArgs {
    pub fn options(&self) -> PullOptions {
        pull_options(&self.model)
    }
}

/// How this process fetches models.
pub fn pull_options(model: &str) -> PullOptions {
    PullOptions { model: model.into(), cache_dir: None, progress: crate::term::is_terminal() }
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub kv: KvArgs,
    /// Ranks that share the model, as threads of this process: tensor parallelism.
    #[arg(long, env = "PALIMPSEST_TP", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub tp: u8,
    #[command(flatten)]
    pub front: FrontArgs,
}

#[derive(Debug, Args)]
pub struct CoordinatorArgs {
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Addresses of all ranks, in rank order, instead of a registry: host:port,host:port
    #[arg(long, env = "PALIMPSEST_RANKS", value_delimiter = ',', conflicts_with = "etcd")]
    pub ranks: Vec<String>,
    /// Ranks of the group, when they are found in a registry.
    #[arg(long, env = "PALIMPSEST_TP", default_value_t = 1)]
    pub tp: u32,
    #[command(flatten)]
    pub front: FrontArgs,
    #[command(flatten)]
    pub cluster: ClusterTlsArgs,
    /// Seconds that the first group has to form; who is missing is said meanwhile.
    #[arg(long, env = "PALIMPSEST_FORM_SECONDS", default_value_t = 300)]
    pub form_seconds: u64,
    /// Seconds that requests of a lost group wait for the next one.
    #[arg(long, env = "PALIMPSEST_REGROUP_SECONDS", default_value_t = 120)]
    pub regroup_seconds: u64,
    /// Seconds that a request waits which comes while a lost group is being replaced.
    #[arg(long, env = "PALIMPSEST_GROUP_WAIT_SECONDS", default_value_t = 30)]
    pub group_wait_seconds: u64,
}

#[derive(Debug, Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub kv: KvArgs,
    /// This rank, from 0.
    #[arg(long, env = "PALIMPSEST_RANK")]
    pub rank: usize,
    /// Ranks of the group.
    #[arg(long, env = "PALIMPSEST_TP", default_value_t = 1)]
    pub tp: usize,
    /// Address to listen on for the coordinator.
    #[arg(long, env = "PALIMPSEST_LISTEN", default_value = "127.0.0.1:50061")]
    pub listen: SocketAddr,
    /// What ranks exchange tensors over, the same on all of them: tcp or gloo for CPUs, nccl for GPUs. tcp or nccl, by the
    /// device, when not given.
    #[arg(long, env = "PALIMPSEST_COLLECTIVE", value_enum)]
    pub collective: Option<CollectiveArg>,
    /// host:port at which coordinator and other ranks reach this one; --listen when not given.
    #[arg(long, env = "PALIMPSEST_ADVERTISE")]
    pub advertise: Option<String>,
    /// Address of a port without TLS that answers gRPC health checks alone.
    #[arg(long, env = "PALIMPSEST_HEALTH")]
    pub health: Option<SocketAddr>,
    /// A fault for tests: in these steps, counted from 1, this rank computes something else than the others.
    #[arg(long, hide = true, value_delimiter = ',')]
    pub inject_divergence: Vec<u64>,
    #[command(flatten)]
    pub registry: RegistryArgs,
    #[command(flatten)]
    pub cluster: ClusterTlsArgs,
}

/// What a process of a cluster shows to the others. With it, coordinator and ranks accept nobody else.
#[derive(Debug, Args)]
pub struct ClusterTlsArgs {
    /// Certificate chain (PEM) of this process, with the DNS name coordinator.palimpsest.internal or
    /// worker.palimpsest.internal.
    #[arg(long, env = "PALIMPSEST_CLUSTER_CERT", requires_all = ["cluster_key", "cluster_ca"])]
    pub cluster_cert: Option<PathBuf>,
    /// Key of --cluster-cert.
    #[arg(long, env = "PALIMPSEST_CLUSTER_KEY", requires = "cluster_cert")]
    pub cluster_key: Option<PathBuf>,
    /// The cluster's own CA: whatever it signs is trusted.
    #[arg(long, env = "PALIMPSEST_CLUSTER_CA", requires = "cluster_cert")]
    pub cluster_ca: Option<PathBuf>,
}

impl ClusterTlsArgs {
    /// The files, if they were given.
    pub fn files(&self) -> Option<ClusterFiles> {
        let Self { cluster_cert, cluster_key, cluster_ca } = self;
        let (cert, key, ca) = (cluster_cert.clone()?, cluster_key.clone()?, cluster_ca.clone()?);
        Some(ClusterFiles { cert, key, ca })
    }
}

/// What a client of a TLS server trusts and shows.
#[derive(Debug, Clone, Default, Args)]
pub struct ClientTlsArgs {
    /// CA (PEM) that the server's certificate must come from; those that this system trusts when not given.
    #[arg(long, env = "PALIMPSEST_CA")]
    pub ca: Option<PathBuf>,
    /// Certificate to show, for servers that ask for one.
    #[arg(long, env = "PALIMPSEST_CERT", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Key of --cert.
    #[arg(long, env = "PALIMPSEST_KEY", requires = "cert")]
    pub key: Option<PathBuf>,
}

impl ClientTlsArgs {
    /// The files that were given.
    pub fn files(&self) -> ClientFiles {
        ClientFiles { ca: self.ca.clone(), identity: self.cert.clone().zip(self.key.clone()) }
    }
}

/// What faces clients.
#[derive(Debug, Args)]
pub struct FrontArgs {
    /// Address to listen on for gRPC.
    #[arg(long, env = "PALIMPSEST_LISTEN", default_value = "127.0.0.1:50051")]
    pub listen: SocketAddr,
    /// Address to listen on for HTTP: OpenAI's API, probes and metrics.
    #[arg(long, env = "PALIMPSEST_HTTP", default_value = "127.0.0.1:8000")]
    pub http: SocketAddr,
    /// No HTTP.
    #[arg(long, env = "PALIMPSEST_NO_HTTP", conflicts_with = "http")]
    pub no_http: bool,
    /// File of API keys: a line `tenant:sha256` for each. Needed beyond loopback.
    #[arg(long, env = "PALIMPSEST_API_KEYS_FILE")]
    pub api_keys_file: Option<PathBuf>,
    /// Certificate chain (PEM) for gRPC and HTTP; without it both are plain text. Read again when the file changes.
    #[arg(long, env = "PALIMPSEST_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Key of --tls-cert.
    #[arg(long, env = "PALIMPSEST_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Clients must show a certificate of this CA.
    #[arg(long, env = "PALIMPSEST_TLS_CLIENT_CA", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// Address of a port without TLS for /health, /readyz and /metrics alone.
    #[arg(long, env = "PALIMPSEST_HEALTH")]
    pub health: Option<SocketAddr>,
    /// Serve anyone who reaches this address, without keys.
    #[arg(long, env = "PALIMPSEST_INSECURE_NO_KEYS", conflicts_with = "api_keys_file")]
    pub insecure_no_keys: bool,
    /// Sequences that run at once.
    #[arg(long, env = "PALIMPSEST_MAX_RUNNING", default_value_t = 16)]
    pub max_running: usize,
    /// Requests that may wait.
    #[arg(long, env = "PALIMPSEST_MAX_QUEUED", default_value_t = 256)]
    pub max_queued: usize,
}

/// Where the ranks of a group are found.
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// etcd's endpoints: http://host:2379, several with commas.
    #[arg(long, env = "PALIMPSEST_ETCD", value_delimiter = ',')]
    pub etcd: Vec<String>,
    /// User of etcd; its password is read from PALIMPSEST_ETCD_PASSWORD.
    #[arg(long, env = "PALIMPSEST_ETCD_USER")]
    pub etcd_user: Option<String>,
    /// CA (PEM) of etcd's certificate, for endpoints of https://; those that this system trusts when not given.
    #[arg(long, env = "PALIMPSEST_ETCD_CA")]
    pub etcd_ca: Option<PathBuf>,
    /// Certificate to show to etcd.
    #[arg(long, env = "PALIMPSEST_ETCD_CERT", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// Key of --etcd-cert.
    #[arg(long, env = "PALIMPSEST_ETCD_KEY", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// Seconds after which the rank of a process that died without a word is free again.
    #[arg(long, env = "PALIMPSEST_ETCD_LEASE_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=3600))]
    pub etcd_lease_seconds: u32,
    /// Seconds to wait for etcd when it is not there yet at the start.
    #[arg(long, env = "PALIMPSEST_ETCD_WAIT_SECONDS", default_value_t = 60)]
    pub etcd_wait_seconds: u32,
    /// Name of the worker group.
    #[arg(long, env = "PALIMPSEST_GROUP", default_value = "main")]
    pub group: String,
}

#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Server or rank to ask.
    #[arg(default_value = "http://127.0.0.1:50051", env = "PALIMPSEST_SERVER")]
    pub server: String,
    /// Service, such as palimpsest.v1.Inference; the whole process when not given.
    #[arg(long, default_value = "")]
    pub service: String,
    /// Seconds to wait for the answer.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Server to ask.
    #[arg(long, env = "PALIMPSEST_SERVER", default_value = "http://127.0.0.1:50051")]
    pub server: String,
    /// Sent as a bearer token.
    #[arg(long, env = "PALIMPSEST_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    #[command(flatten)]
    pub tls: ClientTlsArgs,
    /// Prompt; with a file, the text that follows it.
    #[arg(long, required_unless_present = "prompt_file")]
    pub prompt: Option<String>,
    /// File with the prompt or its beginning, `-` for standard input.
    #[arg(long)]
    pub prompt_file: Option<PathBuf>,
    /// Send the text as it is, without the model's chat template.
    #[arg(long)]
    pub raw: bool,
    /// Text that the answer must begin with.
    #[arg(long, conflicts_with = "raw", default_value = "")]
    pub answer_prefix: String,
    #[command(flatten)]
    pub kv: KvArgs,
    /// Tokens to generate at most.
    #[arg(long)]
    pub max_tokens: Option<u32>,
    /// 0 is greedy.
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Sample among the best K tokens.
    #[arg(long, default_value_t = 0)]
    pub top_k: u32,
    /// Sample among the best tokens that together reach this probability.
    #[arg(long)]
    pub top_p: Option<f32>,
    /// Seed of the draws.
    #[arg(long)]
    pub seed: Option<u64>,
    /// End the answer at this text; may be given several times.
    #[arg(long)]
    pub stop: Vec<String>,
    /// Seconds until the request is given up.
    #[arg(long)]
    pub timeout: Option<f64>,
    /// One JSON object per event on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub kind: BenchKind,
}

#[derive(Debug, Subcommand)]
pub enum BenchKind {
    /// Time to read a prompt of each length.
    Prefill(BenchRun),
    /// Time per generated token after a context of each length.
    Decode(BenchRun),
    /// Any OpenAI-compatible server, under requests that arrive at random.
    Load(Box<crate::load::LoadArgs>),
}

#[derive(Debug, Args)]
pub struct BenchRun {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub kv: KvArgs,
    /// Context lengths.
    #[arg(long, value_delimiter = ',', default_value = "512,2048,8192")]
    pub depths: Vec<usize>,
    /// Tokens that are timed when decoding.
    #[arg(long, default_value_t = 64)]
    pub tokens: usize,
    /// Sequences that decode together.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub sequences: u32,
    /// Decode after a context that was not computed: the same time per token, and no wait for a prefill. For contexts
    /// that fit the budget.
    #[arg(long)]
    pub assume_context: bool,
    /// Measurements of each point; the median is reported.
    #[arg(long, default_value_t = 1)]
    pub repeat: usize,
    /// JSON lines instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Seconds of every stride, too (prefill).
    #[arg(long)]
    pub strides: bool,
}

#[derive(Debug, Args)]
pub struct CalibrateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Directory with .txt and .md files to learn from.
    #[arg(long)]
    pub corpus: PathBuf,
    /// Indexer file to write.
    #[arg(long)]
    pub out: PathBuf,
    /// Directory for what was read of the documents (some GB), kept for the next calibration. Without it, a directory
    /// beside the output that is deleted when all went well; a calibration that was interrupted goes on from there.
    #[arg(long)]
    pub samples: Option<PathBuf>,
    /// Documents.
    #[arg(long, default_value_t = 48)]
    pub documents: usize,
    /// Tokens of a document.
    #[arg(long, default_value_t = 1200)]
    pub tokens: usize,
    /// One document in this many is held out for the report.
    #[arg(long, default_value_t = 8)]
    pub holdout: usize,
    /// Strength of the ridge penalty.
    #[arg(long, default_value_t = 3.0)]
    pub ridge: f64,
    /// What scorers learn to predict: the largest attention of a repetition, or that weighed by each token's surprisal.
    #[arg(long, value_enum, default_value = "attention")]
    pub target: TargetArg,
    /// Documents that the fitted scorers are then tuned on end to end, so that they keep what answers and text need: one to two
    /// minutes each for a model of 135M weights on two cores, and 4 bytes of memory for each weight. 0: they stay as fitted. Without it, 44
    /// for a model of up to a billion weights, 0 for a larger one.
    #[arg(long)]
    pub tune: Option<usize>,
    /// How fast tuning changes the scorers, at its highest.
    #[arg(long, default_value_t = 3e-3)]
    pub tune_rate: f32,
    /// Indexer files to tune instead of fitting scorers; of several, the mean of their scorers.
    #[arg(long, num_args = 1..)]
    pub start: Vec<PathBuf>,
    /// Seed of the documents.
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A model file or directory, or an indexer file.
    pub path: PathBuf,
    /// JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_in_full() {
        assert_eq!("cpu".parse(), Ok(DeviceArg::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceArg::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceArg::Cuda(3)));
        for bad in ["", "gpu", "cuda:", "cuda3", "cuda:-1", "cuda:x", "cpu:0"] {
            assert!(bad.parse::<DeviceArg>().is_err(), "{bad}");
        }
    }
}
