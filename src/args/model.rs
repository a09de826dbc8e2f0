//! The model, the device it runs on, and the KV contract of requests.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use palimpsest_kernels::KvType;
use palimpsest_kernels::cpu::Activations;
use palimpsest_models::fetch::DEFAULT_MODEL;
use palimpsest_proto::v1;

use super::number::positive;
use super::snapshots::SnapshotArgs;
use crate::model::{Device, ModelConfig};

/// Which model, and how it runs.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// A name on a hub (owner/name, owner/name:QUANTISATION, owner/name:QUANTISATION@REVISION), a
    /// known name, a GGUF file, a directory with config.json, or random:SHAPE for random weights.
    #[arg(
        long,
        env = "PALIMPSEST_MODEL",
        default_value = DEFAULT_MODEL,
        help_heading = "Model"
    )]
    pub model: String,
    /// Trained indexer file. Without it, one that was trained for these weights: beside the model,
    /// in its repository, in the cache, or built in as for the default model.
    #[arg(long, env = "PALIMPSEST_INDEXER", help_heading = "Model")]
    pub indexer: Option<PathBuf>,
    /// Where the model runs: cpu, or cuda:N for the N-th GPU.
    #[arg(
        long,
        env = "PALIMPSEST_DEVICE",
        default_value = "cpu",
        help_heading = "Device"
    )]
    pub device: Device,
    /// Kernel threads; all cores when not given.
    #[arg(
        long,
        env = "PALIMPSEST_THREADS",
        value_parser = positive,
        help_heading = "Device"
    )]
    pub threads: Option<usize>,
    /// Activations in products with quantised weights: 8-bit (fast) or float (exact).
    #[arg(
        long,
        env = "PALIMPSEST_ACTIVATIONS",
        value_enum,
        default_value = "int8",
        help_heading = "Device"
    )]
    pub activations: ActivationsArg,
    /// On a GPU, capture steps of decoding as graphs: the same kernels, started by one call of the
    /// driver.
    #[arg(
        long,
        env = "PALIMPSEST_CUDA_GRAPHS",
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set,
        help_heading = "Device"
    )]
    pub cuda_graphs: bool,
    /// Element type of cached keys and values; q8 holds nearly twice the entries of f16 in the
    /// same memory.
    #[arg(
        long,
        env = "PALIMPSEST_KV_TYPE",
        value_enum,
        default_value = "f16",
        help_heading = "Cache of all requests"
    )]
    pub kv_type: KvTypeArg,
    /// MiB for the caches of all sequences: pages with notes, and latent memories. A CPU uses it
    /// as sequences need it, a GPU sets it aside at start.
    #[arg(
        long,
        env = "PALIMPSEST_KV_MEMORY_MIB",
        default_value_t = 2048,
        help_heading = "Cache of all requests"
    )]
    pub kv_memory_mib: usize,
    /// MiB of these for latent memories, the rest is for pages; an eighth when not given, enough
    /// for default contracts.
    #[arg(
        long,
        env = "PALIMPSEST_LATENT_MEMORY_MIB",
        help_heading = "Cache of all requests"
    )]
    pub latent_memory_mib: Option<usize>,
    /// Tokens between two evictions.
    #[arg(
        long,
        env = "PALIMPSEST_STRIDE",
        default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(16..=8192),
        help_heading = "Cache of all requests"
    )]
    pub stride: u32,
    #[command(flatten)]
    pub snapshots: SnapshotArgs,
}

impl ModelArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> ModelConfig {
        ModelConfig {
            model: self.model,
            indexer: self.indexer,
            device: self.device,
            threads: self.threads,
            activations: match self.activations {
                ActivationsArg::Int8 => Activations::Int8,
                ActivationsArg::F32 => Activations::F32,
            },
            cuda_graphs: self.cuda_graphs,
            kv_type: match self.kv_type {
                KvTypeArg::Q8 => KvType::Q8,
                KvTypeArg::F16 => KvType::F16,
                KvTypeArg::F32 => KvType::F32,
            },
            kv_memory_mib: self.kv_memory_mib,
            latent_memory_mib: self.latent_memory_mib,
            stride: self.stride,
            snapshot_memory_mib: self.snapshots.snapshot_memory_mib,
            snapshot_store: self.snapshots.snapshot_store,
        }
    }
}

/// Arithmetic of products.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ActivationsArg {
    Int8,
    F32,
}

/// Element type of the cache.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum KvTypeArg {
    Q8,
    F16,
    F32,
}

/// The KV contract of a request, or of requests that do not say.
#[derive(Debug, Clone, Args)]
pub struct KvArgs {
    /// Mean entries per KV head, latent memory included. The server's default when not given.
    #[arg(
        long,
        env = "PALIMPSEST_KV_BUDGET",
        allow_negative_numbers = true,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "KV contract"
    )]
    pub kv_budget: Option<u32>,
    /// Eviction policy; `full` keeps everything.
    #[arg(long, env = "PALIMPSEST_POLICY", help_heading = "KV contract")]
    pub policy: Option<String>,
    /// Latent memory of evicted entries.
    #[arg(long, env = "PALIMPSEST_MEMORY", help_heading = "KV contract")]
    pub memory: Option<String>,
    /// Head budgets: uniform, column, layer or group.
    #[arg(long, help_heading = "KV contract")]
    pub head_budget: Option<String>,
    /// First positions that are never evicted.
    #[arg(long, help_heading = "KV contract")]
    pub sinks: Option<u32>,
    /// Last positions that are never evicted at a boundary.
    #[arg(long, help_heading = "KV contract")]
    pub window: Option<u32>,
    /// Rotary positions: absolute or compacted.
    #[arg(long, help_heading = "KV contract")]
    pub positions: Option<String>,
    /// Entries of the budget that pay for latent memory.
    #[arg(long, help_heading = "KV contract")]
    pub memory_slots: Option<u32>,
}

impl KvArgs {
    /// The contract on the wire; what is unset stays the server's choice.
    pub fn wire(self) -> v1::KvContract {
        v1::KvContract {
            budget: self.kv_budget.unwrap_or(0),
            policy: self.policy.unwrap_or_default(),
            memory: self.memory.unwrap_or_default(),
            head_budget: self.head_budget.unwrap_or_default(),
            sinks: self.sinks,
            window: self.window,
            positions: self.positions.unwrap_or_default(),
            memory_slots: self.memory_slots,
        }
    }
}
