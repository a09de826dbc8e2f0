//! Contracts and tokens to try snapshots with.

use palimpsest_engine::kv::{Bounded, Contract, HeadBudget, Positions};
use palimpsest_tests::{VOCABULARY, bounded, memory, random};

/// Every policy that evicts.
pub const POLICIES: [&str; 11] = [
    "window",
    "random",
    "h2o",
    "tova",
    "snapkv",
    "knorm",
    "keydiff",
    "lagkv",
    "expected-attention",
    "retention",
    "query-indexer",
];

/// Whether scores of different heads can be compared, so that they may share a budget.
pub fn pools(policy: &str) -> bool {
    !["window", "knorm", "keydiff", "lagkv"].contains(&policy)
}

pub fn tokens(seed: u64, count: usize) -> Vec<u32> {
    random(seed, count)
        .iter()
        .map(|v| ((v + 1.0) * 0.5 * VOCABULARY as f32) as u32 % VOCABULARY as u32)
        .collect()
}

/// Every policy, with head budgets, memories and positions in turn.
pub fn contracts() -> Vec<Contract> {
    let mut all = vec![Contract::Full];
    for (index, policy) in POLICIES.into_iter().enumerate() {
        for turn in 0..2 {
            let head_budget = if pools(policy) {
                HeadBudget::ALL[(index + 2 * turn) % 4]
            } else {
                HeadBudget::Uniform
            };
            let name = ["none", "centroid", "associative"][(index + turn) % 3];
            let slots = if name == "none" { 0 } else { 12 };
            all.push(Contract::Bounded(Bounded {
                memory: memory(name, slots),
                positions: Positions::ALL[turn],
                ..bounded(policy, head_budget, slots)
            }));
        }
    }
    all
}
