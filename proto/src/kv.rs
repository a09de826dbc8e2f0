//! What a KV contract costs: a pure function of contract and model, the same on coordinator and
//! rank.
//!
//! Memory is counted in *pages* of [`PAGE_SLOTS`] entries of one KV head. Between two stride
//! boundaries a head holds its retained entries and a tail of at most `stride` new ones; a boundary
//! brings it back to the budget. So a bounded sequence never holds more than `budget + stride`
//! entries per KV head on average, at any length.

use crate::contract::{Bounded, Contract, HeadBudget};

/// Entries of one page.
pub const PAGE_SLOTS: u64 = 32;
/// Under the head budget `group` no KV head index keeps more than this many times (numerator,
/// denominator) its share of the evictable slots, which bounds what a rank can be asked to hold.
pub const GROUP_CAP: (u64, u64) = (3, 2);
/// Bytes of the note that a policy may keep with an entry. Every page has room for those of its
/// entries.
pub const NOTE_BYTES: u64 = 8;
/// Latent memories get one part in so many of a rank's cache, where its operator does not say:
/// enough for contracts that leave the share of the memory to
/// [`default_memory`](crate::contract::default_memory).
pub const LATENT_SHARE: u64 = 8;
/// Latent memory of a KV head is allocated in multiples of this many bytes.
const LATENT_UNIT: u64 = 16;

/// What of a model and a rank decides the cost of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Decoder layers.
    pub layers: u64,
    /// KV heads of one rank.
    pub kv_heads: u64,
    /// KV heads of the model.
    pub total_kv_heads: u64,
    /// Values of one key or one value.
    pub head_dim: u64,
    /// Bytes of one stored element.
    pub element_bytes: u64,
    /// Bytes that a key or a value has beside its elements.
    pub scale_bytes: u64,
    /// Tokens between two boundaries.
    pub stride: u64,
}

impl Geometry {
    /// Bytes of one entry (key and value) of one KV head.
    pub const fn entry_bytes(&self) -> u64 {
        2 * (self.head_dim * self.element_bytes + self.scale_bytes)
    }

    /// Bytes of one page with the notes of its entries.
    pub const fn page_bytes(&self) -> u64 {
        PAGE_SLOTS * (self.entry_bytes() + NOTE_BYTES)
    }

    /// Bytes of a token in a cache that keeps everything.
    pub const fn token_bytes(&self) -> u64 {
        self.layers * self.kv_heads * self.entry_bytes()
    }

    /// Number of (layer, KV head) pairs.
    pub const fn heads(&self) -> u64 {
        self.layers * self.kv_heads
    }
}

/// Pages that a sequence of at most `max_tokens` tokens can ever hold on one rank.
pub fn reserved_pages(contract: &Contract, geometry: &Geometry, max_tokens: u64) -> u64 {
    let whole = geometry.heads() * max_tokens.div_ceil(PAGE_SLOTS);
    match contract {
        Contract::Full => whole,
        Contract::Bounded(bounded) => bounded_pages(bounded, geometry).min(whole),
    }
}

/// Pages of a sequence of any length. Pooled budgets share a total among heads, each of which may
/// leave one page partly filled.
fn bounded_pages(contract: &Bounded, geometry: &Geometry) -> u64 {
    let heads = geometry.heads();
    let retained = u64::from(contract.exact_slots());
    let protected = u64::from(contract.sinks) + u64::from(contract.window);
    let own = retained.saturating_sub(protected) * heads;
    // Entries of other ranks' heads may come here: all of them, or up to the cap.
    let all = own / geometry.kv_heads * geometry.total_kv_heads;
    let evictable = match contract.head_budget {
        HeadBudget::Uniform => return heads * (retained + geometry.stride).div_ceil(PAGE_SLOTS),
        HeadBudget::Column => own,
        HeadBudget::Layer => all,
        HeadBudget::Group => all.min((own * GROUP_CAP.0).div_ceil(GROUP_CAP.1) + geometry.kv_heads),
    };
    let retained = evictable + retained.min(protected) * heads;
    // sum of ceil(n_i / s) <= sum(n_i) / s + number of heads
    (retained + geometry.stride * heads) / PAGE_SLOTS + heads
}

/// Bytes of latent memory of one sequence on one rank.
pub fn memory_bytes(contract: &Contract, geometry: &Geometry) -> u64 {
    let slots = contract.memory().map_or(0, |memory| memory.slots.get());
    let of_head = u64::from(slots) * geometry.entry_bytes();
    geometry.heads() * of_head.next_multiple_of(LATENT_UNIT)
}

/// Bytes of all pages that a sequence of at most `max_tokens` tokens can ever hold on one rank,
/// notes included.
pub fn page_bytes(contract: &Contract, geometry: &Geometry, max_tokens: u64) -> u64 {
    reserved_pages(contract, geometry, max_tokens) * geometry.page_bytes()
}

/// Bytes that a sequence reserves on one rank: its pages and its latent memory.
pub fn reserved_bytes(contract: &Contract, geometry: &Geometry, max_tokens: u64) -> u64 {
    page_bytes(contract, geometry, max_tokens) + memory_bytes(contract, geometry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{
        DEFAULT_SINKS, LatentMemory, MOST_WINDOW, PolicyName, Positions, default_memory,
    };

    const G: Geometry = Geometry {
        layers: 30,
        kv_heads: 3,
        total_kv_heads: 3,
        head_dim: 64,
        element_bytes: 2,
        scale_bytes: 0,
        stride: 256,
    };

    fn bounded(policy: &str, head_budget: HeadBudget, budget: u32) -> Bounded {
        Bounded {
            policy: PolicyName::new(policy).unwrap(),
            budget,
            head_budget,
            sinks: DEFAULT_SINKS,
            window: MOST_WINDOW,
            positions: Positions::Absolute,
            memory: None,
        }
    }

    fn contract(policy: &str, head_budget: HeadBudget, budget: u32) -> Contract {
        bounded(policy, head_budget, budget).into()
    }

    #[test]
    fn a_bounded_sequence_costs_the_same_at_any_length() {
        let c = contract("window", HeadBudget::Uniform, 1024);
        assert_eq!(
            reserved_bytes(&c, &G, 100_000),
            reserved_bytes(&c, &G, 10_000_000)
        );
        assert_eq!(reserved_bytes(&c, &G, 100_000), 90 * 40 * G.page_bytes());
        assert_eq!(
            reserved_bytes(&Contract::Full, &G, 64),
            (G.token_bytes() + 90 * NOTE_BYTES) * 64
        );
    }

    #[test]
    fn a_short_sequence_costs_no_more_than_its_tokens() {
        assert_eq!(
            reserved_pages(&contract("window", HeadBudget::Column, 1024), &G, 31),
            90
        );
    }

    #[test]
    fn pooled_budgets_are_covered_for_any_split_among_heads() {
        let c = contract("window", HeadBudget::Column, 1000);
        let pages = reserved_pages(&c, &G, u64::MAX / 1000) / G.kv_heads;
        for skew in 0..29u64 {
            // layer 0 takes as much as it can, the others share the rest
            let total = G.layers * (1000 + 256);
            let first = total * skew / 29;
            let rest = (total - first) / (G.layers - 1);
            let last = total - first - rest * (G.layers - 2);
            let used = first.div_ceil(32) + (G.layers - 2) * rest.div_ceil(32) + last.div_ceil(32);
            assert!(
                used <= pages,
                "{used} pages used, {pages} reserved at skew {skew}"
            );
        }
    }

    /// What the share of latent memories is for: default memories never wait for it, since pages
    /// run out first.
    #[test]
    fn an_eighth_is_enough_for_default_memories() {
        for budget in [16, 64, 511, 512, 1024, 4096, 1 << 20] {
            for head_budget in [HeadBudget::Uniform, HeadBudget::Column] {
                let c = Contract::from(Bounded {
                    memory: LatentMemory::parse("centroid", default_memory(budget)).unwrap(),
                    ..bounded("retention", head_budget, budget)
                });
                let (latent, pages) = (memory_bytes(&c, &G), page_bytes(&c, &G, 1 << 40));
                assert!(
                    latent * (LATENT_SHARE - 1) <= pages,
                    "budget {budget}: {latent} beside {pages}"
                );
            }
        }
        assert_eq!(memory_bytes(&Contract::Full, &G), 0);
    }

    #[test]
    fn a_rank_reserves_its_share() {
        use HeadBudget::{Column, Group, Layer, Uniform};
        let alone =
            |head_budget| reserved_pages(&contract("retention", head_budget, 1024), &G, 1 << 30);
        let of = |kv_heads, head_budget| {
            let geometry = Geometry { kv_heads, ..G };
            reserved_pages(
                &contract("retention", head_budget, 1024),
                &geometry,
                1 << 30,
            )
        };
        for head_budget in [Uniform, Column] {
            assert_eq!(3 * of(1, head_budget), alone(head_budget));
        }
        // One head of a layer may get all that is evictable there; what is protected and the tail
        // are each head's own.
        assert_eq!(of(3, Layer), alone(Column));
        assert!(
            (alone(Layer) * 2 / 3..alone(Layer)).contains(&of(1, Layer)),
            "{}",
            of(1, Layer)
        );
        // Pooled over the model: at most half more.
        let (share, most) = (alone(Group) / 3, of(1, Group));
        assert!(most > share && most <= share * 3 / 2 + 1, "{share} {most}");
    }
}
