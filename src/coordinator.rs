//! `palimpsest coordinator`: serves a model whose ranks are processes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use palimpsest_coordinator::membership::{
    FormError, Formed, Kept, Lead, Members, RegistryMembers, StaticMembers, form, keep,
};
use palimpsest_coordinator::{Config as Limits, Coordinator};
use palimpsest_registry::{Claim, RankRecord, RegistryError};
use palimpsest_tls::{ClientTls, ClusterFiles, Connector, Role};

use crate::front::{Front, FrontConfig};
use crate::registry::{self, CLAIM_LIMIT, EtcdConfig, lost};
use crate::{signals, traces};

/// Time between two attempts of a standby to claim the lead while the registry is away.
const STANDBY_PAUSE: Duration = Duration::from_secs(1);

/// What a coordinator serves over.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the worker group.
    pub group: String,
    /// Where its ranks are found.
    pub registry: Option<EtcdConfig>,
    /// Addresses of all ranks, in rank order, instead of a registry.
    pub ranks: Vec<String>,
    /// Ranks of the group, when they are found in a registry.
    pub tp: u32,
    /// Time that the first group has to form.
    pub form_limit: Duration,
    /// Time that requests of a lost group wait for the next one.
    pub regroup_limit: Duration,
    /// Time that a request waits which comes while a lost group is being replaced.
    pub group_wait_limit: Duration,
    /// What faces clients.
    pub front: FrontConfig,
    /// What is shown to ranks.
    pub cluster: Option<ClusterFiles>,
}

/// Waits for the ranks, serves until a signal, then drains.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut front = Front::open(config.front.clone()).await?;
    let _traces = traces::start()?;
    let limits = limits(&config, &front)?;
    let formed = tokio::select! {
        formed = front.wait_for(first(&config, &limits)) => formed?,
        () = signals::shutdown() => return Ok(()),
    };
    let Leading {
        members,
        claim,
        lead,
        formed,
    } = formed;
    let Formed {
        epoch,
        executor,
        ranks,
        watchers,
    } = formed;
    let limits = Limits {
        first_epoch: epoch.0,
        ..limits
    };
    let count = ranks.len();
    let coordinator = Coordinator::build(limits.clone(), Box::new(executor), ranks)?;
    let kept = Kept {
        members,
        lead,
        watchers,
    };
    let mut keeper = tokio::spawn(keep(coordinator.clone(), limits, kept));
    if !coordinator.ready().await {
        eprintln!("the first step failed; forming the group anew");
    }
    eprintln!(
        "serving {} at {} ({count} ranks)",
        coordinator.service().model.info.name,
        front.describe()
    );

    let driver = &coordinator.service().driver;
    let end = async {
        let deposed = tokio::select! {
            () = signals::shutdown() => return Ok(()),
            error = lost(claim.as_ref()) => anyhow::Error::new(error),
            kept = &mut keeper => match kept {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(superseded)) => superseded.into(),
                Err(panic) => panic.into(),
            },
        };
        // The ranks are another's. What runs here ends with a reason, not with a connection that
        // breaks.
        driver.lose(deposed.to_string()).await;
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

fn limits(config: &Config, front: &Front) -> anyhow::Result<Limits> {
    let tls = config
        .cluster
        .clone()
        .map(|files| ClientTls::cluster(files, Role::Coordinator, Role::Worker));
    Ok(Limits {
        regroup_limit: config.regroup_limit,
        group_wait_limit: config.group_wait_limit,
        ranks: Connector::new(tls.transpose()?),
        ..front.config()
    })
}

/// A first group, and under which claim it is led.
struct Leading {
    members: Arc<dyn Members>,
    claim: Option<Claim>,
    lead: Lead,
    formed: Formed,
}

/// Claims the lead and forms the first group.
async fn first(config: &Config, limits: &Limits) -> anyhow::Result<Leading> {
    let Led { members, claim } = members(config).await?;
    let mut lead = Lead::new();
    let formed = tokio::select! {
        formed = first_group(&*members, limits, &mut lead, config.form_limit) => formed?,
        error = lost(claim.as_ref()) => {
            return Err(error).context("another coordinator leads the group");
        }
    };
    Ok(Leading {
        members,
        claim,
        lead,
        formed,
    })
}

/// Where the ranks are, and the claim to lead them.
struct Led {
    members: Arc<dyn Members>,
    claim: Option<Claim>,
}

/// Where the ranks are, and the claim of this coordinator to lead them. Another one of the same
/// group stands by until the first is gone.
async fn members(config: &Config) -> anyhow::Result<Led> {
    let Some(registry) = &config.registry else {
        if config.ranks.is_empty() {
            bail!(
                "say where the ranks are: --etcd http://host:2379 --group NAME --tp N, or --ranks \
                 host:port,…"
            );
        }
        return Ok(Led {
            members: Arc::new(StaticMembers::new(config.ranks.clone())),
            claim: None,
        });
    };
    let registry = registry::open(registry.clone()).await?;
    let group = &config.group;
    let record = RankRecord::new(0, 1, config.front.listen.to_string());
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
    Ok(Led {
        members: Arc::new(RegistryMembers::new(registry, group.clone(), config.tp)),
        claim: Some(claim),
    })
}

/// Forms the first group, saying whom it waits for.
async fn first_group(
    members: &dyn Members,
    limits: &Limits,
    lead: &mut Lead,
    limit: Duration,
) -> anyhow::Result<Formed> {
    let (started, mut last) = (Instant::now(), String::new());
    loop {
        let error = match form(members, limits, lead).await {
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
