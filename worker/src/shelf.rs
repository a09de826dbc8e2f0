//! Where a rank keeps snapshots: in host memory, and in a store that outlives the process.
//!
//! The device thread has the shelf carry out the orders of a plan before its step. What reads or
//! writes the store goes on in threads of its own (`background`), and the device thread never
//! waits for it, with one exception: what is in the store is asked for once in an epoch, before
//! there are sequences, and all ranks have to say it in the same step.

mod background;
mod files;
mod report;

use std::time::Duration;

use bytes::Bytes;
use palimpsest_engine::kept::Kept;
use palimpsest_proto::internal::v1::snapshot_report::Event;
use palimpsest_proto::internal::v1::{SnapshotOrders, SnapshotReport};
use palimpsest_store::Store;

use self::background::Background;
pub use self::files::RankFiles;
use self::report::report;

/// Time for the listing of a store in the first step of an epoch.
const LIST_LIMIT: Duration = Duration::from_secs(10);

/// Time that a plan without sequences leaves to the background.
const IDLE_WAIT: Duration = Duration::from_millis(20);

/// A rank's snapshots. The device thread has it carry out the orders of each plan before the step,
/// and takes its reports after it.
pub struct Shelf {
    kept: Kept,
    background: Option<Background>,
    reports: Vec<SnapshotReport>,
    /// What the background has been given and has not told the end of.
    under_way: usize,
}

impl Shelf {
    /// Keeps snapshots in host memory alone.
    pub fn in_memory(kept: Kept) -> Self {
        Self {
            kept,
            background: None,
            reports: Vec::new(),
            under_way: 0,
        }
    }

    /// Keeps snapshots in host memory, and writes to `store` what plans say.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn with_store(kept: Kept, store: Store, files: RankFiles) -> std::io::Result<Self> {
        let background = Background::start(kept.clone(), store, files)?;
        Ok(Self {
            background: Some(background),
            ..Self::in_memory(kept)
        })
    }

    /// Whether snapshots can be written to a store.
    pub fn has_store(&self) -> bool {
        self.background.is_some()
    }

    /// Carries out what a plan says of snapshots before its step. What takes time goes on in the
    /// background.
    pub fn obey(&mut self, orders: &SnapshotOrders) {
        // Before they are written anew.
        for name in &orders.erase {
            match self.in_background(|background| background.erase(name.clone())) {
                Ok(()) => self.under_way += 1,
                Err(why) => self.report(name, Event::Erased, 0, why),
            }
        }
        // Before they are dropped: whoever writes one holds it.
        orders.store.iter().for_each(|name| self.store(name));
        orders.drop.iter().for_each(|name| self.kept.remove(name));
        for name in &orders.fetch {
            match self.in_background(|background| background.fetch(name.clone())) {
                Ok(()) => self.under_way += 1,
                Err(why) => self.report(name, Event::Fetched, 0, why),
            }
        }
        if orders.list {
            self.list();
        }
    }

    /// Waits a moment for the background to end something, unless there is something to tell.
    pub fn wait(&mut self) {
        let waits = self.under_way > 0 && self.reports.is_empty();
        let next = |background: &Background| background.next_report(IDLE_WAIT);
        if let Some(ended) = self.background.as_ref().filter(|_| waits).and_then(next) {
            self.under_way -= 1;
            self.reports.push(ended);
        }
    }

    /// What happened since the last call.
    pub fn reports(&mut self) -> Vec<SnapshotReport> {
        if let Some(background) = &mut self.background {
            let ended: Vec<_> = background.reports().collect();
            self.under_way -= ended.len();
            self.reports.extend(ended);
        }
        std::mem::take(&mut self.reports)
    }

    fn store(&mut self, name: &Bytes) {
        let taken = match self.kept.get(name) {
            Some(snapshot) => {
                self.in_background(|background| background.store(name.clone(), snapshot))
            }
            None => Err("it is not in this rank's memory"),
        };
        match taken {
            Ok(()) => self.under_way += 1,
            Err(why) => self.report(name, Event::Stored, 0, why),
        }
    }

    /// Hands something to the background, if there is one.
    fn in_background(
        &self,
        hand: impl FnOnce(&Background) -> Result<(), &'static str>,
    ) -> Result<(), &'static str> {
        hand(self.background.as_ref().ok_or("this rank has no store")?)
    }

    fn list(&mut self) {
        for one in self.kept.list() {
            self.report(&one.name, Event::InMemory, one.bytes, "");
        }
        let Some(background) = &self.background else {
            return;
        };
        match background.list(LIST_LIMIT) {
            Ok(all) => {
                for one in all {
                    self.report(&one.name, Event::InStore, one.bytes, "");
                }
            }
            Err(why) => {
                tracing::warn!("what is in the store is not known: {why}");
                self.report(&Bytes::new(), Event::NotListed, 0, &why);
            }
        }
    }

    fn report(&mut self, name: &Bytes, event: Event, bytes: u64, error: &str) {
        self.reports.push(report(name.clone(), event, bytes, error));
    }
}

#[cfg(test)]
mod tests;
