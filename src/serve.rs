//! `palimpsest serve`: everything in one process.

use anyhow::bail;
use palimpsest_engine::policy::Retention;

use crate::args::ServeArgs;
use crate::front::Front;
use crate::{embedded, term, traces};

/// Loads the model, listens, serves until Ctrl-C or SIGTERM, then drains.
pub async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let front = Front::open(&args.front).await?;
    let _traces = traces::start()?;
    let ranks = tokio::task::block_in_place(|| {
        embedded::open_ranks(&args.model, &args.kv, args.tp.into())
    })?;
    let config = front.config(&args.front);
    let device = ranks.infos()[0].device.clone();
    let arena = term::bytes(
        ranks
            .infos()
            .iter()
            .map(|info| info.kv_arena_bytes + info.kv_latent_bytes)
            .sum(),
    );
    let parts = if args.tp > 1 {
        format!("{} ranks, each ", args.tp)
    } else {
        String::new()
    };
    let coordinator = embedded::start(ranks, config)?;
    if !coordinator.ready().await {
        bail!("the first step failed; run with --log info for the reason");
    }
    let model = &coordinator.service().model;
    let kv = model.info.default_kv.clone().unwrap_or_default();
    let trained = if kv.policy == Retention::NAME {
        "learned"
    } else {
        "untrained"
    };
    eprintln!(
        "serving {} at {} ({parts}{device}, up to {arena} of cache)",
        model.info.name,
        front.describe()
    );
    eprintln!(
        "default contract: budget {}, policy {} ({trained}), memory {}",
        kv.budget, kv.policy, kv.memory
    );
    front.serve(&coordinator).await?;
    eprintln!("drained");
    Ok(())
}

/// The first Ctrl-C or SIGTERM starts the drain; a second one ends the process at once.
pub async fn shutdown_signal() {
    wait_for_signal().await;
    eprintln!("draining; once more to stop at once");
    tokio::spawn(async {
        wait_for_signal().await;
        std::process::exit(130);
    });
}

async fn wait_for_signal() {
    let interrupt = tokio::signal::ctrl_c();
    let mut terminate =
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(signal) => signal,
            Err(error) => {
                tracing::warn!(%error, "SIGTERM cannot be watched; Ctrl-C still works");
                let _ = interrupt.await;
                return;
            }
        };
    tokio::select! {
        _ = interrupt => {}
        _ = terminate.recv() => {}
    }
}
