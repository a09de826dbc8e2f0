//! Forgetting for good: what somebody deleted is to be in no tier, and known to be.
//!
//! Eviction forgets as well, but nobody waits for it, and nobody minds if a file stays a while.
//! What is doomed here is offered to nobody any more, leaves every tier as soon as no sequence
//! needs it, and counts as gone once every rank has said so. That outlasts the group: the next one
//! tells what its ranks have, and goes on.

use palimpsest_proto::internal::v1::SnapshotReport;
use palimpsest_proto::internal::v1::snapshot_report::Event;

use super::super::chain::Name;
use super::erased::Erased;
use super::{Index, Listing};

impl Index {
    /// Has a snapshot leave every tier, however many have begun with it.
    pub fn doom(&mut self, name: Name) {
        if self.is_on() {
            self.doomed.insert(name);
        }
    }

    /// Whether any tier may have it: it is kept or on its way, or ranks have not yet told that they
    /// removed it, or not yet told what they have.
    pub fn may_be_kept(&self, name: Name) -> bool {
        let is_going = self.erasing.contains_key(&name) || self.orders.has(name);
        let is_unknown = self.listing != Listing::Told;
        self.is_on() && (is_unknown || is_going || self.entries.contains_key(&name))
    }

    /// What was doomed and has ended since the last call.
    pub fn take_erased(&mut self) -> Vec<Erased> {
        std::mem::take(&mut self.erased)
    }

    /// Lets go what is doomed, unless a sequence is to begin with it or ranks still move it.
    pub(super) fn release_doomed(&mut self) {
        for name in self.doomed.iter().copied().collect::<Vec<_>>() {
            self.release(name);
            if !self.is_coming(name) {
                self.leave_store(name);
            }
        }
    }

    /// Ends what no tier has any more, as far as ranks have told.
    pub(super) fn end_doomed(&mut self) {
        if self.listing != Listing::Told {
            return;
        }
        let is_over = |name: &Name| {
            let is_under_way = self.erasing.contains_key(name) || self.orders.has(*name);
            !is_under_way && !self.entries.contains_key(name)
        };
        let over: Vec<Name> = self.doomed.iter().copied().filter(is_over).collect();
        for name in over {
            self.end_doom(name, None);
        }
    }

    fn end_doom(&mut self, name: Name, error: Option<String>) {
        if self.doomed.remove(&name) {
            self.erased.push(Erased { name, error });
        }
    }

    /// Has all ranks remove their files of a snapshot.
    pub(super) fn order_erase(&mut self, name: Name) {
        let (ranks, bytes) = (self.ranks, self.bytes(name));
        let erasing = self.erasing.entry(name).or_default();
        erasing.answers += ranks;
        erasing.bytes = erasing.bytes.max(bytes);
        self.orders.erase(name);
    }

    /// A rank has removed its files, or could not.
    pub(super) fn erased_on_a_rank(&mut self, name: Name, report: &SnapshotReport) {
        // One of an epoch that is over is in nobody's way.
        let Some(erasing) = self.erasing.get_mut(&name) else {
            return;
        };
        erasing.answers = erasing.answers.saturating_sub(1);
        if !report.error.is_empty() {
            erasing.error = Some(report.error.clone());
        }
        if erasing.answers > 0 {
            return;
        }
        let ended = self.erasing.remove(&name).unwrap_or_default();
        let Some(error) = ended.error else {
            return;
        };
        // It is there as before, as far as anyone knows, takes its room, and can be forgotten
        // again. Some ranks may have lost their part, so that nobody begins with it.
        self.list(name, Event::InStore, true, ended.bytes);
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.is_unreadable = true;
        }
        self.end_doom(name, Some(error));
    }
}
