//! The model, the device it runs on, and the KV contract of requests.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use palimpsest_engine::device_memory::CacheBytes;
use palimpsest_proto::v1;

use crate::pull::{DEFAULT_MODEL, PullOptions};

/// Which model, and how it runs.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// A known model's name, a GGUF file, a directory with config.json, or random:SHAPE for random
    /// weights.
    #[arg(long, env = "PALIMPSEST_MODEL", default_value = DEFAULT_MODEL)]
    pub model: String,
    /// Where the model runs: cpu, or cuda:N for the N-th GPU.
    #[arg(long, env = "PALIMPSEST_DEVICE", default_value = "cpu")]
    pub device: DeviceArg,
    /// Kernel threads; all cores when not given.
    #[arg(long, env = "PALIMPSEST_THREADS")]
    pub threads: Option<usize>,
    /// Activations in products with quantised weights: 8-bit (fast) or float (exact).
    #[arg(
        long,
        env = "PALIMPSEST_ACTIVATIONS",
        value_enum,
        default_value = "int8"
    )]
    pub activations: ActivationsArg,
    /// Element type of cached keys and values; q8 holds nearly twice the entries of f16 in the
    /// same memory.
    #[arg(long, env = "PALIMPSEST_KV_TYPE", value_enum, default_value = "f16")]
    pub kv_type: KvTypeArg,
    /// MiB for the caches of all sequences: pages with notes, and latent memories. A CPU uses it
    /// as sequences need it, a GPU sets it aside at start.
    #[arg(long, env = "PALIMPSEST_KV_MEMORY_MIB", default_value_t = 2048)]
    pub kv_memory_mib: usize,
    /// MiB of these for latent memories, the rest is for pages; an eighth when not given, enough
    /// for default contracts.
    #[arg(long, env = "PALIMPSEST_LATENT_MEMORY_MIB")]
    pub latent_memory_mib: Option<usize>,
    /// Tokens between two evictions.
    #[arg(long, env = "PALIMPSEST_STRIDE", default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=8192))]
    pub stride: u32,
    /// On a GPU, capture steps of decoding as graphs: the same kernels, started by one call of the
    /// driver.
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
    PullOptions {
        model: model.into(),
        cache_dir: None,
        progress: crate::term::is_terminal(),
    }
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
