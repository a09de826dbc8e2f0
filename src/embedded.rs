//! A coordinator and its rank in this process. The path is the one of a cluster; only the transport
//! of plans differs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use palimpsest_collective::Place;
use palimpsest_collective::local::LocalGroup;
use palimpsest_coordinator::executor::{ChannelExecutor, RankChannel};
use palimpsest_coordinator::{Config, Coordinator};
use palimpsest_engine::device_memory::{DeviceMemory, RankSize, StepSize};
use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::rank::{Rank, RankOptions};
use palimpsest_engine::shard::Shard;
use palimpsest_kernels::cpu::{Activations, CpuBackend, CpuOptions};
use palimpsest_kernels::cuda::driver::Driver;
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_kernels::{Backend, KvType};
use palimpsest_models::Model;
use palimpsest_proto::internal::v1::RankInfo;
use tokio::sync::mpsc;

use crate::args::{ActivationsArg, DeviceArg, KvArgs, KvTypeArg, ModelArgs};
use crate::{pull, term};

/// Plans that may wait for the device thread. The engine sends the next one when it has the last
/// one's output.
const PLANS_IN_FLIGHT: usize = 1;

/// A GPU's backend.
pub type Gpu = CudaBackend<Driver>;

/// The ranks of a group that run in this process, on one kind of device.
pub enum Ranks {
    Cpu(Vec<Rank<CpuBackend>>),
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

/// Opens the model on the CPU with a progress bar, fetching it first when it is a known one.
pub fn open_rank(args: &ModelArgs, kv: &KvArgs) -> anyhow::Result<Rank<CpuBackend>> {
    if args.device != DeviceArg::Cpu {
        bail!("this command runs on the CPU only: leave --device out");
    }
    let path = pull::pull(&crate::args::pull_options(&args.model))?;
    open_part(cpu(args, args.threads), args, kv, path, Place::ALONE)
}

/// Opens the model in `tp` parts. On the CPU they share the kernel threads and the cache memory;
/// GPUs are counted on from the one that was named.
pub fn open_ranks(args: &ModelArgs, kv: &KvArgs, tp: usize) -> anyhow::Result<Ranks> {
    let path = pull::pull(&crate::args::pull_options(&args.model))?;
    let places = (0..tp.max(1)).map(|rank| Place {
        rank,
        world_size: tp.max(1),
    });
    match args.device {
        DeviceArg::Cpu if tp <= 1 => Ok(Ranks::Cpu(vec![open_part(
            cpu(args, args.threads),
            args,
            kv,
            path,
            Place::ALONE,
        )?])),
        DeviceArg::Cpu => {
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            let threads = (args.threads.unwrap_or(cores) / tp).max(1);
            let latent_memory_mib = args.latent_memory_mib.map(|mib| mib.div_ceil(tp));
            let args = ModelArgs {
                kv_memory_mib: args.kv_memory_mib.div_ceil(tp),
                latent_memory_mib,
                ..args.clone()
            };
            let open = |place| open_part(cpu(&args, Some(threads)), &args, kv, path.clone(), place);
            Ok(Ranks::Cpu(places.map(open).collect::<anyhow::Result<_>>()?))
        }
        DeviceArg::Cuda(first) => {
            let open = |place: Place| {
                open_part(
                    gpu(args, first + place.rank, &path, place)?,
                    args,
                    kv,
                    path.clone(),
                    place,
                )
            };
            Ok(Ranks::Cuda(
                places.map(open).collect::<anyhow::Result<_>>()?,
            ))
        }
    }
}

/// The CPU's backend.
pub fn cpu(args: &ModelArgs, threads: Option<usize>) -> CpuBackend {
    let activations = match args.activations {
        ActivationsArg::Int8 => Activations::Int8,
        ActivationsArg::F32 => Activations::F32,
    };
    CpuBackend::new(CpuOptions {
        threads,
        activations,
        simd: None,
    })
}

/// GPU `ordinal`, when the model's part and its cache fit into what is free: said before anything
/// is loaded.
pub fn gpu(args: &ModelArgs, ordinal: usize, path: &Path, place: Place) -> anyhow::Result<Gpu> {
    let driver = Driver::open(ordinal)?;
    // Activations of products stay float where the operator asks for that, and so do weights.
    let (precision, bytes) = match args.activations {
        ActivationsArg::Int8 => (Precision::Bf16, 2),
        ActivationsArg::F32 => (Precision::F32, 4),
    };
    let model = Model::open(path)?;
    let shard = Shard::new(model.config(), place)?;
    let size = RankSize {
        element_bytes: bytes,
        cache: args.cache(),
        kv: kv_type(args),
        step: StepSize::usual(args.stride as usize),
    };
    let (free, total) = driver.memory()?;
    let needed = DeviceMemory::of(model.config(), &shard, &size);
    needed
        .check(free, total)
        .with_context(|| format!("cuda:{ordinal}"))?;
    Ok(CudaBackend::new(driver, precision).with_graphs(args.cuda_graphs))
}

fn kv_type(args: &ModelArgs) -> KvType {
    match args.kv_type {
        KvTypeArg::Q8 => KvType::Q8,
        KvTypeArg::F16 => KvType::F16,
        KvTypeArg::F32 => KvType::F32,
    }
}

/// Opens one part of the model at `path`.
pub fn open_part<B: Backend>(
    backend: B,
    args: &ModelArgs,
    kv: &KvArgs,
    path: PathBuf,
    place: Place,
) -> anyhow::Result<Rank<B>> {
    let is_path = PathBuf::from(&args.model).exists();
    let options = RankOptions {
        model: path,
        name: if is_path {
            String::new()
        } else {
            args.model.clone()
        },
        kv: kv_type(args),
        cache: args.cache(),
        stride: args.stride,
        indexer: indexer(args)?,
        default_kv: kv.wire(),
        step: matches!(args.device, DeviceArg::Cuda(_))
            .then(|| StepSize::usual(args.stride as usize)),
        place,
    };
    let bar = term::progress(100, "loading");
    let rank = Rank::open(backend, options, &mut |done| {
        bar.set_position((done * 100.0) as u64)
    })?;
    bar.finish_and_clear();
    Ok(rank)
}

/// The default model's indexer: `palimpsest calibrate` on the corpus of `calibrate/make_corpus.py`.
const BUILT_IN: &[u8] = include_bytes!("../assets/indexers/smollm2-135m-instruct.safetensors");

/// The indexer the operator named, else the one built in for the default model. A model without one
/// runs with untrained policies only; `serve` says which policy is the default.
fn indexer(args: &ModelArgs) -> anyhow::Result<Option<Indexer>> {
    let Some(path) = &args.indexer else {
        let built_in = args.model == pull::DEFAULT_MODEL;
        return Ok(if built_in {
            Some(Indexer::parse(BUILT_IN)?)
        } else {
            None
        });
    };
    let bytes = std::fs::read(path)
        .with_context(|| format!("cannot read the indexer {}", path.display()))?;
    Ok(Some(Indexer::parse(&bytes)?))
}

/// Number of the only epoch of ranks that are threads: they fail together or not at all.
const EPOCH: u64 = 1;

/// Starts the device threads of the opened ranks of a group, in rank order, and a coordinator over
/// them. Needs a tokio runtime.
pub fn start(ranks: Ranks, config: Config) -> anyhow::Result<Coordinator> {
    match ranks {
        Ranks::Cpu(ranks) => start_on(ranks, config),
        Ranks::Cuda(ranks) => start_on(ranks, config),
    }
}

fn start_on<B: Backend>(ranks: Vec<Rank<B>>, config: Config) -> anyhow::Result<Coordinator> {
    let mut channels = Vec::with_capacity(ranks.len());
    let mut infos = Vec::with_capacity(ranks.len());
    let mut collectives = LocalGroup::new(ranks.len()).into_iter();
    let is_group = ranks.len() > 1;
    for (index, Rank { info, mut runner }) in ranks.into_iter().enumerate() {
        if let Some(collective) = collectives.next().filter(|_| is_group) {
            runner.join(EPOCH, Some(Arc::new(collective)));
        }
        let (plans, mut inbox) =
            mpsc::channel::<(_, tokio::sync::oneshot::Sender<_>)>(PLANS_IN_FLIGHT);
        std::thread::Builder::new()
            .name(format!("rank-{index}"))
            .spawn(move || {
                while let Some((plan, reply)) = inbox.blocking_recv() {
                    // A coordinator that stopped waiting has ended the epoch already.
                    let _ = reply.send(runner.execute(&plan));
                }
            })?;
        channels.push(RankChannel { plans });
        infos.push(info);
    }
    let config = Config {
        first_epoch: EPOCH,
        ..config
    };
    let executor = ChannelExecutor::new(channels, config.step_limit);
    Ok(Coordinator::build(config, Box::new(executor), infos)?)
}
