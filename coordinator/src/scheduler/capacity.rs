//! Memory of a rank, counted before it is used.
//!
//! The cost of a sequence follows from its contract alone ([`palimpsest_proto::kv`]), so it is taken once when the sequence
//! starts and given back once when it is released. Nothing is ever preempted for memory.

use palimpsest_proto::{
    kv::{self, Geometry},
    v1::KvContract,
};

/// Bytes that a sequence reserves on each rank: whole pages and latent memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// Pages of the slot arena.
    pub pages: u64,
    /// Pages and latent memory together, in bytes.
    pub bytes: u64,
}

impl Cost {
    /// Cost of a sequence of at most `max_tokens` tokens under `contract` on a rank of this `geometry`.
    pub fn of(contract: &KvContract, geometry: &Geometry, max_tokens: u64) -> Self {
        Self {
            pages: kv::reserved_pages(contract, geometry, max_tokens),
            bytes: kv::reserved_bytes(contract, geometry, max_tokens),
        }
    }
}

/// The arena of the smallest rank, and what of it is reserved.
#[derive(Debug, Clone)]
pub struct Capacity {
    arena_bytes: u64,
    reserved_bytes: u64,
}

impl Capacity {
    /// An empty arena of this many bytes.
    pub const fn new(arena_bytes: u64) -> Self {
        Self { arena_bytes, reserved_bytes: 0 }
    }

    /// Reserves `cost` if it fits now.
    #[must_use]
    pub fn take(&mut self, cost: Cost) -> bool {
        let fits = cost.bytes <= self.arena_bytes - self.reserved_bytes;
        if fits {
            self.reserved_bytes += cost.bytes;
        }
        fits
    }

    /// Gives back what [`Self::take`] reserved.
    pub fn give(&mut self, cost: Cost) {
        assert!(cost.bytes <= self.reserved_bytes, "a cost is given back once, by the sequence that took it");
        self.reserved_bytes -= cost.bytes;
    }

    /// Bytes reserved now.
    pub const fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_not_taken() {
        let cost = |bytes| Cost { pages: 1, bytes };
        let mut capacity = Capacity::new(100);
        assert!(capacity.take(cost(60)));
        assert!(!capacity.take(cost(41)));
        assert!(capacity.take(cost(40)));
        capacity.give(cost(60));
        assert_eq!(capacity.reserved_bytes(), 40);
        assert!(!Capacity::new(10).take(cost(u64::MAX)));
    }
}
