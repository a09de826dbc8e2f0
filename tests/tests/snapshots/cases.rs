//! Contracts and tokens to try snapshots with.

use palimpsest_engine::kv::{Bounded, Contract, HeadBudget, Positions};
use palimpsest_kernels::KvType;
use palimpsest_tests::{STRIDE, VOCABULARY, bounded, memory, random};

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

/// A sequence that is interrupted twice, and goes on at other numbers of ranks.
#[derive(Debug)]
pub struct Case {
    pub contract: Contract,
    pub kv: KvType,
    /// Ranks before the first interruption, between both, and after the second.
    pub ranks: [usize; 3],
    /// Boundaries after which it is interrupted.
    pub cuts: [usize; 2],
    /// Tokens that it reads in all.
    pub tokens: usize,
}

/// Splitmix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

impl Case {
    pub fn random(seed: u64) -> Self {
        let mut random = Random(seed);
        let stride = STRIDE as usize;
        let tokens = 120 + random.below(200);
        let second = 2 + random.below(tokens / stride - 2);
        let first = 1 + random.below(second - 1);
        // From 4 on ranks share KV heads.
        let ranks = [
            [1, 3, 2],
            [3, 1, 2],
            [2, 3, 1],
            [1, 1, 1],
            [6, 2, 4],
            [1, 4, 6],
        ];
        Self {
            contract: Self::contract(&mut random),
            kv: random.one_of(&[KvType::Q8, KvType::F16, KvType::F32]),
            ranks: random.one_of(&ranks),
            cuts: [first, second].map(|boundary| boundary * stride),
            tokens,
        }
    }

    fn contract(random: &mut Random) -> Contract {
        if random.below(12) == 0 {
            return Contract::Full;
        }
        let policy = random.one_of(&POLICIES);
        let head_budget = if pools(policy) {
            random.one_of(&HeadBudget::ALL)
        } else {
            HeadBudget::Uniform
        };
        let name = random.one_of(&["none", "centroid", "associative"]);
        let slots = if name == "none" {
            0
        } else {
            8 + random.below(8) as u32
        };
        let (sinks, window) = (random.below(5) as u32, 1 + random.below(16) as u32);
        Contract::Bounded(Bounded {
            budget: slots + sinks + window + 4 + random.below(60) as u32,
            sinks,
            window,
            positions: random.one_of(&Positions::ALL),
            memory: memory(name, slots),
            ..bounded(policy, head_budget, 0)
        })
    }
}
