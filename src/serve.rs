//! `palimpsest serve`: everything in one process.

use std::time::Duration;

use anyhow::Context;
use palimpsest_coordinator::Config as Limits;
use palimpsest_coordinator::membership::Deposed;
use palimpsest_engine::policy::Retention;
use palimpsest_proto::v1::KvContract;
use palimpsest_worker::device::Fault;

use crate::front::{Front, FrontConfig};
use crate::group::Group;
use crate::model::{self, ModelConfig, Ranks};
use crate::place::{self, Patience};
use crate::{calibrate, shelf, signals, term, traces};

/// What to serve, and where.
#[derive(Debug, Clone)]
pub struct Config {
    /// The model.
    pub model: ModelConfig,
    /// Whether an indexer is fitted for a model that has none.
    pub calibrate: bool,
    /// Contract of requests that do not say.
    pub default_kv: KvContract,
    /// Ranks that share the model, as threads of this process.
    pub tp: usize,
    /// What faces clients.
    pub front: FrontConfig,
    /// Longest time of one step.
    pub step_limit: Duration,
    /// A fault of rank 0's device, for tests.
    pub fault: Option<Fault>,
}

/// Loads the model, listens, serves until a signal, then drains.
///
/// # Errors
/// Also when the device of a rank can be used no more: what runs then ends with a reason.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut front = Front::open(config.front).await?;
    let _traces = traces::start()?;
    let limits = Limits {
        step_limit: config.step_limit,
        ..front.config()
    };
    let limits = place::claim(limits, Patience::NONE).await?;
    // A model may take minutes to load, and a probe tells that from a process that hangs.
    let (described, mut group) = front
        .probe_while(async {
            let ranks = tokio::task::block_in_place(|| {
                if config.calibrate {
                    calibrate::at_first_start(&config.model)?;
                }
                model::open_ranks(&config.model, &config.default_kv, config.tp)
            })?;
            let described = describe(&ranks);
            let store = shelf::store(config.model.snapshot_store.as_deref())?;
            let mut group = Group::start(ranks, limits, store.as_ref(), config.fault)?;
            group.ready().await?;
            anyhow::Ok((described, group))
        })
        .await?;

    let coordinator = group.coordinator.clone();
    coordinator.service().sessions.open().await?;
    let model = &coordinator.service().model;
    let shutdown = signals::shutdown();
    eprintln!(
        "serving {} at {} ({described})",
        model.name(),
        front.describe()
    );
    eprintln!(
        "default contract: {}",
        contract(model.info.default_kv.clone().unwrap_or_default())
    );
    let end = async {
        let end = tokio::select! {
            () = shutdown => return Ok(()),
            end = group.lost() => end,
            () = coordinator.ended() => return Err(Deposed::DriverLost.into()),
        };
        Err(end).context("this process can serve no longer")
    };
    let served = front.serve_until(&coordinator, end).await;
    coordinator.service().sessions.close().await;
    coordinator.service().responses.close().await;
    served?;
    eprintln!("drained");
    Ok(())
}

/// How many ranks, on what, with how much cache.
fn describe(ranks: &Ranks) -> String {
    let infos = ranks.infos();
    let device = &infos[0].device;
    let arena = infos
        .iter()
        .map(|info| info.kv_arena_bytes + info.kv_latent_bytes)
        .sum();
    let parts = match infos.len() {
        1 => String::new(),
        count => format!("{count} ranks, each "),
    };
    format!("{parts}{device}, up to {} of cache", term::bytes(arena))
}

fn contract(kv: KvContract) -> String {
    if kv.policy == "full" {
        return "policy full: nothing is evicted".into();
    }
    let trained = if kv.policy == Retention::NAME {
        "learned"
    } else {
        "untrained"
    };
    format!(
        "budget {}, policy {} ({trained}), memory {}",
        kv.budget, kv.policy, kv.memory
    )
}
