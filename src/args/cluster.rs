//! Processes that serve: what they find each other by, and what they show to each other.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use palimpsest_collective::Place;
use palimpsest_tls::{ClientFiles, ClusterFiles, IdentityFiles};
use palimpsest_worker::device::Fault;

use super::address::listening;
use super::{FrontArgs, KvArgs, ModelArgs};
use crate::registry::EtcdConfig;
use crate::{coordinator, serve, worker};

/// Everything in one process.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  palimpsest serve
  palimpsest serve --model model.gguf --kv-budget \
                        2048 --threads 8
  palimpsest serve --device cuda:0 --tp 2 --http 0.0.0.0:8000 \
                        --api-keys-file keys

Ask it:
  palimpsest generate --prompt 'Why is the sky \
                        blue?'
  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Why is the sky blue?\"}]}'")]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Fit an indexer for a model that has none, and keep it where the next start finds it: the
    /// first start takes minutes longer.
    #[arg(long, env = "PALIMPSEST_CALIBRATE", help_heading = "Model")]
    pub calibrate: bool,
    #[command(flatten)]
    pub kv: KvArgs,
    /// Ranks that share the model, as threads of this process: tensor parallelism.
    #[arg(
        long,
        env = "PALIMPSEST_TP",
        default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=64),
        help_heading = "Device"
    )]
    pub tp: u8,
    #[command(flatten)]
    pub front: FrontArgs,
    #[command(flatten)]
    pub step: StepArgs,
    /// A fault for tests: panic@STEP, loss@STEP, stall@STEP or hang@STEP of the device of rank 0.
    #[arg(long, hide = true)]
    pub inject_fault: Option<Fault>,
}

impl ServeArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> serve::Config {
        serve::Config {
            model: self.model.config(),
            calibrate: self.calibrate,
            default_kv: self.kv.wire(),
            tp: self.tp.into(),
            front: self.front.config(),
            step_limit: self.step.limit(),
            fault: self.inject_fault,
        }
    }
}

/// Serves over ranks that are processes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  palimpsest coordinator --ranks 127.0.0.1:50061,127.0.0.1:50062
  \
                        palimpsest coordinator --etcd http://127.0.0.1:2379 --group main --tp 2")]
pub struct CoordinatorArgs {
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Addresses of all ranks, in rank order, instead of a registry: host:port,host:port
    #[arg(
        long,
        env = "PALIMPSEST_RANKS",
        value_delimiter = ',',
        conflicts_with = "etcd",
        help_heading = "Worker group"
    )]
    pub ranks: Vec<String>,
    /// Ranks of the group, when they are found in a registry.
    #[arg(
        long,
        env = "PALIMPSEST_TP",
        default_value_t = 1,
        help_heading = "Worker group"
    )]
    pub tp: u32,
    /// Seconds that the first group has to form; who is missing is said meanwhile.
    #[arg(
        long,
        env = "PALIMPSEST_FORM_SECONDS",
        default_value_t = 300,
        help_heading = "Worker group"
    )]
    pub form_seconds: u64,
    /// Seconds that requests of a lost group wait for the next one.
    #[arg(
        long,
        env = "PALIMPSEST_REGROUP_SECONDS",
        default_value_t = 120,
        help_heading = "Worker group"
    )]
    pub regroup_seconds: u64,
    /// Seconds that a request waits which comes while a lost group is being replaced.
    #[arg(
        long,
        env = "PALIMPSEST_GROUP_WAIT_SECONDS",
        default_value_t = 30,
        help_heading = "Worker group"
    )]
    pub group_wait_seconds: u64,
    #[command(flatten)]
    pub step: StepArgs,
    #[command(flatten)]
    pub front: FrontArgs,
    #[command(flatten)]
    pub cluster: ClusterTlsArgs,
}

impl CoordinatorArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> coordinator::Config {
        coordinator::Config {
            group: self.registry.group.clone(),
            registry: self.registry.config(),
            ranks: self.ranks,
            tp: self.tp,
            form_limit: Duration::from_secs(self.form_seconds),
            step_limit: self.step.limit(),
            regroup_limit: Duration::from_secs(self.regroup_seconds),
            group_wait_limit: Duration::from_secs(self.group_wait_seconds),
            front: self.front.config(),
            insecure: self.cluster.insecure,
            cluster: self.cluster.files(),
        }
    }
}

/// How long ranks may take.
#[derive(Debug, Args)]
pub struct StepArgs {
    /// Seconds that one step may take on any rank, 60 at most; one that takes longer is abandoned,
    /// and what was in it is read anew.
    #[arg(
        long,
        env = "PALIMPSEST_STEP_SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u16).range(1..=60),
        help_heading = "Worker group"
    )]
    pub step_seconds: u16,
}

impl StepArgs {
    fn limit(&self) -> Duration {
        Duration::from_secs(self.step_seconds.into())
    }
}

/// One rank of a worker group.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  palimpsest worker --rank 0 --tp 2 --listen 127.0.0.1:50061
  palimpsest \
                        worker --rank 1 --tp 2 --device cuda:1 --etcd http://127.0.0.1:2379 \
                        --group main")]
pub struct WorkerArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub kv: KvArgs,
    /// This rank, from 0.
    #[arg(long, env = "PALIMPSEST_RANK", help_heading = "Worker group")]
    pub rank: usize,
    /// Ranks of the group.
    #[arg(
        long,
        env = "PALIMPSEST_TP",
        default_value_t = 1,
        help_heading = "Worker group"
    )]
    pub tp: usize,
    /// What ranks exchange tensors over, the same on all of them: tcp or gloo for CPUs, nccl for
    /// GPUs. tcp or nccl, by the device, when not given. Of these tcp alone is encrypted where
    /// --cluster-cert is given; the others are refused there without --clear-tensors.
    #[arg(
        long,
        env = "PALIMPSEST_COLLECTIVE",
        value_enum,
        help_heading = "Worker group"
    )]
    pub collective: Option<CollectiveArg>,
    /// Ranks may exchange tensors in the clear, over gloo or nccl, although --cluster-cert is
    /// given: whoever listens between them could tell prompts from what they send.
    #[arg(long, env = "PALIMPSEST_CLEAR_TENSORS", help_heading = "Worker group")]
    pub clear_tensors: bool,
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Address to listen on for the coordinator.
    #[arg(
        long,
        env = "PALIMPSEST_LISTEN",
        value_parser = listening,
        default_value = "127.0.0.1:50061",
        help_heading = "Listening"
    )]
    pub listen: SocketAddr,
    /// host:port at which coordinator and other ranks reach this one; --listen when not given.
    #[arg(long, env = "PALIMPSEST_ADVERTISE", help_heading = "Listening")]
    pub advertise: Option<String>,
    /// Address of a port without TLS that answers gRPC health checks alone.
    #[arg(
        long,
        env = "PALIMPSEST_HEALTH",
        value_parser = listening,
        help_heading = "Listening"
    )]
    pub health: Option<SocketAddr>,
    #[command(flatten)]
    pub cluster: ClusterTlsArgs,
    /// A fault for tests: in these steps, counted from 1, this rank computes something else than
    /// the others.
    #[arg(long, hide = true, value_delimiter = ',')]
    pub inject_divergence: Vec<u64>,
    /// A fault for tests: panic@STEP, loss@STEP, stall@STEP or hang@STEP of the device.
    #[arg(long, hide = true)]
    pub inject_fault: Option<Fault>,
}

impl WorkerArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> worker::Config {
        worker::Config {
            model: self.model.config(),
            default_kv: self.kv.wire(),
            place: Place {
                rank: self.rank,
                world_size: self.tp,
            },
            collective: self.collective.map(|collective| match collective {
                CollectiveArg::Tcp => worker::CollectiveKind::Tcp,
                CollectiveArg::Gloo => worker::CollectiveKind::Gloo,
                CollectiveArg::Nccl => worker::CollectiveKind::Nccl,
            }),
            group: self.registry.group.clone(),
            registry: self.registry.config(),
            listen: self.listen,
            advertise: self.advertise,
            health: self.health,
            insecure: self.cluster.insecure,
            clear_tensors: self.clear_tensors,
            cluster: self.cluster.files(),
            diverge_at: self.inject_divergence,
            fault: self.inject_fault,
        }
    }
}

/// What ranks exchange tensors over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CollectiveArg {
    Tcp,
    Gloo,
    Nccl,
}

/// What a process of a cluster shows to the others. With it, coordinator and ranks accept nobody
/// else.
#[derive(Debug, Args)]
pub struct ClusterTlsArgs {
    /// Certificate chain (PEM) of this process, with the DNS name coordinator.palimpsest.internal
    /// or worker.palimpsest.internal.
    #[arg(
        long,
        env = "PALIMPSEST_CLUSTER_CERT",
        requires_all = ["cluster_key", "cluster_ca"],
        help_heading = "TLS within the cluster"
    )]
    pub cluster_cert: Option<PathBuf>,
    /// Key of --cluster-cert.
    #[arg(
        long,
        env = "PALIMPSEST_CLUSTER_KEY",
        requires = "cluster_cert",
        help_heading = "TLS within the cluster"
    )]
    pub cluster_key: Option<PathBuf>,
    /// The cluster's own CA: whatever it signs is trusted.
    #[arg(
        long,
        env = "PALIMPSEST_CLUSTER_CA",
        requires = "cluster_cert",
        help_heading = "TLS within the cluster"
    )]
    pub cluster_ca: Option<PathBuf>,
    /// Links within the cluster may be plain text beyond this machine: whoever reaches a rank may
    /// drive it, and prompts can be read on the way.
    #[arg(
        long,
        env = "PALIMPSEST_INSECURE",
        conflicts_with = "cluster_cert",
        help_heading = "TLS within the cluster"
    )]
    pub insecure: bool,
}

impl ClusterTlsArgs {
    /// The files, if they were given.
    pub fn files(self) -> Option<ClusterFiles> {
        Some(ClusterFiles {
            cert: self.cluster_cert?,
            key: self.cluster_key?,
            ca: self.cluster_ca?,
        })
    }
}

/// Where the ranks of a group are found.
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// etcd's endpoints: http://host:2379, several with commas.
    #[arg(
        long,
        env = "PALIMPSEST_ETCD",
        value_delimiter = ',',
        help_heading = "Registry"
    )]
    pub etcd: Vec<String>,
    /// User of etcd; its password is read from PALIMPSEST_ETCD_PASSWORD.
    #[arg(long, env = "PALIMPSEST_ETCD_USER", help_heading = "Registry")]
    pub etcd_user: Option<String>,
    /// CA (PEM) of etcd's certificate, for endpoints of https://; those that this system trusts
    /// when not given.
    #[arg(long, env = "PALIMPSEST_ETCD_CA", help_heading = "Registry")]
    pub etcd_ca: Option<PathBuf>,
    /// Certificate to show to etcd.
    #[arg(
        long,
        env = "PALIMPSEST_ETCD_CERT",
        requires = "etcd_key",
        help_heading = "Registry"
    )]
    pub etcd_cert: Option<PathBuf>,
    /// Key of --etcd-cert.
    #[arg(
        long,
        env = "PALIMPSEST_ETCD_KEY",
        requires = "etcd_cert",
        help_heading = "Registry"
    )]
    pub etcd_key: Option<PathBuf>,
    /// Seconds after which the rank of a process that died without a word is free again.
    #[arg(
        long,
        env = "PALIMPSEST_ETCD_LEASE_SECONDS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(2..=3600),
        help_heading = "Registry"
    )]
    pub etcd_lease_seconds: u32,
    /// Seconds to wait for etcd when it is not there yet at the start.
    #[arg(
        long,
        env = "PALIMPSEST_ETCD_WAIT_SECONDS",
        default_value_t = 60,
        help_heading = "Registry"
    )]
    pub etcd_wait_seconds: u32,
    /// Name of the worker group.
    #[arg(
        long,
        env = "PALIMPSEST_GROUP",
        default_value = "main",
        help_heading = "Registry"
    )]
    pub group: String,
}

impl RegistryArgs {
    /// The registry, if one was named. The password of etcd's user comes from the environment
    /// alone, where no list of processes shows it.
    pub fn config(self) -> Option<EtcdConfig> {
        if self.etcd.is_empty() {
            return None;
        }
        let password = std::env::var("PALIMPSEST_ETCD_PASSWORD").unwrap_or_default();
        Some(EtcdConfig {
            endpoints: self.etcd,
            user: self.etcd_user.map(|name| (name, password)),
            tls: ClientFiles {
                ca: self.etcd_ca,
                identity: self
                    .etcd_cert
                    .zip(self.etcd_key)
                    .map(|(cert, key)| IdentityFiles { cert, key }),
            },
            lease: Duration::from_secs(self.etcd_lease_seconds.into()),
            patience: Duration::from_secs(self.etcd_wait_seconds.into()),
        })
    }
}
