//! Opening a model, or parts of it, in this process.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use palimpsest_collective::Place;
use palimpsest_engine::device_memory::{CacheBytes, DeviceMemory, RankSize, StepSize};
use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::rank::{Rank, RankOptions};
use palimpsest_engine::shard::Shard;
use palimpsest_kernels::cpu::{Activations, CpuBackend, CpuOptions};
use palimpsest_kernels::cuda::driver::Driver;
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_kernels::{Backend, KvType};
use palimpsest_models::fetch::{DEFAULT_MODEL, default_cache_dir};
use palimpsest_models::{DigestCache, Model};
use palimpsest_proto::internal::v1::RankInfo;
use palimpsest_proto::v1::KvContract;

use crate::{pull, term};

/// Which model, and how it runs.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// A known model's name, a GGUF file, a directory with config.json, or `random:SHAPE`.
    pub model: String,
    /// Trained indexer file; the default model has one built in.
    pub indexer: Option<PathBuf>,
    /// Where the model runs.
    pub device: Device,
    /// Kernel threads; all cores when `None`.
    pub threads: Option<usize>,
    /// Activations in products with quantised weights.
    pub activations: Activations,
    /// Whether a GPU captures steps of decoding as graphs.
    pub cuda_graphs: bool,
    /// Element type of cached keys and values.
    pub kv_type: KvType,
    /// MiB for the caches of all sequences.
    pub kv_memory_mib: usize,
    /// MiB of these for latent memories; an eighth when `None`.
    pub latent_memory_mib: Option<usize>,
    /// Tokens between two evictions.
    pub stride: u32,
    /// MiB of host memory for kept states.
    pub snapshot_memory_mib: usize,
    /// Where kept states outlive the process.
    pub snapshot_store: Option<String>,
}

impl ModelConfig {
    /// What the caches of all sequences may take.
    fn cache(&self) -> CacheBytes {
        let bytes = |mib: usize| mib.saturating_mul(1 << 20);
        CacheBytes::of(bytes(self.kv_memory_mib), self.latent_memory_mib.map(bytes))
    }

    /// One of `ranks` that share this machine's cores and the cache's memory.
    fn share(&self, ranks: usize) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            threads: Some((self.threads.unwrap_or(cores) / ranks).max(1)),
            kv_memory_mib: self.kv_memory_mib.div_ceil(ranks),
            latent_memory_mib: self.latent_memory_mib.map(|mib| mib.div_ceil(ranks)),
            snapshot_memory_mib: self.snapshot_memory_mib / ranks,
            ..self.clone()
        }
    }
}

/// A device of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// All cores, or as many as there are kernel threads.
    Cpu,
    /// GPU, as the CUDA driver counts.
    Cuda(usize),
}

impl std::str::FromStr for Device {
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

/// A GPU's backend.
pub type Gpu = CudaBackend<Driver>;

/// The ranks of a group that run in this process, on one kind of device.
pub enum Ranks {
    /// They share the kernel threads and the cache memory.
    Cpu(Vec<Rank<CpuBackend>>),
    /// A GPU for each.
    Cuda(Vec<Rank<Gpu>>),
}

impl Ranks {
    /// What the coordinator is told of each.
    pub fn infos(&self) -> Vec<&RankInfo> {
        match self {
            Self::Cpu(ranks) => ranks.iter().map(|rank| &rank.info).collect(),
            Self::Cuda(ranks) => ranks.iter().map(|rank| &rank.info).collect(),
        }
    }
}

/// Opens a whole model on the CPU with a progress bar, fetching it first when it is a known one.
pub fn open_rank(
    config: &ModelConfig,
    default_kv: &KvContract,
) -> anyhow::Result<Rank<CpuBackend>> {
    if config.device != Device::Cpu {
        bail!("this command runs on the CPU only: leave --device out");
    }
    Part {
        config,
        default_kv,
        file: &pull::model_file(&config.model)?,
        place: Place::ALONE,
    }
    .open_on(cpu(config))
}

/// Opens a model in `tp` parts, one for each rank. On the CPU they share the kernel threads and the
/// cache memory; GPUs are counted on from the one that was named.
pub fn open_ranks(
    config: &ModelConfig,
    default_kv: &KvContract,
    tp: usize,
) -> anyhow::Result<Ranks> {
    let file = pull::model_file(&config.model)?;
    let world_size = tp.max(1);
    let places = (0..world_size).map(|rank| Place { rank, world_size });
    match config.device {
        Device::Cpu => {
            let shared = if world_size > 1 {
                config.share(world_size)
            } else {
                config.clone()
            };
            let open = |place| {
                Part {
                    config: &shared,
                    default_kv,
                    file: &file,
                    place,
                }
                .open_on(cpu(&shared))
            };
            Ok(Ranks::Cpu(places.map(open).collect::<anyhow::Result<_>>()?))
        }
        Device::Cuda(first) => {
            let open = |place: Place| {
                let part = Part {
                    config,
                    default_kv,
                    file: &file,
                    place,
                };
                part.open_on(part.gpu(first + place.rank)?)
            };
            Ok(Ranks::Cuda(
                places.map(open).collect::<anyhow::Result<_>>()?,
            ))
        }
    }
}

/// The CPU's backend.
pub fn cpu(config: &ModelConfig) -> CpuBackend {
    CpuBackend::new(CpuOptions {
        threads: config.threads,
        activations: config.activations,
        simd: None,
    })
}

/// A part of a model, to be opened by one rank.
pub struct Part<'a> {
    /// How it runs.
    pub config: &'a ModelConfig,
    /// Contract of requests that do not say.
    pub default_kv: &'a KvContract,
    /// The model's file or directory.
    pub file: &'a Path,
    /// Which part.
    pub place: Place,
}

impl Part<'_> {
    /// GPU `ordinal`, when this part and its cache fit into what is free: said before anything is
    /// loaded.
    pub fn gpu(&self, ordinal: usize) -> anyhow::Result<Gpu> {
        let driver = Driver::open(ordinal)?;
        // Activations of products stay float where the operator asks for that, and so do weights.
        let (precision, bytes) = match self.config.activations {
            Activations::Int8 => (Precision::Bf16, 2),
            Activations::F32 => (Precision::F32, 4),
        };
        let model = Model::open(self.file)?;
        let shard = Shard::new(model.config(), self.place)?;
        let size = RankSize {
            element_bytes: bytes,
            cache: self.config.cache(),
            kv: self.config.kv_type,
            step: StepSize::usual(self.config.stride as usize),
        };
        let (free, total) = driver.memory()?;
        let needed = DeviceMemory::of(model.config(), &shard, &size);
        needed
            .check(free, total)
            .with_context(|| format!("cuda:{ordinal}"))?;
        Ok(CudaBackend::new(driver, precision).with_graphs(self.config.cuda_graphs))
    }

    /// Opens it on `backend`, with a progress bar.
    pub fn open_on<B: Backend>(&self, backend: B) -> anyhow::Result<Rank<B>> {
        let config = self.config;
        let is_path = Path::new(&config.model).exists();
        let options = RankOptions {
            model: self.file.to_owned(),
            name: if is_path {
                String::new()
            } else {
                config.model.clone()
            },
            kv: config.kv_type,
            cache: config.cache(),
            snapshot_bytes: (config.snapshot_memory_mib as u64).saturating_mul(1 << 20),
            stride: config.stride,
            indexer: indexer(config)?,
            default_kv: self.default_kv.clone(),
            step: matches!(config.device, Device::Cuda(_))
                .then(|| StepSize::usual(config.stride as usize)),
            place: self.place,
            digests: digests(),
        };
        let bar = term::progress(100, "loading");
        let rank = Rank::open(backend, options, &mut |done| {
            bar.set_position((done * 100.0) as u64)
        })?;
        bar.finish_and_clear();
        Ok(rank)
    }
}

/// Digests of model files are kept beside fetched models; nowhere where there is no such place.
fn digests() -> DigestCache {
    default_cache_dir().map_or_else(
        |_| DigestCache::nowhere(),
        |cache| DigestCache::within(cache.join("digests")),
    )
}

/// The default model's indexer: `palimpsest calibrate` on the corpus of `calibrate/make_corpus.py`.
const BUILT_IN: &[u8] = include_bytes!("../assets/indexers/smollm2-135m-instruct.safetensors");

/// The indexer the operator named, else the one built in for the default model. A model without one
/// runs with untrained policies only; `serve` says which policy is the default.
fn indexer(config: &ModelConfig) -> anyhow::Result<Option<Indexer>> {
    let Some(path) = &config.indexer else {
        return Ok(if config.model == DEFAULT_MODEL {
            Some(Indexer::parse(BUILT_IN)?)
        } else {
            None
        });
    };
    let bytes = std::fs::read(path)
        .with_context(|| format!("cannot read the indexer {}", path.display()))?;
    Ok(Some(Indexer::parse(&bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_in_full() {
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
        for bad in ["", "gpu", "cuda:", "cuda3", "cuda:-1", "cuda:x", "cpu:0"] {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
    }
}
