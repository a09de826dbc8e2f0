//! Ranks that are found in a registry.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use palimpsest_proto::count::can_follow;
use palimpsest_registry::{
    ANSWER_LIMIT, GroupRecord, RankEvent, RankRecord, Registry, RegistryError,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{Members, MembersError};

/// The ranks of one group of a registry, as it told last: while it is away, a group of ranks that
/// it told of can form anew.
pub struct RegistryMembers {
    registry: Arc<dyn Registry>,
    group: String,
    world_size: u32,
    known: watch::Receiver<Known>,
    last_epoch: Arc<AtomicU64>,
    follower: JoinHandle<()>,
    /// Tells the registry of the last group.
    announcer: Mutex<Option<JoinHandle<()>>>,
}

/// Time between two attempts to tell a registry that is away.
const PAUSE: Duration = Duration::from_secs(1);

/// What the registry has told.
#[derive(Default)]
struct Known {
    /// By rank; `None` before it has told anything.
    ranks: Option<BTreeMap<u32, RankRecord>>,
}

impl Drop for RegistryMembers {
    fn drop(&mut self) {
        self.follower.abort();
        self.announcer
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .inspect(JoinHandle::abort);
    }
}

impl RegistryMembers {
    /// A group of `world_size` ranks, which is followed from now on. Needs a tokio runtime.
    pub fn new(registry: Arc<dyn Registry>, group: String, world_size: u32) -> Self {
        let (told, known) = watch::channel(Known::default());
        let last_epoch = Arc::default();
        let follower = tokio::spawn(follow(
            registry.clone(),
            group.clone(),
            told,
            Arc::clone(&last_epoch),
        ));
        Self {
            registry,
            group,
            world_size,
            known,
            last_epoch,
            follower,
            announcer: Mutex::default(),
        }
    }

    /// The ranks that are known of; asks where nothing was told yet.
    async fn ranks(&self) -> Result<Vec<RankRecord>, RegistryError> {
        let mut known = self.known.clone();
        if let Ok(Ok(known)) =
            timeout(ANSWER_LIMIT, known.wait_for(|known| known.ranks.is_some())).await
        {
            return Ok(known
                .ranks
                .iter()
                .flat_map(BTreeMap::values)
                .cloned()
                .collect());
        }
        self.registry.ranks(&self.group).await
    }

    /// Asks once more for an epoch that cannot be: an operator may have deleted it since.
    async fn look_again(&self) {
        if !can_follow(self.last_epoch(), 0)
            && let Ok(Ok(formed)) = timeout(ANSWER_LIMIT, self.registry.group(&self.group)).await
        {
            let epoch = formed.map_or(0, |formed| formed.epoch);
            self.last_epoch.store(epoch, Ordering::SeqCst);
        }
    }
}

/// Takes in what the registry tells of a group, for ever.
async fn follow(
    registry: Arc<dyn Registry>,
    group: String,
    told: watch::Sender<Known>,
    last_epoch: Arc<AtomicU64>,
) {
    // A name that is refused is refused again, and said, when the ranks are asked for.
    let Ok(mut events) = registry.watch(&group).await else {
        return;
    };
    while let Some(event) = events.next().await {
        // Others may have led the group before now, or within the gap.
        let anew = matches!(event, RankEvent::All(_));
        let formed = if anew {
            registry.group(&group).await.ok().flatten()
        } else {
            None
        };
        last_epoch.fetch_max(formed.map_or(0, |formed| formed.epoch), Ordering::SeqCst);
        told.send_modify(|known| event.apply(known.ranks.get_or_insert_default()));
    }
}

#[async_trait]
impl Members for RegistryMembers {
    async fn addresses(&self) -> Result<Vec<Option<String>>, MembersError> {
        self.look_again().await;
        let ranks = self.ranks().await.map_err(|error| match error {
            RegistryError::Unreachable { .. } => MembersError::Unreachable(error.to_string()),
            other => MembersError::Refused(other.to_string()),
        })?;
        let mut addresses = vec![None; self.world_size as usize];
        for found in ranks {
            let place = addresses
                .get_mut(found.rank as usize)
                .filter(|_| found.world_size == self.world_size);
            let Some(place) = place else {
                return Err(MembersError::Refused(format!(
                    "the process at {} is rank {} of {}, this group has {}: start all with the \
                     same --tp",
                    found.address, found.rank, found.world_size, self.world_size
                )));
            };
            *place = Some(found.address);
        }
        Ok(addresses)
    }

    fn last_epoch(&self) -> u64 {
        self.last_epoch.load(Ordering::SeqCst)
    }

    fn formed(&self, record: GroupRecord) {
        let (registry, group) = (self.registry.clone(), self.group.clone());
        let announcer = tokio::spawn(async move {
            while let Err(error) = registry.announce(&group, record.clone()).await {
                if !matches!(error, RegistryError::Unreachable { .. }) {
                    tracing::warn!(%error, "the group is not announced");
                    return;
                }
                sleep(PAUSE).await;
            }
        });
        // Of a group that is gone nobody needs to hear.
        let mut last = self
            .announcer
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last.replace(announcer).inspect(JoinHandle::abort);
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_registry::{Claim, MemoryRegistry};

    use super::*;

    async fn claim(registry: &MemoryRegistry, rank: u32, of: u32) -> Claim {
        let record = RankRecord::new(rank, of, format!("host-{rank}:1"));
        registry
            .claim("g", record, Duration::ZERO)
            .await
            .expect("a free rank")
    }

    /// What it says once it has heard of the last change.
    async fn settled(
        members: &RegistryMembers,
        wanted: impl Fn(&Result<Vec<Option<String>>, MembersError>) -> bool,
    ) {
        let settle = async {
            while !wanted(&members.addresses().await) {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), settle)
            .await
            .expect("the change is heard of");
    }

    #[tokio::test]
    async fn ranks_stand_in_order_and_odd_ones_are_named() {
        let registry = MemoryRegistry::default();
        let members = RegistryMembers::new(Arc::new(registry.clone()), "g".into(), 3);
        let (_two, zero) = (claim(&registry, 2, 3).await, claim(&registry, 0, 3).await);
        let both = vec![Some("host-0:1".into()), None, Some("host-2:1".into())];
        settled(&members, |found| *found == Ok(both.clone())).await;
        zero.release().await;
        settled(&members, |found| {
            *found == Ok(vec![None, None, Some("host-2:1".into())])
        })
        .await;
        let _odd = claim(&registry, 1, 2).await;
        let said = "host-1:1 is rank 1 of 2, this group has 3";
        settled(&members, |found| {
            found
                .as_ref()
                .is_err_and(|error| error.to_string().contains(said))
        })
        .await;
    }

    #[tokio::test]
    async fn epochs_go_on_where_another_coordinator_left_off() {
        let registry = MemoryRegistry::default();
        let formed = |epoch| GroupRecord {
            epoch,
            world_size: 1,
            model: "m".into(),
            digest: "00".into(),
            policies: Vec::new(),
        };
        registry.announce("g", formed(7)).await.expect("the first");
        let members = RegistryMembers::new(Arc::new(registry.clone()), "g".into(), 1);
        assert_eq!(members.addresses().await, Ok(vec![None]));
        assert_eq!(members.last_epoch(), 7);
        members.formed(formed(8));
        let announced = async {
            while registry.group("g").await != Ok(Some(formed(8))) {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), announced)
            .await
            .expect("it is announced");
    }
}
