//! A registry within one process.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

use crate::follow::WAITING;
use crate::{
    Claim, GroupRecord, RankEvent, RankRecord, RankWatch, Registry, RegistryError, check_group,
};

/// A registry in memory; clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryRegistry(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    ranks: BTreeMap<(String, u32), RankRecord>,
    groups: BTreeMap<String, GroupRecord>,
    /// Changes of `ranks`, with their group.
    changes: broadcast::Sender<(String, RankEvent)>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            ranks: BTreeMap::new(),
            groups: BTreeMap::new(),
            changes: broadcast::channel(WAITING).0,
        }
    }
}

impl State {
    fn ranks_of(&self, group: &str) -> Vec<RankRecord> {
        self.ranks
            .iter()
            .filter(|(key, _)| key.0 == group)
            .map(|(_, record)| record.clone())
            .collect()
    }

    /// Takes the rank, or says who has it.
    fn take(&mut self, key: &(String, u32), record: &RankRecord) -> Result<(), RankRecord> {
        match self.ranks.entry(key.clone()) {
            Entry::Vacant(free) => free.insert(record.clone()),
            Entry::Occupied(held) => return Err(held.get().clone()),
        };
        // Nobody may listen.
        let _ = self
            .changes
            .send((key.0.clone(), RankEvent::Claimed(record.clone())));
        Ok(())
    }

    fn free(&mut self, key: &(String, u32)) {
        self.ranks.remove(key);
        let _ = self.changes.send((key.0.clone(), RankEvent::Freed(key.1)));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `events` of a group's ranks until nobody listens.
    async fn follow(&self, group: &str, events: &mpsc::Sender<RankEvent>) {
        while let Ok(room) = events.reserve().await {
            let mut changes = {
                let state = self.state();
                room.send(RankEvent::All(state.ranks_of(group)));
                state.changes.subscribe()
            };
            loop {
                let change = tokio::select! {
                    change = changes.recv() => change,
                    () = events.closed() => return,
                };
                match change {
                    Ok((of, event)) if of == group => {
                        if events.try_send(event).is_err() {
                            break;
                        }
                    }
                    Ok(_) => {}
                    // Too far behind: all is told anew.
                    Err(_) => break,
                }
            }
        }
    }
}

impl MemoryRegistry {
    /// Forgets what was announced of a group, as an operator would who deletes its key.
    pub fn forget(&self, group: &str) {
        self.0.state().groups.remove(group);
    }
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn claim(
        &self,
        group: &str,
        record: RankRecord,
        limit: Duration,
    ) -> Result<Claim, RegistryError> {
        check_group(group)?;
        let key = (group.to_owned(), record.rank);
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let freed = self.0.freed.notified();
            let Err(holder) = self.0.state().take(&key, &record) else {
                break;
            };
            if tokio::time::timeout_at(deadline, freed).await.is_err() {
                let (group, rank) = key;
                return Err(RegistryError::RankTaken {
                    group,
                    rank,
                    address: holder.address,
                });
            }
        }
        let (end, ended) = oneshot::channel::<()>();
        let shared = self.0.clone();
        let keeper = tokio::spawn(async move {
            // Either way the claim is over.
            let _ = ended.await;
            shared.state().free(&key);
            shared.freed.notify_waiters();
        });
        // Nothing here forgets a claim.
        let (_, never) = watch::channel(None);
        Ok(Claim::new(keeper, end, never))
    }

    async fn ranks(&self, group: &str) -> Result<Vec<RankRecord>, RegistryError> {
        check_group(group)?;
        Ok(self.0.state().ranks_of(group))
    }

    async fn watch(&self, group: &str) -> Result<RankWatch, RegistryError> {
        check_group(group)?;
        let (events, watch) = RankWatch::new();
        let (shared, group) = (self.0.clone(), group.to_owned());
        tokio::spawn(async move { shared.follow(&group, &events).await });
        Ok(watch)
    }

    async fn announce(&self, group: &str, record: GroupRecord) -> Result<(), RegistryError> {
        check_group(group)?;
        let mut state = self.0.state();
        match state.groups.get(group) {
            Some(found) if *found == record => {}
            Some(&GroupRecord { epoch: found, .. }) if found >= record.epoch => {
                return Err(RegistryError::StaleEpoch {
                    group: group.to_owned(),
                    epoch: record.epoch,
                    found,
                });
            }
            _ => drop(state.groups.insert(group.to_owned(), record)),
        }
        Ok(())
    }

    async fn group(&self, group: &str) -> Result<Option<GroupRecord>, RegistryError> {
        check_group(group)?;
        Ok(self.0.state().groups.get(group).cloned())
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
