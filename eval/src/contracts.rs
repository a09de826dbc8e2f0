//! From what a grid names (a budget or a share of the prompt) to a KV contract, and back to what
//! was really held.

use palimpsest_engine::kv::SequenceCache;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::{Backend, KvType};
use palimpsest_proto::contract::{
    Bounded, Contract, ContractError, HeadBudget, LatentMemory, NO_MEMORY, PolicyName, Positions,
    default_memory, default_window,
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Policy that keeps everything.
pub const FULL: &str = "full";

/// How much may be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Mean entries per KV head at a boundary; what is read after it comes on top.
    Entries(u32),
    /// Ten-thousandths of the prompt that may be held when the answer begins, everything counted.
    Share(u32),
}

impl Budget {
    /// A share from 0 to 1.
    ///
    /// # Errors
    /// [`Error::Spec`] outside of it.
    pub fn share(share: f64) -> Result<Self> {
        if share > 0.0 && share <= 1.0 {
            Ok(Self::Share((share * 1e4).round() as u32))
        } else {
            Err(Error::Spec(format!(
                "share {share} is not above 0 and at most 1"
            )))
        }
    }

    /// Entries per KV head for a prompt of `prompt` tokens of which `tail` follow the last
    /// boundary. A share is one of bytes: a policy that stores something with every slot gets fewer
    /// slots for it.
    pub fn entries(self, prompt: usize, tail: usize, size: EntrySize) -> u32 {
        match self {
            Self::Entries(entries) => entries,
            Self::Share(share) => {
                let slots = prompt as f64 * f64::from(share) / 1e4 / size.slot();
                (slots as u32).saturating_sub(tail as u32)
            }
        }
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Entries(entries) => write!(f, "{entries} entries"),
            Self::Share(share) => write!(f, "{} %", f64::from(*share) / 100.0),
        }
    }
}

/// Bytes that one entry costs on a rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EntrySize {
    /// Key and value of one token in one KV head of one layer.
    pub kv: f64,
    /// The same in the cache that shares are shares of: one of 16 bits, or of f32 where caches
    /// are.
    pub full: f64,
    /// What the policy stores with a slot: its terms or note, and attention by query head.
    pub policy: f64,
}

impl EntrySize {
    /// Under a policy, by name; an unknown one stores nothing.
    pub fn of<B: Backend>(runner: &Runner<B>, policy: &str) -> Self {
        let config = runner.decoder().config();
        let kv = runner.kv_type().slot_bytes(config.head_dim);
        let policy = runner.policies().iter().find(|p| p.name() == policy);
        let values = policy.map_or(0, |p| {
            let needs = p.needs();
            let mass = needs.attention.kept(1) * config.heads / config.kv_heads;
            needs.terms + usize::from(needs.notes) + mass
        });
        Self {
            kv: kv as f64,
            full: kv.max(KvType::F16.slot_bytes(config.head_dim)) as f64,
            policy: (values * size_of::<f32>()) as f64,
        }
    }

    /// A slot in entries of the full cache.
    pub fn slot(self) -> f64 {
        (self.kv + self.policy) / self.full
    }
}

/// What a cell asks of the cache, before the prompt is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheShape {
    /// Policy.
    pub policy: String,
    /// Latent memory.
    pub memory: String,
    /// Entries of the budget for memory; `None`: an eighth of it, a sixteenth below 512.
    pub memory_slots: Option<u32>,
    /// Head budgets.
    pub head_budget: String,
    /// `None` with the policy `full` alone.
    pub budget: Option<Budget>,
    /// Protected first positions.
    pub sinks: u32,
    /// Protected last positions; `None`: a sixteenth of the budget, 8 to 128.
    pub window: Option<u32>,
    /// Element type of keys and values ([`KvType::name`]).
    #[serde(default = "halves")]
    pub kv_type: String,
}

fn halves() -> String {
    KvType::F16.name().into()
}

impl CacheShape {
    /// Everything is kept.
    pub fn full() -> Self {
        Self {
            policy: FULL.into(),
            memory: "none".into(),
            memory_slots: None,
            head_budget: HeadBudget::Uniform.name().into(),
            budget: None,
            sinks: 0,
            window: None,
            kv_type: halves(),
        }
    }

    /// Of all samples of one thing those of the cache that others are compared with: everything is
    /// kept, in halves, or as `self` keeps it where halves were not measured.
    pub fn full_of<'a, T>(&self, samples: &'a [T], cache: impl Fn(&T) -> &Self) -> Vec<&'a T> {
        let kept = |kv_type: &str| {
            let full = Self {
                kv_type: kv_type.into(),
                ..Self::full()
            };
            samples
                .iter()
                .filter(|sample| *cache(sample) == full)
                .collect::<Vec<_>>()
        };
        let found = kept(&halves());
        if found.is_empty() {
            kept(&self.kv_type)
        } else {
            found
        }
    }

    /// Name of the line it belongs to in tables and plots: all but the budget.
    pub fn line(&self) -> String {
        let mut name = self.policy.clone();
        if self.head_budget != HeadBudget::Uniform.name() {
            name += &format!("/{}", self.head_budget);
        }
        if self.memory != "none" {
            name += &format!("+{}", self.memory);
            if let Some(slots) = self.memory_slots {
                name += &format!(" {slots}");
            }
        }
        if self.kv_type != halves() {
            name += &format!(", {}", self.kv_type);
        }
        name
    }

    /// The contract for a prompt of `prompt` tokens with `tail` of them after the last boundary.
    ///
    /// # Errors
    /// [`Error::Spec`] names what does not fit.
    pub fn contract(&self, prompt: usize, tail: usize, size: EntrySize) -> Result<Contract> {
        let Some(budget) = self.budget else {
            return Ok(Contract::Full);
        };
        let entries = budget.entries(prompt, tail, size);
        let bounded = self
            .bounded(entries)
            .map_err(|error| Error::Spec(error.to_string()))?;
        bounded.check().map_err(|error| {
            Error::Spec(format!(
                "{budget} of {prompt} tokens leaves {entries} entries after {tail} tokens of \
                 question: {error}"
            ))
        })?;
        Ok(bounded.into())
    }

    /// The contract with a budget of so many entries, which may be too few.
    fn bounded(&self, entries: u32) -> std::result::Result<Bounded, ContractError> {
        let memory_slots = if self.memory == NO_MEMORY {
            0
        } else {
            self.memory_slots.unwrap_or_else(|| default_memory(entries))
        };
        Ok(Bounded {
            policy: PolicyName::new(&self.policy)?,
            budget: entries,
            head_budget: self.head_budget.parse()?,
            sinks: self.sinks,
            window: self.window.unwrap_or_else(|| default_window(entries)),
            positions: Positions::Absolute,
            memory: LatentMemory::parse(&self.memory, memory_slots)?,
        })
    }
}

/// Mean entries per KV head that a sequence holds, at the size of a full cache's: slots, the tail
/// among them, with what the policy stores, and latent memory.
pub fn held(cache: &SequenceCache, size: EntrySize) -> f64 {
    held_entries(
        cache.held_entries(),
        cache.memory_bytes(),
        cache.heads.len(),
        size,
    )
}

fn held_entries(slots: u64, memory_bytes: u64, heads: usize, size: EntrySize) -> f64 {
    (slots as f64 * size.slot() + memory_bytes as f64 / size.full) / heads as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: EntrySize = EntrySize {
        kv: 256.0,
        full: 256.0,
        policy: 0.0,
    };

    fn shape(budget: Budget, memory: &str) -> CacheShape {
        let budget = Some(budget);
        CacheShape {
            policy: "window".into(),
            memory: memory.into(),
            budget,
            sinks: 4,
            ..CacheShape::full()
        }
    }

    /// Window and memory slots.
    fn protection(contract: &Contract) -> (u32, u32) {
        let bounded = contract.bounded().expect("bounded");
        (bounded.window, bounded.memory_slots())
    }

    #[test]
    fn a_share_counts_the_tail() {
        let contract = shape(Budget::share(0.1).expect("a share"), "none")
            .contract(2090, 42, PLAIN)
            .expect("fits");
        // 209 entries when the answer begins, 42 of them read after the boundary.
        assert_eq!(contract.budget(), Some(209 - 42));
        assert_eq!(protection(&contract), (167 / 16, 0));
        let contract = shape(Budget::Entries(1024), "centroid")
            .contract(2090, 42, PLAIN)
            .expect("fits");
        assert_eq!(contract.budget(), Some(1024));
        assert_eq!(protection(&contract), (64, 128));
        assert_eq!(
            CacheShape::full()
                .contract(2090, 42, PLAIN)
                .expect("always"),
            Contract::Full
        );
    }

    #[test]
    fn a_policy_pays_for_what_it_stores_with_slots() {
        let size = EntrySize {
            policy: 32.0,
            ..PLAIN
        };
        let share = shape(Budget::share(0.1).expect("a share"), "none");
        let entries = share
            .contract(2090, 42, size)
            .expect("fits")
            .budget()
            .expect("bounded");
        // 209 entries of 256 bytes are 185 slots of 288.
        assert_eq!(entries, 185 - 42);
        let held = held_entries(6 * u64::from(entries + 42), 0, 6, size);
        assert!((208.0..=209.0).contains(&held), "{held}");
        // Of 8 bits 136 bytes, which a share of a cache of 16 bits pays for.
        let eight = share
            .contract(
                2090,
                42,
                EntrySize {
                    kv: 132.0,
                    policy: 4.0,
                    ..PLAIN
                },
            )
            .expect("fits");
        assert_eq!(eight.budget(), Some(393 - 42));
        let named = shape(Budget::Entries(100), "none")
            .contract(2090, 42, size)
            .expect("fits");
        assert_eq!(
            named.budget(),
            Some(100),
            "entries are what a request asks for"
        );
    }

    #[test]
    fn a_share_below_the_tail_is_refused_with_the_numbers() {
        let error = shape(Budget::share(0.02).expect("a share"), "none").contract(2090, 42, PLAIN);
        let message = error.expect_err("41 entries for 42 tokens").to_string();
        assert!(
            message.contains("2 % of 2090 tokens leaves 0 entries"),
            "{message}"
        );
        for bad in [0.0, -0.1, 1.01, f64::NAN] {
            assert!(Budget::share(bad).is_err());
        }
    }

    #[test]
    fn what_is_held_includes_memory_at_its_size() {
        // 6 heads with 40 slots each, and 6 x 512 bytes of memory at 256 bytes an entry.
        assert_eq!(held_entries(240, 6 * 512, 6, PLAIN), 42.0);
        assert_eq!(held_entries(240, 0, 6, PLAIN), 40.0);
    }
}
