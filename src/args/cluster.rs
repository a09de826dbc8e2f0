//! Processes that serve: what they listen on, find each other by, and show to each other.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use palimpsest_tls::{ClientFiles, ClusterFiles};

use super::{CollectiveArg, KvArgs, ModelArgs};

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
    #[arg(
        long,
        env = "PALIMPSEST_RANKS",
        value_delimiter = ',',
        conflicts_with = "etcd"
    )]
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
    /// What ranks exchange tensors over, the same on all of them: tcp or gloo for CPUs, nccl for
    /// GPUs. tcp or nccl, by the device, when not given.
    #[arg(long, env = "PALIMPSEST_COLLECTIVE", value_enum)]
    pub collective: Option<CollectiveArg>,
    /// host:port at which coordinator and other ranks reach this one; --listen when not given.
    #[arg(long, env = "PALIMPSEST_ADVERTISE")]
    pub advertise: Option<String>,
    /// Address of a port without TLS that answers gRPC health checks alone.
    #[arg(long, env = "PALIMPSEST_HEALTH")]
    pub health: Option<SocketAddr>,
    /// A fault for tests: in these steps, counted from 1, this rank computes something else than
    /// the others.
    #[arg(long, hide = true, value_delimiter = ',')]
    pub inject_divergence: Vec<u64>,
    #[command(flatten)]
    pub registry: RegistryArgs,
    #[command(flatten)]
    pub cluster: ClusterTlsArgs,
}

/// What a process of a cluster shows to the others. With it, coordinator and ranks accept nobody
/// else.
#[derive(Debug, Args)]
pub struct ClusterTlsArgs {
    /// Certificate chain (PEM) of this process, with the DNS name coordinator.palimpsest.internal
    /// or worker.palimpsest.internal.
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
        let Self {
            cluster_cert,
            cluster_key,
            cluster_ca,
        } = self;
        let (cert, key, ca) = (
            cluster_cert.clone()?,
            cluster_key.clone()?,
            cluster_ca.clone()?,
        );
        Some(ClusterFiles { cert, key, ca })
    }
}

/// What a client of a TLS server trusts and shows.
#[derive(Debug, Clone, Default, Args)]
pub struct ClientTlsArgs {
    /// CA (PEM) that the server's certificate must come from; those that this system trusts when
    /// not given.
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
        ClientFiles {
            ca: self.ca.clone(),
            identity: self.cert.clone().zip(self.key.clone()),
        }
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
    /// Certificate chain (PEM) for gRPC and HTTP; without it both are plain text. Read again when
    /// the file changes.
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
    #[arg(
        long,
        env = "PALIMPSEST_INSECURE_NO_KEYS",
        conflicts_with = "api_keys_file"
    )]
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
