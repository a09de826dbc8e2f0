//! `palimpsest coordinator` and `palimpsest worker`: a group whose ranks are processes.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use palimpsest_collective::Place;
use palimpsest_collective::nccl::library::Library;
use palimpsest_coordinator::membership::{
    FormError, Formed, Kept, Lead, Members, RegistryMembers, StaticMembers, form, keep,
};
use palimpsest_coordinator::{Config, Coordinator};
use palimpsest_engine::rank::Rank;
use palimpsest_kernels::Backend;
use palimpsest_registry::{Claim, RankRecord, Registry, RegistryError};
#[cfg(feature = "etcd")]
use palimpsest_registry::{EtcdOptions, EtcdRegistry};
#[cfg(feature = "etcd")]
use palimpsest_tls::ClientFiles;
use palimpsest_tls::{ClientTls, Connector, Incoming, Limits, Role, ServerTls};
use palimpsest_worker::server::{self, Device, Loaded, ServerOptions, Transport};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::args::{CollectiveArg, CoordinatorArgs, DeviceArg, RegistryArgs, WorkerArgs};
use crate::front::Front;
use crate::{embedded, pull, serve, traces};

/// How long a rank, or the lead of a group, that was claimed by a process that died stays claimed,
/// and some more.
const CLAIM_LIMIT: Duration = Duration::from_secs(30);

/// Time between two attempts of a standby to claim the lead while the registry is away.
const STANDBY_PAUSE: Duration = Duration::from_secs(1);

/// Time for calls under way when a rank turns out to be another process's.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// Waits for the ranks, serves until a signal, then drains.
pub async fn coordinator(args: CoordinatorArgs) -> anyhow::Result<()> {
    let mut front = Front::open(&args.front).await?;
    let _traces = traces::start()?;
    let tls = args
        .cluster
        .files()
        .map(|files| ClientTls::cluster(files, Role::Coordinator, Role::Worker));
    let config = Config {
        regroup_limit: Duration::from_secs(args.regroup_seconds),
        group_wait_limit: Duration::from_secs(args.group_wait_seconds),
        ranks: Connector::new(tls.transpose()?),
        ..front.config(&args.front)
    };
    let mut lead = Lead::new();
    let forming = async {
        let (members, claim) = members(&args).await?;
        let limit = Duration::from_secs(args.form_seconds);
        let group = tokio::select! {
            group = first_group(&*members, &config, &mut lead, limit) => group?,
            error = lost(claim.as_ref()) => return Err(error).context("another coordinator leads the group"),
        };
        anyhow::Ok((members, claim, group))
    };
    let (members, claim, group) = tokio::select! {
        formed = front.wait_for(forming) => formed?,
        () = serve::shutdown_signal() => return Ok(()),
    };
    let Formed {
        epoch,
        executor,
        ranks,
        watchers,
    } = group;
    let config = Config {
        first_epoch: epoch.0,
        ..config
    };
    let count = ranks.len();
    let coordinator = Coordinator::build(config.clone(), Box::new(executor), ranks)?;
    let mut keeper = tokio::spawn(keep(
        coordinator.clone(),
        config,
        Kept {
            members,
            lead,
            watchers,
        },
    ));
    if !coordinator.ready().await {
        eprintln!("the first step failed; forming the group anew");
    }
    eprintln!(
        "serving {} at {} ({count} ranks)",
        coordinator.service().model.info.name,
        front.describe()
    );
    let engine = &coordinator.service().engine;
    let end = async {
        let deposed = tokio::select! {
            () = serve::shutdown_signal() => return Ok(()),
            error = lost(claim.as_ref()) => anyhow::Error::new(error),
            kept = &mut keeper => match kept {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(superseded)) => superseded.into(),
                Err(panic) => panic.into(),
            },
        };
        // The ranks are another's. What runs here ends with a reason, not with a connection that
        // breaks.
        engine.lose(deposed.to_string()).await;
        Err(deposed.context("this coordinator leads no longer"))
    };
    let served = front.serve_until(&coordinator, end).await;
    keeper.abort();
    if let Some(claim) = claim {
        // Who stands by need not wait for the lease to run out.
        claim.release().await;
    }
    served?;
    eprintln!("drained");
    Ok(())
}

/// Where the ranks are, and the claim of this coordinator to lead them. Another one of the same
/// group stands by until the first is gone.
async fn members(args: &CoordinatorArgs) -> anyhow::Result<(Arc<dyn Members>, Option<Claim>)> {
    let Some(registry) = registry(&args.registry).await? else {
        if args.ranks.is_empty() {
            bail!(
                "say where the ranks are: --etcd http://host:2379 --group NAME --tp N, or --ranks \
                 host:port,…"
            );
        }
        return Ok((Arc::new(StaticMembers::new(args.ranks.clone())), None));
    };
    let group = &args.registry.group;
    let record = RankRecord::new(0, 1, args.front.listen.to_string());
    let mut said = None;
    let claim = loop {
        let waits_for = match registry
            .claim(&format!("{group}.lead"), record.clone(), CLAIM_LIMIT)
            .await
        {
            Ok(claim) => break claim,
            Err(RegistryError::RankTaken { address, .. }) => {
                format!("standing by: the coordinator at {address} leads group {group}")
            }
            // Who stands by outlasts an outage as who leads does.
            Err(error @ RegistryError::Unreachable { .. }) if said.is_some() => {
                tokio::time::sleep(STANDBY_PAUSE).await;
                format!("standing by: {error}")
            }
            Err(error) => return Err(error.into()),
        };
        if said.as_ref() != Some(&waits_for) {
            eprintln!("{waits_for}");
        }
        said = Some(waits_for);
    };
    Ok((
        Arc::new(RegistryMembers::new(registry, group.clone(), args.tp)),
        Some(claim),
    ))
}

/// The registry that was asked for, if one was.
#[cfg(feature = "etcd")]
async fn registry(args: &RegistryArgs) -> anyhow::Result<Option<Arc<dyn Registry>>> {
    if args.etcd.is_empty() {
        return Ok(None);
    }
    let password = std::env::var("PALIMPSEST_ETCD_PASSWORD").unwrap_or_default();
    let user = args.etcd_user.clone().map(|name| (name, password));
    let encrypted = args
        .etcd
        .iter()
        .filter(|endpoint| endpoint.starts_with("https://"))
        .count();
    if encrypted != 0 && encrypted != args.etcd.len() {
        bail!("--etcd mixes http:// and https://: give endpoints of one kind");
    }
    if encrypted == 0 && (args.etcd_ca.is_some() || args.etcd_cert.is_some()) {
        bail!("--etcd-ca and --etcd-cert are for endpoints of https://");
    }
    let files = ClientFiles {
        ca: args.etcd_ca.clone(),
        identity: args.etcd_cert.clone().zip(args.etcd_key.clone()),
    };
    let tls = if encrypted > 0 {
        Some(ClientTls::open(files)?)
    } else {
        None
    };
    let lease = Duration::from_secs(args.etcd_lease_seconds.into());
    let options = EtcdOptions {
        endpoints: args.etcd.clone(),
        user,
        tls,
        lease,
        ..EtcdOptions::default()
    };
    Ok(Some(Arc::new(
        connect(options, Duration::from_secs(args.etcd_wait_seconds.into())).await?,
    )))
}

/// Connects to etcd, which may start beside this process: not being there is no reason to give up
/// before `patience` is.
#[cfg(feature = "etcd")]
async fn connect(options: EtcdOptions, patience: Duration) -> Result<EtcdRegistry, RegistryError> {
    const PAUSE: Duration = Duration::from_secs(1);
    let since = tokio::time::Instant::now();
    let mut is_told = false;
    loop {
        match EtcdRegistry::connect(options.clone()).await {
            Err(RegistryError::Unreachable { why, .. }) if since.elapsed() + PAUSE < patience => {
                if !is_told {
                    eprintln!(
                        "waiting for etcd at {}: {why}",
                        options.endpoints.join(", ")
                    );
                }
                is_told = true;
                tokio::time::sleep(PAUSE).await;
            }
            connected => return connected,
        }
    }
}

#[cfg(not(feature = "etcd"))]
async fn registry(args: &RegistryArgs) -> anyhow::Result<Option<Arc<dyn Registry>>> {
    if !args.etcd.is_empty() {
        bail!("this build knows no etcd: build with --features cluster");
    }
    Ok(None)
}

/// Forms the first group, saying whom it waits for.
async fn first_group(
    members: &dyn Members,
    config: &Config,
    lead: &mut Lead,
    limit: Duration,
) -> anyhow::Result<Formed> {
    let (started, mut last) = (Instant::now(), String::new());
    loop {
        let error = match form(members, config, lead).await {
            Ok(group) => return Ok(group),
            // Ranks that do not fit each other will not fit later either.
            Err(error @ FormError::Disagree(_)) => return Err(error.into()),
            Err(error) => error,
        };
        if started.elapsed() >= limit {
            return Err(error).context(format!("no group within {} s", limit.as_secs()));
        }
        let message = error.to_string();
        if message != last {
            eprintln!("waiting: {message}");
            last = message;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Loads one part of the model and serves it to a coordinator until a signal.
pub async fn worker(args: WorkerArgs) -> anyhow::Result<()> {
    let place = Place {
        rank: args.rank,
        world_size: args.tp,
    };
    if place.rank >= place.world_size {
        bail!(
            "rank {} is out of range: a group of {} has ranks 0 to {}",
            args.rank,
            args.tp,
            args.tp.saturating_sub(1)
        );
    }
    let _traces = traces::start()?;
    let (tls, ranks) = match args.cluster.files() {
        Some(files) => {
            let server = ServerTls::cluster(files.clone(), Role::Worker)?;
            (
                Some(server),
                Connector::new(Some(ClientTls::cluster(files, Role::Worker, Role::Worker)?)),
            )
        }
        None => (None, Connector::default()),
    };
    let Bound {
        listener,
        probes,
        address,
        host,
    } = bind(&args).await?;
    let (loaded, following) = watch::channel(None);
    let incoming = Incoming::new(listener, tls, Limits::default());
    let transport = transport(args.collective, args.model.device, place)?;
    let options = ServerOptions {
        place,
        host,
        transport,
        ranks,
        probes: probes.map(Incoming::from),
    };
    let (taken, leave) = watch::channel(false);
    let serving = tokio::spawn(server::serve(incoming, options, following, shutdown(leave)));
    let claim = match registry(&args.registry).await? {
        Some(registry) => {
            let record = RankRecord::new(args.rank as u32, args.tp as u32, address.clone());
            Some(
                registry
                    .claim(&args.registry.group, record, CLAIM_LIMIT)
                    .await?,
            )
        }
        None => None,
    };
    let opened = tokio::task::spawn_blocking(move || open(args, place)).await??;
    eprintln!(
        "rank {} of {} on {address} ({})",
        place.rank, place.world_size, opened.info.device
    );
    loaded.send_replace(Some(opened));
    let mut serving = pin!(serving);
    tokio::select! {
        served = &mut serving => served??,
        error = lost(claim.as_ref()) => {
            // Its epoch ends with the server: the group goes on with who has the rank now.
            taken.send_replace(true);
            let _ = tokio::time::timeout(LEAVE_LIMIT, serving).await;
            return Err(error).context("this process is that rank no longer");
        }
    }
    if let Some(claim) = claim {
        claim.release().await;
    }
    Ok(())
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

async fn bind(args: &WorkerArgs) -> anyhow::Result<Bound> {
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; is another rank running? choose one with --listen",
            args.listen
        )
    })?;
    let probes = match args.health {
        Some(address) => Some(TcpListener::bind(address).await.with_context(|| {
            format!(
                "cannot listen on {address}; is another process running? choose one with --health"
            )
        })?),
        None => None,
    };
    let address = match &args.advertise {
        Some(address) => address.clone(),
        None if args.listen.ip().is_unspecified() => {
            bail!(
                "--listen {} says not how others reach this rank: give host:port with --advertise",
                args.listen
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
fn open(args: WorkerArgs, place: Place) -> anyhow::Result<Loaded> {
    let path = pull::pull(&crate::args::pull_options(&args.model.model))?;
    let (model, kv, diverging) = (&args.model, &args.kv, args.inject_divergence);
    match model.device {
        DeviceArg::Cpu => {
            let cpu = embedded::cpu(model, model.threads);
            loaded_on(
                place,
                embedded::open_part(cpu, model, kv, path, place)?,
                diverging,
            )
        }
        DeviceArg::Cuda(ordinal) => {
            let gpu = embedded::gpu(model, ordinal, &path, place)?;
            loaded_on(
                place,
                embedded::open_part(gpu, model, kv, path, place)?,
                diverging,
            )
        }
    }
}

/// Ends on a signal, or when the rank is another process's.
async fn shutdown(mut leave: watch::Receiver<bool>) {
    tokio::select! {
        () = serve::shutdown_signal() => {}
        Ok(_) = leave.wait_for(|leave| *leave) => {}
    }
}

/// Waits until another process has what was claimed; for ever where nothing was.
async fn lost(claim: Option<&Claim>) -> RegistryError {
    match claim {
        Some(claim) => claim.lost().await,
        None => std::future::pending().await,
    }
}

/// What ranks exchange tensors over: what was asked for, else what suits the device. A rank alone
/// exchanges nothing.
fn transport(
    asked: Option<CollectiveArg>,
    device: DeviceArg,
    place: Place,
) -> anyhow::Result<Transport> {
    match (asked, device) {
        (Some(CollectiveArg::Nccl), DeviceArg::Cpu) => {
            bail!(
                "--collective nccl is for GPUs: give --device cuda:N, or --collective tcp for CPUs"
            )
        }
        (None, DeviceArg::Cuda(_)) if place.world_size == 1 => Ok(Transport::Tcp),
        (Some(CollectiveArg::Nccl) | None, DeviceArg::Cuda(ordinal)) => {
            let library = Library::open(ordinal)
                .context("NCCL cannot be used here; --collective tcp goes through the host")?;
            Ok(Transport::Nccl(Arc::new(library)))
        }
        (Some(CollectiveArg::Gloo), _) => Ok(Transport::Gloo),
        (Some(CollectiveArg::Tcp), _) | (None, DeviceArg::Cpu) => Ok(Transport::Tcp),
    }
}

fn loaded_on<B: Backend>(
    place: Place,
    opened: Rank<B>,
    diverge_at: Vec<u64>,
) -> anyhow::Result<Loaded> {
    let Rank { info, mut runner } = opened;
    runner.diverge_at(diverge_at);
    Ok(Loaded {
        info,
        device: Device::spawn(format!("rank-{}", place.rank), runner)?,
    })
}
