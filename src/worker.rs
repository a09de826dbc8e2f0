//! `palimpsest worker`: one rank of a group as a process.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use palimpsest_collective::nccl::library::Library;
use palimpsest_collective::{CollectiveError, Place};
use palimpsest_engine::rank::Rank;
use palimpsest_kernels::Backend;
use palimpsest_proto::v1::KvContract;
use palimpsest_registry::{Claim, RankRecord};
use palimpsest_tls::{
    ClientTls, ClusterFiles, Connector, Incoming, Limits, Role, ServerTls, SessionTls,
};
use palimpsest_worker::device::{Device as DeviceThread, Fault};
use palimpsest_worker::server::{self, Loaded, ServerOptions, Transport};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::model::{Device, ModelConfig, Part, Ready, cpu};
use crate::registry::{self, CLAIM_LIMIT, EtcdConfig, lost};
use crate::{shelf, signals, traces};

/// Time for calls under way when a rank turns out to be another process's.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// One rank.
#[derive(Debug, Clone)]
pub struct Config {
    /// The model, of which this rank holds a part.
    pub model: ModelConfig,
    /// Contract of requests that do not say.
    pub default_kv: KvContract,
    /// Which part.
    pub place: Place,
    /// What ranks exchange tensors over; what suits the device when `None`.
    pub collective: Option<CollectiveKind>,
    /// Name of the worker group.
    pub group: String,
    /// Where this rank is announced.
    pub registry: Option<EtcdConfig>,
    /// Address to listen on.
    pub listen: SocketAddr,
    /// `host:port` at which others reach this rank; the address it listens on when `None`.
    pub advertise: Option<String>,
    /// Address of a port without TLS that answers health checks alone.
    pub health: Option<SocketAddr>,
    /// What is shown to coordinator and other ranks.
    pub cluster: Option<ClusterFiles>,
    /// Whether they may be plain text beyond this machine.
    pub insecure: bool,
    /// Whether tensors may be exchanged in the clear although there are certificates.
    pub clear_tensors: bool,
    /// A fault for tests: steps in which this rank computes something else than the others.
    pub diverge_at: Vec<u64>,
    /// A fault of the device for tests.
    pub fault: Option<Fault>,
}

/// What ranks exchange tensors over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectiveKind {
    /// TCP between hosts.
    Tcp,
    /// Gloo over TCP.
    Gloo,
    /// NCCL between GPUs.
    Nccl,
}

impl CollectiveKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Gloo => "gloo",
            Self::Nccl => "nccl",
        }
    }
}

/// Loads one part of the model and serves it to a coordinator until a signal.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let place = config.place;
    check(place)?;
    check_exposure(&config)?;
    let _traces = traces::start()?;
    let Tls {
        server: tls,
        ranks,
        tensors,
    } = Tls::open(config.cluster.clone())?;
    let Bound {
        listener,
        probes,
        address,
        host,
    } = bind(&config).await?;
    let incoming = Incoming::new(listener, tls, Limits::default());
    let options = ServerOptions {
        place,
        host,
        transport: transport(&config, tensors)?,
        ranks,
        probes: probes.map(Incoming::from),
    };
    let (loaded, following) = watch::channel(None);
    let (taken, leave) = watch::channel(false);
    let serving = tokio::spawn(server::serve(incoming, options, following, shutdown(leave)));

    let claim = claim(&config, &address).await?;
    let opened = tokio::task::spawn_blocking(move || open(&config)).await??;
    eprintln!(
        "rank {} of {} on {address} ({})",
        place.rank, place.world_size, opened.info.device
    );
    loaded.send_replace(Some(opened));

    let mut serving = pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served?,
        error = lost(claim.as_ref()) => {
            // Its epoch ends with the server: the group goes on with who has the rank now.
            taken.send_replace(true);
            let _ = tokio::time::timeout(LEAVE_LIMIT, serving).await;
            return Err(error).context("this process is that rank no longer");
        }
    };
    if let Some(claim) = claim {
        // Who takes this place need not wait for the lease to run out.
        claim.release().await;
    }
    Ok(served?)
}

fn check(place: Place) -> anyhow::Result<()> {
    let Place { rank, world_size } = place;
    if rank >= world_size {
        bail!(
            "rank {rank} is out of range: a group of {world_size} has ranks 0 to {}",
            world_size.saturating_sub(1)
        );
    }
    Ok(())
}

/// Refuses to be driven by everyone beyond this machine unless the operator says so.
fn check_exposure(config: &Config) -> anyhow::Result<()> {
    if config.listen.ip().is_loopback() || config.cluster.is_some() || config.insecure {
        return Ok(());
    }
    bail!(
        "{} can be reached from outside, and whoever reaches it could drive this rank: give \
         --cluster-cert, --cluster-key and --cluster-ca, or --insecure on a network that nobody \
         else reaches",
        config.listen
    )
}

/// TLS with coordinator and other ranks.
struct Tls {
    server: Option<ServerTls>,
    ranks: Connector,
    /// For what ranks exchange tensors over.
    tensors: Option<SessionTls>,
}

impl Tls {
    fn open(files: Option<ClusterFiles>) -> anyhow::Result<Self> {
        let Some(files) = files else {
            return Ok(Self {
                server: None,
                ranks: Connector::default(),
                tensors: None,
            });
        };
        let server = ServerTls::cluster(files.clone(), Role::Worker)?;
        let tensors = SessionTls::cluster(files.clone(), Role::Worker)?;
        let ranks = ClientTls::cluster(files, Role::Worker, Role::Worker)?;
        Ok(Self {
            server: Some(server),
            ranks: Connector::new(Some(ranks)),
            tensors: Some(tensors),
        })
    }
}

/// Claims the rank, where there is a registry.
async fn claim(config: &Config, address: &str) -> anyhow::Result<Option<Claim>> {
    let Some(etcd) = config.registry.clone() else {
        return Ok(None);
    };
    let Place { rank, world_size } = config.place;
    let record = RankRecord::new(rank as u32, world_size as u32, address.to_owned());
    let registry = registry::open(etcd).await?;
    Ok(Some(
        registry.claim(&config.group, record, CLAIM_LIMIT).await?,
    ))
}

/// Where a rank listens.
struct Bound {
    listener: TcpListener,
    probes: Option<TcpListener>,
    /// `host:port` for the others.
    address: String,
    /// The host in `address`.
    host: String,
}

async fn bind(config: &Config) -> anyhow::Result<Bound> {
    let listener = TcpListener::bind(config.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; is another rank running? choose one with --listen",
            config.listen
        )
    })?;
    let probes = match config.health {
        Some(address) => Some(TcpListener::bind(address).await.with_context(|| {
            format!(
                "cannot listen on {address}; is another process running? choose one with --health"
            )
        })?),
        None => None,
    };
    let address = match &config.advertise {
        Some(address) => address.clone(),
        None if config.listen.ip().is_unspecified() => {
            bail!(
                "--listen {} says not how others reach this rank: give host:port with --advertise",
                config.listen
            )
        }
        None => listener.local_addr()?.to_string(),
    };
    let host = address
        .rsplit_once(':')
        .map_or(address.as_str(), |(host, _)| host)
        .trim_matches(['[', ']'])
        .to_owned();
    Ok(Bound {
        listener,
        probes,
        address,
        host,
    })
}

/// Loads this rank's part of the model.
fn open(config: &Config) -> anyhow::Result<Loaded> {
    let ready = Ready::find(&config.model, &config.default_kv)?;
    let part = Part {
        config: &config.model,
        ready: &ready,
        place: config.place,
    };
    match config.model.device {
        Device::Cpu => start(config, part.open_on(cpu(&config.model))?),
        Device::Cuda(ordinal) => start(config, part.open_on(part.gpu(ordinal)?)?),
    }
}

/// Starts the device thread of an opened rank.
fn start<B: Backend>(config: &Config, mut opened: Rank<B>) -> anyhow::Result<Loaded> {
    let store = shelf::store(config.model.snapshot_store.as_deref())?;
    let shelf = shelf::open(&mut opened, store.as_ref())?;
    let Rank { info, mut runner } = opened;
    runner.diverge_at(config.diverge_at.clone());
    let name = format!("rank-{}", config.place.rank);
    Ok(Loaded {
        info,
        device: DeviceThread::spawn(name, runner, shelf, config.fault)?,
    })
}

/// Ends on a signal, or when the rank is another process's.
async fn shutdown(mut leave: watch::Receiver<bool>) {
    tokio::select! {
        () = signals::shutdown() => {}
        Ok(_) = leave.wait_for(|leave| *leave) => {}
    }
}

/// What ranks exchange tensors over: what was asked for, else what suits the device. A rank alone
/// exchanges nothing. With certificates TCP is encrypted; what cannot be is refused, unless the
/// operator says that it may be in the clear.
fn transport(config: &Config, tls: Option<SessionTls>) -> anyhow::Result<Transport> {
    let device = config.model.device;
    let kind = match (config.collective, device) {
        (Some(CollectiveKind::Nccl), Device::Cpu) => {
            bail!(
                "--collective nccl is for GPUs: give --device cuda:N, or --collective tcp for CPUs"
            )
        }
        (Some(kind), _) => kind,
        (None, Device::Cuda(_)) if config.place.world_size > 1 => CollectiveKind::Nccl,
        (None, _) => CollectiveKind::Tcp,
    };
    let is_clear = kind != CollectiveKind::Tcp && config.place.world_size > 1;
    if is_clear && tls.is_some() && !config.clear_tensors {
        let why = "it sends tensors in the clear, and --cluster-cert asks for TLS: give \
                   --collective tcp, or --clear-tensors on a network that nobody else reaches";
        return Err(CollectiveError::Unsupported {
            name: kind.name(),
            why: why.into(),
        }
        .into());
    }
    match (kind, device) {
        (CollectiveKind::Nccl, Device::Cuda(ordinal)) => {
            let library = Library::open(ordinal)
                .context("NCCL cannot be used here; --collective tcp goes through the host")?;
            Ok(Transport::Nccl(Arc::new(library)))
        }
        (CollectiveKind::Gloo, _) => Ok(Transport::Gloo),
        (CollectiveKind::Tcp | CollectiveKind::Nccl, _) => Ok(Transport::Tcp(tls)),
    }
}
