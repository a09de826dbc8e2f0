//! `palimpsest coordinator`: serves a model whose ranks are processes.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use palimpsest_coordinator::Config as Limits;
use palimpsest_coordinator::membership::{Candidacy, Candidate};
use palimpsest_tls::{ClientTls, ClusterFiles, Connector, Role};

use crate::front::{Front, FrontConfig};
use crate::place::{self, Patience};
use crate::registry::{self, EtcdConfig};
use crate::{signals, traces};

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
    /// Longest time of one step on any rank.
    pub step_limit: Duration,
    /// Time that requests of a lost group wait for the next one.
    pub regroup_limit: Duration,
    /// Time that a request waits which comes while a lost group is being replaced.
    pub group_wait_limit: Duration,
    /// What faces clients.
    pub front: FrontConfig,
    /// What is shown to ranks.
    pub cluster: Option<ClusterFiles>,
    /// Whether links with ranks may be plain text beyond this machine.
    pub insecure: bool,
}

/// Waits for the ranks, serves until a signal, then drains.
pub async fn run(config: Config) -> anyhow::Result<()> {
    check_exposure(&config)?;
    let mut front = Front::open(config.front.clone()).await?;
    let _traces = traces::start()?;
    let limits = limits(&config, &front)?;
    let forming = async {
        let mut candidate = candidate(&config).await?;
        let group = candidate
            .first_group(&limits, config.form_limit, say)
            .await?;
        // A standby leaves the places of sessions and responses to the leader.
        let patience = Patience {
            limit: place::HANDOVER,
            say,
        };
        let limits = place::claim(limits, patience).await?;
        anyhow::Ok(candidate.lead(group, limits)?)
    };
    let mut leader = tokio::select! {
        formed = front.wait_for(forming) => formed?,
        () = signals::shutdown() => return Ok(()),
    };
    let coordinator = leader.coordinator().clone();
    coordinator.service().sessions.open().await?;
    let model = &coordinator.service().model;
    if !coordinator.ready().await {
        eprintln!("the first step failed; forming the group anew");
    }
    let shutdown = signals::shutdown();
    eprintln!(
        "serving {} at {} ({} ranks)",
        model.name(),
        front.describe(),
        model.world_size
    );

    let end = async {
        tokio::select! {
            () = shutdown => Ok(()),
            deposed = leader.deposed() => Err(deposed).context("this coordinator leads no longer"),
        }
    };
    let served = front.serve_until(&coordinator, end).await;
    coordinator.service().sessions.close().await;
    coordinator.service().responses.close().await;
    leader.resign().await;
    served?;
    eprintln!("drained");
    Ok(())
}

/// Refuses to send prompts in plain text to other machines unless the operator says so. Where
/// ranks are found in a registry, they are taken to be where the registry is.
fn check_exposure(config: &Config) -> anyhow::Result<()> {
    if config.cluster.is_some() || config.insecure {
        return Ok(());
    }
    let registry = config.registry.iter();
    let elsewhere = registry
        .flat_map(|etcd| &etcd.endpoints)
        .chain(&config.ranks)
        .find(|address| !is_loopback(address));
    if let Some(address) = elsewhere {
        bail!(
            "{address} is on another machine, and prompts would travel to ranks there in plain \
             text: give --cluster-cert, --cluster-key and --cluster-ca, or --insecure on a network \
             that nobody else reaches"
        );
    }
    Ok(())
}

/// Whether `host:port`, with or without a scheme, is this machine by its name or address.
fn is_loopback(address: &str) -> bool {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn limits(config: &Config, front: &Front) -> anyhow::Result<Limits> {
    let tls = config
        .cluster
        .clone()
        .map(|files| ClientTls::cluster(files, Role::Coordinator, Role::Worker));
    Ok(Limits {
        step_limit: config.step_limit,
        regroup_limit: config.regroup_limit,
        group_wait_limit: config.group_wait_limit,
        ranks: Connector::new(tls.transpose()?),
        ..front.config()
    })
}

/// This coordinator as one that may lead its group. Another one of the same group stands by until
/// the first is gone.
async fn candidate(config: &Config) -> anyhow::Result<Candidate> {
    let Some(registry) = &config.registry else {
        if config.ranks.is_empty() {
            bail!(
                "say where the ranks are: --etcd http://host:2379 --group NAME --tp N, or --ranks \
                 host:port,…"
            );
        }
        return Ok(Candidate::for_ranks(config.ranks.clone()));
    };
    let registry = registry::open(registry.clone()).await?;
    let candidacy = Candidacy {
        group: config.group.clone(),
        world_size: config.tp,
        address: config.front.listen.to_string(),
    };
    Ok(Candidate::claim(registry, candidacy, say).await?)
}

/// Tells the operator what this process waits for.
fn say(reason: &str) {
    eprintln!("{reason}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine_are_told_from_others() {
        for own in [
            "127.0.0.1:50061",
            "http://127.0.0.1:2379",
            "https://localhost:2379",
            "[::1]:50061",
            "127.8.8.8:1",
        ] {
            assert!(is_loopback(own), "{own}");
        }
        for other in [
            "10.0.0.1:50061",
            "http://etcd:2379",
            "localhost.example:1",
            "127.0.0.1.example:1",
            "[2001:db8::1]:50061",
            "",
        ] {
            assert!(!is_loopback(other), "{other}");
        }
    }
}
