//! Who makes room in a tier.

use super::super::chain::Name;
use super::super::entry::{Entry, Place};
use super::Index;

impl Index {
    /// Evicts what is worth least until so many bytes more fit; whether they do.
    pub(super) fn evict_from_memory(&mut self, bytes: u64) -> bool {
        let plan = self.plan;
        let is_free = |entry: &Entry| entry.memory == Place::Here && entry.is_free(plan);
        if bytes > 0 && !self.could_fit(self.held.memory_bytes + bytes, self.room.memory, is_free) {
            return false;
        }
        while self.held.memory_bytes + bytes > self.room.memory {
            let plan = self.plan;
            let free = |entry: &Entry| entry.memory == Place::Here && entry.is_free(plan);
            let value = |entry: &Entry| entry.value(entry.since.memory);
            let Some((name, value)) = self.least(free, value) else {
                return false;
            };
            self.clocks.memory = self.clocks.memory.max(value);
            self.leave_memory(name);
        }
        true
    }

    pub(super) fn evict_from_store(&mut self, bytes: u64) -> bool {
        let is_free = |entry: &Entry| entry.store == Place::Here && !entry.memory.is_coming();
        if bytes > 0 && !self.could_fit(self.held.store_bytes + bytes, self.room.store, is_free) {
            return false;
        }
        while self.held.store_bytes + bytes > self.room.store {
            let free = |entry: &Entry| {
                // What is being read stays until it has been.
                entry.store == Place::Here && !entry.memory.is_coming()
            };
            let value = |entry: &Entry| entry.value(entry.since.store);
            let Some((name, value)) = self.least(free, value) else {
                return false;
            };
            self.clocks.store = self.clocks.store.max(value);
            self.leave_store(name);
        }
        true
    }

    /// Whether `needed` bytes fit into `room` once all that may go has gone: nothing is evicted for
    /// what does not fit in any case.
    fn could_fit(&self, needed: u64, room: u64, is_free: impl Fn(&Entry) -> bool) -> bool {
        let free = self.entries.values().filter(|entry| is_free(entry));
        let movable: u64 = free.map(|entry| entry.bytes).sum();
        needed <= room.saturating_add(movable)
    }

    /// Who is worth least. Ties go to the smaller name, so that the answer is one.
    fn least(
        &self,
        free: impl Fn(&Entry) -> bool,
        value: impl Fn(&Entry) -> f64,
    ) -> Option<(Name, f64)> {
        self.entries
            .iter()
            .filter(|(_, entry)| free(entry))
            .map(|(name, entry)| (*name, value(entry)))
            .min_by(|(a, x), (b, y)| x.total_cmp(y).then(a.cmp(b)))
    }
}
