//! Opening a model, or parts of it, in this process.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use palimpsest_collective::Place;
use palimpsest_engine::Error;
use palimpsest_engine::device_memory::{CacheBytes, DeviceMemory, RankSize, StepSize};
use palimpsest_engine::rank::{Rank, RankOptions};
use palimpsest_engine::shard::Shard;
use palimpsest_kernels::cpu::{Activations, CpuBackend, CpuOptions};
use palimpsest_kernels::cuda::driver::Driver;
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_kernels::{Backend, KvType};
use palimpsest_models::fetch::default_cache_dir;
use palimpsest_models::{DigestCache, Model, WeightsId};
use palimpsest_proto::internal::v1::RankInfo;
use palimpsest_proto::v1::KvContract;

use crate::indexer::{self, Found, Subject};
use crate::{pull, term, wording};

/// Which model, and how it runs.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// A model's name, a GGUF file, a directory with config.json, or `random:SHAPE`.
    pub model: String,
    /// Trained indexer file; one that is found for the weights when `None`.
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

/// A model that is here, with what was trained for it.
pub struct Ready {
    /// Its file or directory.
    pub file: PathBuf,
    /// Its indexer, if there is one.
    pub indexer: Option<Found>,
    /// Contract of requests that do not say.
    pub default_kv: KvContract,
}

impl Ready {
    /// Fetches the model where it is named and not here, and looks for its indexer.
    pub fn find(config: &ModelConfig, default_kv: &KvContract) -> anyhow::Result<Self> {
        let file = pull::model_file(&config.model)?;
        let weights = weights_of(&file)?;
        let subject = Subject::new(file.clone(), weights);
        let indexer = indexer::find(&subject, config.indexer.as_deref())?;
        let called = weights.map(|_| config.model.as_str());
        let trained = indexer.as_ref().map(|found| &found.indexer);
        let default_kv = indexer::contract(default_kv, trained, called)?;
        Ok(Self {
            file,
            indexer,
            default_kv,
        })
    }
}

/// What names the weights of a model.
pub fn weights_of(file: &Path) -> anyhow::Result<Option<WeightsId>> {
    Ok(Model::open(file)?.weights().identity(&digests()))
}

/// Refuses other devices than the CPU, for commands that run there.
pub fn check_cpu(config: &ModelConfig) -> anyhow::Result<()> {
    if config.device != Device::Cpu {
        bail!("this command runs on the CPU only: leave --device out");
    }
    Ok(())
}

/// Opens a whole model on the CPU with a progress bar.
pub fn open_rank(config: &ModelConfig, ready: &Ready) -> anyhow::Result<Rank<CpuBackend>> {
    check_cpu(config)?;
    Part {
        config,
        ready,
        place: Place::ALONE,
    }
    .open_on(cpu(config))
}

/// The same without an indexer, fetching it first when it is named.
pub fn open_untrained(config: &ModelConfig) -> anyhow::Result<Rank<CpuBackend>> {
    check_cpu(config)?;
    let ready = Ready {
        file: pull::model_file(&config.model)?,
        indexer: None,
        default_kv: KvContract::default(),
    };
    open_rank(config, &ready)
}

/// Opens a model in `tp` parts, one for each rank. On the CPU they share the kernel threads and the
/// cache memory; GPUs are counted on from the one that was named.
pub fn open_ranks(
    config: &ModelConfig,
    default_kv: &KvContract,
    tp: usize,
) -> anyhow::Result<Ranks> {
    let ready = &Ready::find(config, default_kv)?;
    let world_size = tp.max(1);
    let places = (0..world_size).map(|rank| Place { rank, world_size });
    match config.device {
        Device::Cpu => {
            let config = &if world_size > 1 {
                config.share(world_size)
            } else {
                config.clone()
            };
            let part = |place| Part {
                config,
                ready,
                place,
            };
            let open = |place| part(place).open_on(cpu(config));
            Ok(Ranks::Cpu(places.map(open).collect::<anyhow::Result<_>>()?))
        }
        Device::Cuda(first) => {
            let open = |place: Place| {
                let part = Part {
                    config,
                    ready,
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
    /// The model.
    pub ready: &'a Ready,
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
        let model = Model::open(&self.ready.file)?;
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
            model: self.ready.file.clone(),
            name: if is_path {
                String::new()
            } else {
                config.model.clone()
            },
            kv: config.kv_type,
            cache: config.cache(),
            snapshot_bytes: (config.snapshot_memory_mib as u64).saturating_mul(1 << 20),
            stride: config.stride,
            indexer: self
                .ready
                .indexer
                .as_ref()
                .map(|found| found.indexer.clone()),
            default_kv: self.ready.default_kv.clone(),
            step: matches!(config.device, Device::Cuda(_))
                .then(|| StepSize::usual(config.stride as usize)),
            place: self.place,
            digests: digests(),
        };
        let bar = term::progress(100, "loading");
        let rank = Rank::open(backend, options, &mut |done| {
            bar.set_position((done * 100.0) as u64)
        });
        bar.finish_and_clear();
        rank.map_err(|error| match error {
            Error::InvalidContract(_) | Error::Contract(_) => {
                anyhow::Error::msg(wording::with_flags(&error.to_string()))
            }
            error => error.into(),
        })
    }
}

/// Digests of model files are kept beside fetched models; nowhere where there is no such place.
fn digests() -> DigestCache {
    default_cache_dir().map_or_else(
        |_| DigestCache::nowhere(),
        |cache| DigestCache::within(cache.join("digests")),
    )
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
