//! `palimpsest coordinator` and `palimpsest worker`: a group whose ranks are processes.

use crate::args::{CoordinatorArgs, WorkerArgs};
use crate::{embedded, pull, serve};
use anyhow::{Context, bail};
use palimpsest_coordinator::membership::{FormError, Formed, Members, StaticMembers, form, keep};
use palimpsest_coordinator::{Config, Coordinator};
use palimpsest_worker::rank::Rank;
use palimpsest_worker::server::{self, Device, Loaded, ServerOptions};
use palimpsest_worker::shard::Place;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Waits for the ranks, serves until a signal, then drains.
pub async fn coordinator(args: CoordinatorArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!("cannot listen on {}; is another server running? choose one with --listen", args.listen)
    })?;
    let config = Config {
        max_running: args.max_running,
        max_queued: args.max_queued,
        regroup_limit: Duration::from_secs(args.regroup_seconds),
        ..Config::default()
    };
    let members: Arc<dyn Members> = Arc::new(StaticMembers::new(args.ranks));
    let group = tokio::select! {
        group = first_group(&*members, &config, Duration::from_secs(args.form_seconds)) => group?,
        () = serve::shutdown_signal() => return Ok(()),
    };
    let Formed { epoch, executor, ranks, watchers } = group;
    let config = Config { first_epoch: epoch.0, ..config };
    let count = ranks.len();
    let coordinator = Coordinator::build(config.clone(), Box::new(executor), ranks)?;
    let keeper = tokio::spawn(keep(coordinator.clone(), members, config, watchers));
    if !coordinator.ready().await {
        eprintln!("the first step failed; forming the group anew");
    }
    eprintln!("serving {} on {} ({count} ranks)", coordinator.service().model.info.name, args.listen);
    coordinator.serve(listener, serve::shutdown_signal()).await?;
    keeper.abort();
    eprintln!("drained");
    Ok(())
}

/// Forms the first group, saying whom it waits for.
async fn first_group(members: &dyn Members, config: &Config, limit: Duration) -> anyhow::Result<Formed> {
    let (started, mut last) = (Instant::now(), String::new());
    loop {
        let error = match form(members, config).await {
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
    let place = Place { rank: args.rank, world_size: args.tp };
    if place.rank >= place.world_size {
        bail!(
            "rank {} is out of range: a group of {} has ranks 0 to {}",
            args.rank,
            args.tp,
            args.tp.saturating_sub(1)
        );
    }
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!("cannot listen on {}; is another rank running? choose one with --listen", args.listen)
    })?;
    let host = match args.advertise {
        Some(host) => host,
        None if args.listen.ip().is_unspecified() && args.tp > 1 => {
            bail!("--listen {} says not how other ranks reach this one: give its host with --advertise", args.listen)
        }
        None => args.listen.ip().to_string(),
    };
    let address = listener.local_addr()?;
    let (loaded, following) = watch::channel(None);
    let serving = tokio::spawn(server::serve(listener, ServerOptions { place, host }, following, async {
        serve::shutdown_signal().await;
    }));
    let name = format!("rank-{}", args.rank);
    let open = move || -> anyhow::Result<Loaded> {
        let path = pull::pull(&crate::args::pull_options(&args.model.model))?;
        let Rank { info, runner } = embedded::open_part(&args.model, &args.kv, path, place, args.model.threads)?;
        Ok(Loaded { info, device: Device::spawn(name, runner)? })
    };
    let opened = tokio::task::spawn_blocking(open).await??;
    eprintln!("rank {} of {} on {address} ({})", place.rank, place.world_size, opened.info.device);
    loaded.send_replace(Some(opened));
    serving.await??;
    Ok(())
}
