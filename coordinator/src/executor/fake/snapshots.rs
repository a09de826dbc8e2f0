//! Snapshots of a fake rank: the tokens that each is the state of. Every order is checked against
//! what the rank has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use palimpsest_proto::internal::v1::snapshot_report::Event;
use palimpsest_proto::internal::v1::{SnapshotOrders, SnapshotReport};

/// One snapshot.
#[derive(Debug, Clone)]
pub(super) struct FakeSnapshot {
    /// What it is the state of.
    pub(super) tokens: Vec<u32>,
    /// What it takes.
    pub(super) bytes: u64,
}

/// What a fake rank has kept.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    memory: BTreeMap<Bytes, FakeSnapshot>,
    store: BTreeMap<Bytes, FakeSnapshot>,
    reports: Vec<SnapshotReport>,
}

/// Snapshots that outlive the epochs of their rank.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedSnapshots(Arc<Mutex<Snapshots>>);

impl SharedSnapshots {
    pub(super) fn lock(&self) -> MutexGuard<'_, Snapshots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshots {
    /// Does what a plan says before its step.
    ///
    /// # Errors
    /// What of the orders nobody may give.
    pub(super) fn obey(&mut self, orders: &SnapshotOrders) -> Result<(), String> {
        for name in &orders.erase {
            self.store.remove(name);
            self.report(name.clone(), Event::Erased, 0);
        }
        for name in &orders.store {
            let found = self.memory.get(name).ok_or("store of what is not kept")?;
            self.store.insert(name.clone(), found.clone());
            self.report(name.clone(), Event::Stored, 0);
        }
        for name in &orders.drop {
            self.memory.remove(name);
        }
        for name in &orders.fetch {
            let found = self.store.get(name).ok_or("fetch of what is not stored")?;
            self.memory.insert(name.clone(), found.clone());
            self.report(name.clone(), Event::Fetched, 0);
        }
        if orders.list {
            let lists = [
                (&self.memory, Event::InMemory),
                (&self.store, Event::InStore),
            ];
            let all: Vec<_> = lists
                .into_iter()
                .flat_map(|(tier, event)| tier.iter().map(move |(name, one)| (name, event, one)))
                .map(|(name, event, one)| (name.clone(), event, one.bytes))
                .collect();
            for (name, event, bytes) in all {
                self.report(name, event, bytes);
            }
        }
        Ok(())
    }

    fn report(&mut self, name: Bytes, event: Event, bytes: u64) {
        self.reports.push(SnapshotReport {
            name,
            event: event.into(),
            bytes,
            error: String::new(),
            ..Default::default()
        });
    }

    /// What is to be told with the next output.
    pub(super) fn take_reports(&mut self) -> Vec<SnapshotReport> {
        std::mem::take(&mut self.reports)
    }

    /// Tokens of a snapshot in memory.
    ///
    /// # Errors
    /// If there is none of that name.
    pub(super) fn begin_with(&self, name: &Bytes) -> Result<Vec<u32>, String> {
        let found = self.memory.get(name).ok_or("fork of what is not kept")?;
        Ok(found.tokens.clone())
    }

    /// Keeps a state. `room`: bytes for all of them.
    ///
    /// # Errors
    /// If that is more than there is room for.
    pub(super) fn keep(
        &mut self,
        name: &Bytes,
        snapshot: FakeSnapshot,
        room: u64,
    ) -> Result<(), String> {
        self.memory.insert(name.clone(), snapshot);
        let bytes: u64 = self.memory.values().map(|one| one.bytes).sum();
        match bytes > room {
            true => Err(format!("{bytes} bytes of snapshots, over {room}")),
            false => Ok(()),
        }
    }
}
