//! A registry within one process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{Notify, oneshot, watch};

use crate::{Claim, RankRecord, Registry, RegistryError, check_group};

/// A registry in memory; clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryRegistry(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    ranks: Mutex<BTreeMap<(String, u32), RankRecord>>,
    freed: Notify,
}

impl Shared {
    fn ranks(&self) -> MutexGuard<'_, BTreeMap<(String, u32), RankRecord>> {
        self.ranks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the rank, or says who has it.
    fn take(&self, key: &(String, u32), record: &RankRecord) -> Result<(), RankRecord> {
        match self.ranks().entry(key.clone()) {
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(record.clone());
                Ok(())
            }
            std::collections::btree_map::Entry::Occupied(held) => Err(held.get().clone()),
        }
    }
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn claim(&self, group: &str, record: RankRecord, limit: Duration) -> Result<Claim, RegistryError> {
        check_group(group)?;
        let key = (group.to_owned(), record.rank);
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let freed = self.0.freed.notified();
            let Err(holder) = self.0.take(&key, &record) else { break };
            if tokio::time::timeout_at(deadline, freed).await.is_err() {
                let (group, rank) = key;
                return Err(RegistryError::RankTaken { group, rank, address: holder.address });
            }
        }
        let (end, ended) = oneshot::channel::<()>();
        let shared = self.0.clone();
        let keeper = tokio::spawn(async move {
            // Either way the claim is over.
            let _ = ended.await;
            shared.ranks().remove(&key);
            shared.freed.notify_waiters();
        });
        // Nothing here forgets a claim.
        let (_, never) = watch::channel(None);
        Ok(Claim::new(keeper, end, never))
    }

    async fn ranks(&self, group: &str) -> Result<Vec<RankRecord>, RegistryError> {
        check_group(group)?;
        Ok(self.0.ranks().iter().filter(|(key, _)| key.0 == group).map(|(_, record)| record.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn conforms() {
        conformance::run(&MemoryRegistry::default()).await;
    }
}
