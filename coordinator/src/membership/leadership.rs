//! Leading a group, from the claim to its end.
//!
//! ```text
//! Candidate::claim ─▶ Candidate ─first_group─▶ Formed ─lead─▶ Leader ─▶ deposed, or resign
//!  (stands by while                                             │
//!   another one leads)                                          └─ keep: replaces lost groups
//! ```

use std::sync::Arc;
use std::time::Duration;

use palimpsest_registry::{Claim, RankRecord, Registry, RegistryError};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep};

use super::{FormError, Formed, Kept, Lead, Members, RegistryMembers, StaticMembers, form, keep};
use crate::config::Config;
use crate::{Coordinator, model};

/// How long the lead that was claimed by a process that died stays claimed, and some more.
const CLAIM_LIMIT: Duration = Duration::from_secs(30);
/// Time between two attempts of a standby to claim the lead while the registry is away.
const STANDBY_PAUSE: Duration = Duration::from_secs(1);
/// Time between two attempts to form the first group.
const FORM_PAUSE: Duration = Duration::from_millis(250);

/// The group that a coordinator wants to lead.
#[derive(Debug, Clone)]
pub struct Candidacy {
    /// Name of the group in the registry.
    pub group: String,
    /// Its ranks.
    pub world_size: u32,
    /// Where this coordinator listens: those that stand by say so.
    pub address: String,
}

/// A coordinator that may lead a group and has not formed it yet.
pub struct Candidate {
    members: Arc<dyn Members>,
    claim: Option<Claim>,
    lead: Lead,
}

/// A coordinator with its group. Dropping it leaves the group without a keeper.
#[derive(Debug)]
pub struct Leader {
    coordinator: Coordinator,
    claim: Option<Claim>,
    keeper: JoinHandle<Result<(), FormError>>,
}

/// Why a coordinator does not come to lead.
#[derive(Debug, thiserror::Error)]
pub enum LeadError {
    /// The registry cannot be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The claim was lost before a group had formed.
    #[error("another coordinator leads the group")]
    Lost(#[source] RegistryError),
    /// Ranks that do not fit each other will not fit later either.
    #[error(transparent)]
    Disagree(FormError),
    /// The ranks did not come in time.
    #[error("no group within {} s", limit.as_secs())]
    TooLate {
        /// How long it was waited for.
        limit: Duration,
        /// What was missing last.
        #[source]
        missing: FormError,
    },
    /// The group's model cannot be served.
    #[error(transparent)]
    Model(#[from] model::Error),
}

/// Why a coordinator leads no longer.
#[derive(Debug, thiserror::Error)]
pub enum Deposed {
    /// Another process holds the claim.
    #[error(transparent)]
    ClaimLost(RegistryError),
    /// The ranks follow another coordinator.
    #[error(transparent)]
    Superseded(FormError),
    /// The task that replaces lost groups has ended.
    #[error(transparent)]
    KeeperLost(JoinError),
    /// The task that owns all requests has ended, though nobody asked it to.
    #[error("the driver has ended: standard error says why")]
    DriverLost,
}

impl Candidate {
    /// A candidate for the ranks at `addresses` (`host:port`), in rank order. There is no registry
    /// and nothing to claim. Needs a tokio runtime.
    pub fn for_ranks(addresses: Vec<String>) -> Self {
        Self {
            members: Arc::new(StaticMembers::new(addresses)),
            claim: None,
            lead: Lead::new(),
        }
    }

    /// Claims the lead over a group of a registry. Stands by while another coordinator has it, and
    /// through an outage of the registry; `tell` is told whenever the reason to wait is another.
    ///
    /// # Errors
    /// [`LeadError::Registry`] when the registry cannot be used, or cannot be reached at first.
    pub async fn claim(
        registry: Arc<dyn Registry>,
        candidacy: Candidacy,
        tell: impl FnMut(&str),
    ) -> Result<Self, LeadError> {
        let claim = stand_by(&*registry, &candidacy, tell).await?;
        let Candidacy {
            group, world_size, ..
        } = candidacy;
        Ok(Self {
            members: Arc::new(RegistryMembers::new(registry, group, world_size)),
            claim: Some(claim),
            lead: Lead::new(),
        })
    }

    /// Forms the first group, which may take as long as `limit`. `tell` is told what is missing
    /// whenever that is something else.
    ///
    /// # Errors
    /// [`LeadError::Lost`], [`LeadError::Disagree`], [`LeadError::TooLate`].
    pub async fn first_group(
        &mut self,
        config: &Config,
        limit: Duration,
        tell: impl FnMut(&str),
    ) -> Result<Formed, LeadError> {
        let Self {
            members,
            claim,
            lead,
        } = self;
        tokio::select! {
            formed = form_first(&**members, config, lead, limit, tell) => formed,
            error = lost(claim.as_ref()) => Err(LeadError::Lost(error)),
        }
    }

    /// Leads the group: starts the coordinator over it and whatever replaces it when it is lost.
    ///
    /// # Errors
    /// [`LeadError::Model`].
    pub fn lead(self, group: Formed, config: Config) -> Result<Leader, LeadError> {
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
        let coordinator = Coordinator::build(config.clone(), Box::new(executor), ranks)?;
        let kept = Kept {
            members: self.members,
            lead: self.lead,
            watchers,
        };
        Ok(Leader {
            keeper: tokio::spawn(keep(coordinator.clone(), config, kept)),
            coordinator,
            claim: self.claim,
        })
    }
}

impl Leader {
    /// What serves.
    pub fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// Waits until this coordinator leads no longer, and takes its group away: what runs here ends
    /// with a reason, not with a connection that breaks. Says what has ended the lead. To be called
    /// once, and no longer than until a drain begins.
    pub async fn deposed(&mut self) -> Deposed {
        let deposed = tokio::select! {
            error = lost(self.claim.as_ref()) => Deposed::ClaimLost(error),
            kept = &mut self.keeper => match kept {
                Ok(Ok(())) => Deposed::DriverLost,
                Ok(Err(superseded)) => Deposed::Superseded(superseded),
                Err(error) => Deposed::KeeperLost(error),
            },
        };
        let driver = &self.coordinator.service().driver;
        driver.lose_for_good(deposed.to_string()).await;
        deposed
    }

    /// Replaces no group any more and gives the lead back: who stands by need not wait until the
    /// lease runs out.
    pub async fn resign(self) {
        self.keeper.abort();
        if let Some(claim) = self.claim {
            claim.release().await;
        }
    }
}

/// Claims the lead, however long another coordinator has it.
async fn stand_by(
    registry: &dyn Registry,
    candidacy: &Candidacy,
    mut tell: impl FnMut(&str),
) -> Result<Claim, RegistryError> {
    let group = &candidacy.group;
    let place = format!("{group}.lead");
    let record = RankRecord::new(0, 1, candidacy.address.clone());
    let mut told = None;
    loop {
        // The first attempt waits for nobody: whoever stands by says so at once.
        let limit = if told.is_some() {
            CLAIM_LIMIT
        } else {
            Duration::ZERO
        };
        let reason = match registry.claim(&place, record.clone(), limit).await {
            Ok(claim) => return Ok(claim),
            Err(RegistryError::RankTaken { address, .. }) => {
                format!("standing by: the coordinator at {address} leads group {group}")
            }
            // Who stands by outlasts an outage as who leads does.
            Err(error @ RegistryError::Unreachable { .. }) if told.is_some() => {
                sleep(STANDBY_PAUSE).await;
                format!("standing by: {error}")
            }
            Err(error) => return Err(error),
        };
        if told.as_ref() != Some(&reason) {
            tell(&reason);
        }
        told = Some(reason);
    }
}

/// Forms a group, trying again until it is too late.
async fn form_first(
    members: &dyn Members,
    config: &Config,
    lead: &mut Lead,
    limit: Duration,
    mut tell: impl FnMut(&str),
) -> Result<Formed, LeadError> {
    let started = Instant::now();
    let mut told = String::new();
    loop {
        let missing = match form(members, config, lead).await {
            Ok(group) => return Ok(group),
            Err(error @ FormError::Disagree(_)) => return Err(LeadError::Disagree(error)),
            Err(error) => error,
        };
        if started.elapsed() >= limit {
            return Err(LeadError::TooLate { limit, missing });
        }
        let reason = format!("waiting: {missing}");
        if reason != told {
            tell(&reason);
            told = reason;
        }
        sleep(FORM_PAUSE).await;
    }
}

/// Waits until another process has what was claimed; for ever where nothing was.
async fn lost(claim: Option<&Claim>) -> RegistryError {
    match claim {
        Some(claim) => claim.lost().await,
        None => std::future::pending().await,
    }
}
