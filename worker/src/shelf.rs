//! Where a rank keeps snapshots: in host memory, and in a store that outlives the process.

use palimpsest_engine::kept::Kept;
use palimpsest_proto::internal::v1::snapshot_report::Event;
use palimpsest_proto::internal::v1::{SnapshotOrders, SnapshotReport};

/// A rank's snapshots. The device thread has it carry out the orders of each plan before the step,
/// and takes its reports after it.
pub struct Shelf {
    kept: Kept,
    reports: Vec<SnapshotReport>,
}

impl Shelf {
    /// Keeps snapshots in host memory alone.
    pub fn in_memory(kept: Kept) -> Self {
        Self {
            kept,
            reports: Vec::new(),
        }
    }

    /// Carries out what a plan says of snapshots before its step. What takes time goes on in the
    /// background.
    pub fn obey(&mut self, orders: &SnapshotOrders) {
        let no_store = "this rank has no store";
        for name in &orders.store {
            self.report(name, Event::Stored, 0, no_store);
        }
        orders.drop.iter().for_each(|name| self.kept.remove(name));
        for name in &orders.fetch {
            self.report(name, Event::Fetched, 0, no_store);
        }
        if orders.list {
            for one in self.kept.list() {
                self.report(&one.name, Event::InMemory, one.bytes, "");
            }
        }
    }

    /// What happened since the last call.
    pub fn reports(&mut self) -> Vec<SnapshotReport> {
        std::mem::take(&mut self.reports)
    }

    fn report(&mut self, name: &bytes::Bytes, event: Event, bytes: u64, error: &str) {
        self.reports.push(SnapshotReport {
            name: name.clone(),
            event: event.into(),
            bytes,
            error: error.into(),
        });
    }
}
