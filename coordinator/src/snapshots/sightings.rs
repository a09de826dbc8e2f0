//! Which prefixes were asked for before, though nothing of them was kept.

use std::collections::{HashSet, VecDeque};

use super::chain::{Chain, Name};

/// Names that are remembered: 64 bytes each.
const MOST: usize = 1 << 16;

/// The names of prefixes that requests had, the oldest forgotten first.
#[derive(Debug, Default)]
pub struct Sightings {
    seen: HashSet<Name>,
    order: VecDeque<Name>,
}

impl Sightings {
    /// Takes note of a prompt. Returns the last boundary that an earlier one shared with it.
    pub fn see(&mut self, chain: &Chain) -> Option<u64> {
        let before = chain
            .boundaries(u64::MAX)
            .find(|(_, name)| self.seen.contains(name))
            .map(|(at, _)| at);
        for (_, name) in chain.boundaries(u64::MAX) {
            if self.seen.insert(name) {
                self.order.push_back(name);
            }
        }
        while self.order.len() > MOST {
            if let Some(oldest) = self.order.pop_front() {
                self.seen.remove(&oldest);
            }
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_proto::contract::Contract;

    use super::super::chain::{Root, Salt};
    use super::*;

    fn chain(tokens: &[u32]) -> Chain {
        let root = Root {
            model: b"",
            contract: &Contract::Full,
            stride: 2,
            salt: Salt::default(),
        };
        Chain::of(&root, tokens)
    }

    #[test]
    fn the_longest_prefix_that_came_before_is_told() {
        let mut sightings = Sightings::default();
        assert_eq!(sightings.see(&chain(&[1, 2, 3, 4, 5, 6])), None);
        assert_eq!(sightings.see(&chain(&[1, 2, 3, 4, 9, 9])), Some(4));
        assert_eq!(sightings.see(&chain(&[1, 2, 3, 4, 9, 9])), Some(6));
        assert_eq!(sightings.see(&chain(&[8, 8])), None);
    }

    #[test]
    fn it_forgets_the_oldest() {
        let mut sightings = Sightings::default();
        sightings.see(&chain(&[1, 1]));
        for i in 0..MOST as u32 {
            sightings.see(&chain(&[2, i]));
        }
        assert_eq!(sightings.see(&chain(&[1, 1])), None);
        assert!(sightings.seen.len() <= MOST + 1);
    }
}
