//! Memory of a rank, counted before it is used.
//!
//! The cost of a sequence follows from its contract alone ([`palimpsest_proto::kv`]), so it is
//! taken once when the sequence starts and given back once when it is released. Nothing is ever
//! preempted for memory.

use palimpsest_proto::contract::Contract;
use palimpsest_proto::kv::{self, Geometry};

/// Bytes of a rank's cache: what a sequence reserves of it, or all there are. A rank sets pages and
/// latent memories apart when it starts, so each has to fit by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Pages of slots, with their notes.
    pub pages: u64,
    /// Latent memories.
    pub latent: u64,
}

impl Cost {
    /// Cost of a sequence of at most `max_tokens` tokens under `contract` on a rank of this
    /// `geometry`.
    pub fn of(contract: &Contract, geometry: &Geometry, max_tokens: u64) -> Self {
        Self {
            pages: kv::page_bytes(contract, geometry, max_tokens),
            latent: kv::memory_bytes(contract, geometry),
        }
    }

    /// Both together.
    pub const fn bytes(&self) -> u64 {
        self.pages + self.latent
    }

    /// Whether `room` holds it.
    pub const fn fits(&self, room: &Self) -> bool {
        self.pages <= room.pages && self.latent <= room.latent
    }
}

/// The cache of the smallest rank, and what of it is reserved.
#[derive(Debug, Clone)]
pub struct Capacity {
    room: Cost,
    reserved: Cost,
}

impl Capacity {
    /// An empty cache of this size.
    pub const fn new(room: Cost) -> Self {
        Self {
            room,
            reserved: Cost {
                pages: 0,
                latent: 0,
            },
        }
    }

    /// Reserves `cost` if it fits now.
    #[must_use]
    pub fn take(&mut self, cost: Cost) -> bool {
        let Self { room, reserved } = self;
        let free = Cost {
            pages: room.pages - reserved.pages,
            latent: room.latent - reserved.latent,
        };
        let fits = cost.fits(&free);
        if fits {
            reserved.pages += cost.pages;
            reserved.latent += cost.latent;
        }
        fits
    }

    /// Gives back what [`Self::take`] reserved.
    pub fn give(&mut self, cost: Cost) {
        assert!(
            cost.fits(&self.reserved),
            "a cost is given back once, by the sequence that took it"
        );
        self.reserved.pages -= cost.pages;
        self.reserved.latent -= cost.latent;
    }

    /// Bytes reserved now.
    pub const fn reserved_bytes(&self) -> u64 {
        self.reserved.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_not_taken() {
        let cost = |pages, latent| Cost { pages, latent };
        let mut capacity = Capacity::new(cost(100, 10));
        assert!(capacity.take(cost(60, 4)));
        assert!(!capacity.take(cost(41, 0)));
        assert!(
            !capacity.take(cost(1, 7)),
            "pages do not make room for memories"
        );
        assert!(capacity.take(cost(40, 6)));
        capacity.give(cost(60, 4));
        assert_eq!(capacity.reserved_bytes(), 46);
        assert!(!Capacity::new(cost(10, 0)).take(cost(u64::MAX, 0)));
    }
}
