//! Making a group of ranks that are there.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{join_all, try_join_all};
use palimpsest_proto::internal::v1::worker_client::WorkerClient;
use palimpsest_proto::internal::v1::{GetRankRequest, JoinRequest, RankInfo, WatchRequest};
use palimpsest_registry::GroupRecord;
use palimpsest_tls::{Connector, explain};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

use super::lead::NoLead;
use super::succession::next_epoch;
use super::{Implausible, Lead, Members, MembersError};
use crate::config::Config;
use crate::executor::{ExecutorError, Failure, GrpcExecutor};
use crate::ids::Epoch;
use crate::model::{self, ServedModel};

/// Time for a rank to answer what needs no work.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// A tokenizer can be large.
const MAX_INFO_BYTES: usize = 256 << 20;

/// A group whose ranks have met.
#[derive(Debug)]
pub struct Formed {
    /// The epoch that they are in.
    pub epoch: Epoch,
    /// Carries out plans on them.
    pub executor: GrpcExecutor,
    /// What they report, in rank order.
    pub ranks: Vec<RankInfo>,
    /// Listens to their beats.
    pub watchers: Watchers,
}

/// Listens to the beats of a group's ranks until it is dropped.
#[derive(Debug)]
pub struct Watchers {
    /// Says when one of them is found dead or hung.
    pub failure: Failure,
    tasks: JoinSet<()>,
}

impl Watchers {
    /// Ranks that are listened to.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

/// Why a group could not be formed.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// The members are not known.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// Not all ranks are there.
    #[error("the group is not complete: {0}")]
    Missing(String),
    /// The ranks do not fit each other.
    #[error("the ranks do not make a group: {0}")]
    Disagree(#[from] model::Error),
    /// Another coordinator has taken the lead: this one must leave the ranks alone.
    #[error("the ranks follow another coordinator, of term {term}")]
    Superseded {
        /// Its term.
        term: u64,
    },
    /// A rank or the registry tells a number that nobody can have counted to.
    #[error(transparent)]
    Implausible(#[from] Implausible),
    /// The ranks could not meet.
    #[error("the ranks could not join epoch {epoch}: {what}")]
    Join {
        /// The epoch.
        epoch: Epoch,
        /// Who failed, and why.
        what: String,
    },
    /// A rank was lost again at once.
    #[error(transparent)]
    Lost(#[from] ExecutorError),
}

impl From<NoLead> for FormError {
    fn from(why: NoLead) -> Self {
        match why {
            NoLead::Superseded(term) => Self::Superseded { term },
            NoLead::Implausible(why) => Self::Implausible(why),
        }
    }
}

/// Forms a group of the ranks that `members` knows, in an epoch later than any of them was in, if
/// they follow `lead`.
///
/// # Errors
/// See [`FormError`]. Trying again is safe.
pub async fn form(
    members: &dyn Members,
    config: &Config,
    lead: &mut Lead,
) -> Result<Formed, FormError> {
    let addresses = members.addresses().await?;
    let found = join_all(
        addresses
            .iter()
            .map(|address| greet(address.as_deref(), &config.ranks)),
    )
    .await;
    let mut missing = Vec::new();
    let mut ranks = Vec::with_capacity(found.len());
    let mut channels = Vec::with_capacity(found.len());
    for (rank, (found, address)) in found.into_iter().zip(&addresses).enumerate() {
        match found {
            Ok((channel, info)) => {
                channels.push(channel);
                ranks.push(info);
            }
            Err(why) => missing.push(format!(
                "rank {rank} ({}): {why}",
                address.as_deref().unwrap_or("unclaimed")
            )),
        }
    }
    if !missing.is_empty() {
        return Err(FormError::Missing(missing.join("; ")));
    }
    // Found out before the ranks give anything up for this group.
    ServedModel::new(ranks.clone())?;
    // Ranks that were all started anew know of no epoch, and a former coordinator of the group may
    // still speak of one.
    let epoch = next_epoch(lead.last_epoch(), &ranks, members.last_epoch())?;
    let leading = lead.over(&ranks)?;
    let request = JoinRequest {
        epoch: epoch.0,
        world_size: channels.len() as u32,
        rendezvous: addresses.into_iter().flatten().next().unwrap_or_default(),
        limit_millis: u64::try_from(config.join_limit.as_millis()).unwrap_or(u64::MAX),
        lead: Some(leading.clone()),
    };
    join(&channels, &request, config.join_limit).await?;
    lead.taken(&leading, epoch);
    let watchers = watch_all(&channels, epoch, config.beat_limit);
    let executor =
        GrpcExecutor::connect(channels, config.step_limit, watchers.failure.clone()).await?;
    members.formed(record(epoch, &ranks));
    Ok(Formed {
        epoch,
        executor,
        ranks,
        watchers,
    })
}

/// What others are told of a group.
fn record(epoch: Epoch, ranks: &[RankInfo]) -> GroupRecord {
    let model = ranks.first().and_then(|rank| rank.model.as_ref());
    let digest = ranks
        .first()
        .map(|rank| &rank.digest[..])
        .unwrap_or_default();
    GroupRecord {
        epoch: epoch.0,
        world_size: ranks.len() as u32,
        model: model.map(|model| model.name.clone()).unwrap_or_default(),
        digest: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        policies: model
            .map(|model| model.policies.clone())
            .unwrap_or_default(),
    }
}

/// Asks whoever listens at an address which rank it is.
async fn greet(
    address: Option<&str>,
    connector: &Connector,
) -> Result<(Channel, RankInfo), String> {
    let Some(address) = address else {
        return Err("no process has claimed it".into());
    };
    let ask = async {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| error.to_string())?;
        let endpoint = endpoint.tcp_nodelay(true).connect_timeout(ANSWER_LIMIT);
        let channel = endpoint
            .connect_with_connector(connector.clone())
            .await
            .map_err(|error| cause(&error))?;
        let mut client =
            WorkerClient::new(channel.clone()).max_decoding_message_size(MAX_INFO_BYTES);
        let info = client
            .get_rank(GetRankRequest {})
            .await
            .map_err(|status| said(&status))?;
        Ok((channel, info.into_inner()))
    };
    timeout(ANSWER_LIMIT, ask)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_LIMIT.as_secs())))
}

/// What a rank said, or what became of the connection to it.
fn said(status: &tonic::Status) -> String {
    explain(status).unwrap_or_else(|| status.message().to_owned())
}

/// The innermost cause, which says more than the transport's own words.
fn cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Tells all ranks to meet, at once: each waits for the others.
async fn join(
    channels: &[Channel],
    request: &JoinRequest,
    limit: Duration,
) -> Result<(), FormError> {
    let epoch = Epoch(request.epoch);
    let answers = channels.iter().enumerate().map(|(rank, channel)| {
        let (mut client, request) = (WorkerClient::new(channel.clone()), request.clone());
        async move {
            // The rank's own deadline comes first and says more.
            let what = match timeout(limit + 2 * ANSWER_LIMIT, client.join(request)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(status)) => format!("rank {rank}: {}", status.message()),
                Err(_) => format!("rank {rank}: no answer in time"),
            };
            Err(FormError::Join { epoch, what })
        }
    });
    // The first failure is the one to name: the others wait for that rank, and stop waiting when
    // their calls are dropped.
    try_join_all(answers).await.map(|_| ())
}

/// Listens to the beats of all ranks of `epoch`. A rank that is silent for `limit` is gone, however
/// busy it was; so is one that was taken into a later epoch.
fn watch_all(channels: &[Channel], epoch: Epoch, limit: Duration) -> Watchers {
    let (found, failure) = watch::channel(None);
    let mut tasks = JoinSet::new();
    for (rank, channel) in channels.iter().enumerate() {
        let client = WorkerClient::new(channel.clone());
        tasks.spawn(tell(rank, watch_one(client, epoch, limit), found.clone()));
    }
    Watchers { failure, tasks }
}

/// Listens to the beats of one rank, and says why it is gone.
async fn watch_one(mut client: WorkerClient<Channel>, epoch: Epoch, limit: Duration) -> String {
    let silent = format!("no beat for {} s", limit.as_secs_f64());
    let mut beats = match timeout(limit, client.watch(WatchRequest {})).await {
        Ok(Ok(beats)) => beats.into_inner(),
        Ok(Err(status)) => return status.message().to_owned(),
        Err(_) => return silent,
    };
    loop {
        match timeout(limit, beats.next()).await {
            Ok(Some(Ok(beat))) if beat.epoch > epoch.0 => {
                return format!("it has joined epoch {}", beat.epoch);
            }
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(status))) => return status.message().to_owned(),
            Ok(None) => return "it shut down".into(),
            Err(_) => return silent,
        }
    }
}

/// Tells that a rank is gone when `watched` says so. A rank that nobody watches any more counts as
/// gone as well, or it could die unseen.
async fn tell(
    rank: usize,
    watched: impl Future<Output = String>,
    found: watch::Sender<Option<ExecutorError>>,
) {
    let told = AssertUnwindSafe(watched).catch_unwind().await;
    let message = told.unwrap_or_else(|_| "its beats are not listened to: that panicked".into());
    // The first one found is the one to name.
    found.send_if_modified(|found: &mut Option<ExecutorError>| {
        let is_first = found.is_none();
        found.get_or_insert(ExecutorError::RankGone { rank, message });
        is_first
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rank_whose_watcher_panics_counts_as_gone() {
        let (found, mut failure) = watch::channel(None);
        let panics = async { panic!("a fault of this test") };
        let lives = std::future::pending();
        tokio::spawn(tell(0, lives, found.clone()));
        tokio::spawn(tell(1, panics, found));
        let told = timeout(ANSWER_LIMIT, failure.wait_for(Option::is_some)).await;
        let told = told.expect("in time").expect("others are watched").clone();
        let Some(ExecutorError::RankGone { rank: 1, message }) = told else {
            panic!("{told:?}");
        };
        assert!(message.contains("panicked"), "{message}");
    }
}
