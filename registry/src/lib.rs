//! Where the ranks of worker groups are found.
//!
//! | key below `{root}/groups/{group}` | value, as JSON | written by | lives |
//! |---|---|---|---|
//! | `/ranks/{rank}` | [`RankRecord`] | the rank, if nobody has it | as long as the lease |
//! | `/epoch` | [`GroupRecord`] | the coordinator, if its epoch is later | for ever |
//!
//! A registry says where ranks are, not whether they live: the coordinator asks it only while it
//! forms a group, and learns of dead and hung ranks from their beats. So a registry that is away
//! harms no running group. A rank that loses its lease meanwhile claims its key again, under the
//! same session, as soon as the registry is back; one whose key another process has claimed by then
//! is told ([`Claim::lost`]), and leaves.
#![forbid(unsafe_code)]

pub mod conformance;
#[cfg(feature = "etcd")]
mod etcd;
mod follow;
mod memory;
mod record;

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

#[cfg(feature = "etcd")]
pub use self::etcd::{EtcdOptions, EtcdRegistry, EtcdUser};
pub use self::follow::{RankEvent, RankWatch};
pub use self::memory::MemoryRegistry;
pub use self::record::{GroupRecord, RankRecord};

/// Finds ranks, and lets them be found.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Claims a rank of a group for as long as the [`Claim`] lives. When a former holder's lease
    /// has not run out yet, waits for that, within `limit`.
    ///
    /// # Errors
    /// [`RegistryError::RankTaken`] by another process that is there; others when the registry
    /// cannot be used.
    async fn claim(
        &self,
        group: &str,
        record: RankRecord,
        limit: Duration,
    ) -> Result<Claim, RegistryError>;

    /// The ranks that are claimed, in order.
    ///
    /// # Errors
    /// When the registry cannot be used.
    async fn ranks(&self, group: &str) -> Result<Vec<RankRecord>, RegistryError>;

    /// Follows the ranks of a group. A registry that is away only delays what is told.
    ///
    /// # Errors
    /// [`RegistryError::BadGroup`].
    async fn watch(&self, group: &str) -> Result<RankWatch, RegistryError>;

    /// Says that a group has formed; once more is as good as once.
    ///
    /// # Errors
    /// [`RegistryError::StaleEpoch`] when another coordinator formed it as late or later; others
    /// when the registry cannot be used.
    async fn announce(&self, group: &str, record: GroupRecord) -> Result<(), RegistryError>;

    /// The last incarnation of a group that was announced.
    ///
    /// # Errors
    /// When the registry cannot be used.
    async fn group(&self, group: &str) -> Result<Option<GroupRecord>, RegistryError>;
}

/// Keeps a rank claimed. Dropping it gives the rank back in the background; [`Claim::release`]
/// waits for that.
#[derive(Debug)]
pub struct Claim {
    keeper: Option<JoinHandle<()>>,
    end: Option<oneshot::Sender<()>>,
    loss: watch::Receiver<Option<RegistryError>>,
}

impl Claim {
    fn new(
        keeper: JoinHandle<()>,
        end: oneshot::Sender<()>,
        loss: watch::Receiver<Option<RegistryError>>,
    ) -> Self {
        Self {
            keeper: Some(keeper),
            end: Some(end),
            loss,
        }
    }

    /// Waits until another process has the rank, and says who: its lease ran out while the registry
    /// was away, and that one came first. Who hears this must stop serving as the rank. A registry
    /// that is away, and a claim that is made again, are no loss.
    pub fn lost(&self) -> impl Future<Output = RegistryError> + Send + 'static {
        let mut loss = self.loss.clone();
        async move {
            let found = loss
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|found| found.clone());
            match found {
                Some(error) => error,
                // The claim was given back.
                None => std::future::pending().await,
            }
        }
    }

    /// Gives the rank back.
    pub async fn release(mut self) {
        self.end.take();
        if let Some(keeper) = self.keeper.take() {
            // A keeper that panicked keeps nothing.
            let _ = keeper.await;
        }
    }
}

/// Why a registry could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No answer in time.
    #[error("the registry at {endpoints} does not answer: {why}; is etcd running there?")]
    Unreachable {
        /// Where it was looked for.
        endpoints: String,
        /// What the transport said.
        why: String,
    },
    /// It refuses who asks.
    #[error("the registry refuses this user: {0}; check name, password and role")]
    Denied(String),
    /// Another process holds the rank.
    #[error(
        "rank {rank} of group {group} is held by the process at {address}: stop it, or start this \
         one as another rank"
    )]
    RankTaken {
        /// The group.
        group: String,
        /// The rank.
        rank: u32,
        /// Where its holder listens.
        address: String,
    },
    /// Another incarnation of the group is later.
    #[error(
        "group {group} has formed in epoch {found} already, this is epoch {epoch}: does another \
         coordinator lead it?"
    )]
    StaleEpoch {
        /// The group.
        group: String,
        /// What was to be announced.
        epoch: u64,
        /// What stands there.
        found: u64,
    },
    /// A name that cannot be part of a key.
    #[error("`{0}` is no name of a group: use letters, digits, `-`, `_` and `.`")]
    BadGroup(String),
    /// Something is stored that no version of this program wrote.
    #[error("the registry holds something else under {key}: {why}")]
    Corrupt {
        /// The key.
        key: String,
        /// What is wrong with its value.
        why: String,
    },
}

/// Time after which the rank of a process that died without a word is free again.
pub const LEASE: Duration = Duration::from_secs(10);
/// Longest wait for one answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(3);

fn check_group(group: &str) -> Result<(), RegistryError> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=128).contains(&group.len()) && group.chars().all(valid) {
        return Ok(());
    }
    Err(RegistryError::BadGroup(group.to_owned()))
}
