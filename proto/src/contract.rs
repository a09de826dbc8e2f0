//! The KV contract of a sequence: how much of its past it may hold, and what decides what stays.
//!
//! On the wire a contract is the message `palimpsest.v1.KvContract`, made of names and numbers of
//! which a client may leave any out. It is read once, where it enters a process, into a
//! [`Contract`]. Everything behind that edge (admission, the cost in bytes, the engine) takes the
//! type, in which parts that do not go together cannot be written down.
//!
//! ```text
//!  client ─KvContract─▶ Contract::complete(asked, server's offer) ─Contract─▶ admission, cost
//!                                                                     │
//!  rank ◀─Contract─ Contract::try_from ◀─KvContract, every field set──┘
//! ```

mod defaults;
mod error;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

pub use self::defaults::{DEFAULT_SINKS, MOST_WINDOW, Offer, default_memory, default_window};
pub use self::error::{ContractError, Field};

/// Changes whenever the same contract means something else than before. It is a part of the name of
/// every kept state, so that none is taken for one of another meaning.
pub const VERSION: u32 = 1;

/// Name of the policy that evicts nothing.
pub const FULL: &str = "full";
/// Name of the latent memory that remembers nothing.
pub const NO_MEMORY: &str = "none";

/// What a sequence may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contract {
    /// Every entry is kept: the policy `full`. The cache grows with the sequence.
    Full,
    /// A budget that holds at any length.
    Bounded(Bounded),
}

/// A contract with a budget. [`Bounded::check`] says whether the numbers go together; every
/// contract that came over the wire has passed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounded {
    /// What ranks the entries.
    pub policy: PolicyName,
    /// Mean entries per KV head at a boundary, those that pay for latent memory included.
    pub budget: u32,
    /// How the budget is shared among KV heads.
    pub head_budget: HeadBudget,
    /// First positions, never evicted.
    pub sinks: u32,
    /// Last positions, never evicted at a boundary.
    pub window: u32,
    /// Rotary positions of what is retained.
    pub positions: Positions,
    /// Memory of what is evicted; `None`: it is forgotten.
    pub memory: Option<LatentMemory>,
}

/// Name of a policy that evicts. Which names a rank knows is the rank's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyName(Box<str>);

/// Name of a latent memory. Which names a rank knows is the rank's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryName(Box<str>);

/// A latent memory and what it takes of the budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatentMemory {
    /// Which one.
    pub name: MemoryName,
    /// Entries of the budget per KV head that pay for its bytes.
    pub slots: NonZeroU32,
}

/// How many entries each KV head gets out of the mean budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadBudget {
    /// Every head gets the same number.
    Uniform,
    /// The entries of one KV head index are pooled over all layers.
    Column,
    /// The entries are pooled over the KV heads of each layer.
    Layer,
    /// The entries are pooled over all layers and KV heads.
    Group,
}

/// Which rotary positions retained keys have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// The position that the token had when it was read.
    Absolute,
    /// Keys are re-indexed at a boundary whenever the next stride would leave the trained range.
    Compacted,
}

impl Contract {
    /// The budget and what goes with it, unless everything is kept.
    pub const fn bounded(&self) -> Option<&Bounded> {
        match self {
            Self::Full => None,
            Self::Bounded(bounded) => Some(bounded),
        }
    }

    /// Name of the policy on the wire.
    pub fn policy(&self) -> &str {
        self.bounded()
            .map_or(FULL, |bounded| bounded.policy.as_str())
    }

    /// Mean entries per KV head at a boundary, unless everything is kept.
    pub fn budget(&self) -> Option<u32> {
        self.bounded().map(|bounded| bounded.budget)
    }

    /// Rotary positions of what is kept.
    pub fn positions(&self) -> Positions {
        self.bounded()
            .map_or(Positions::Absolute, |bounded| bounded.positions)
    }

    /// Memory of what is evicted, if there is one.
    pub fn memory(&self) -> Option<&LatentMemory> {
        self.bounded().and_then(|bounded| bounded.memory.as_ref())
    }

    /// Entries per KV head that are kept as they are, on average, unless everything is kept.
    pub fn exact_slots(&self) -> Option<usize> {
        self.bounded().map(|bounded| bounded.exact_slots() as usize)
    }
}

impl From<Bounded> for Contract {
    fn from(bounded: Bounded) -> Self {
        Self::Bounded(bounded)
    }
}

impl Bounded {
    /// Entries of the budget that pay for latent memory.
    pub fn memory_slots(&self) -> u32 {
        self.memory.as_ref().map_or(0, |memory| memory.slots.get())
    }

    /// Entries per KV head that are kept as they are, on average: the budget less what pays for
    /// memory.
    pub fn exact_slots(&self) -> u32 {
        self.budget.saturating_sub(self.memory_slots())
    }

    /// The smallest budget that leaves one entry to the policy.
    pub fn smallest_budget(&self) -> u32 {
        self.sinks
            .saturating_add(self.window)
            .saturating_add(self.memory_slots())
            .saturating_add(1)
    }

    /// Whether the budget covers what is protected, the memory, and one entry for the policy.
    ///
    /// # Errors
    /// [`ContractError::BudgetTooSmall`] with the numbers.
    pub fn check(&self) -> Result<(), ContractError> {
        let least = self.smallest_budget();
        if self.budget >= least {
            return Ok(());
        }
        Err(ContractError::BudgetTooSmall {
            budget: self.budget,
            least,
            sinks: self.sinks,
            window: self.window,
            memory_slots: self.memory_slots(),
        })
    }
}

impl PolicyName {
    /// A policy by its name on the wire.
    ///
    /// # Errors
    /// [`ContractError::Missing`] for the empty name, [`ContractError::Unknown`] for [`FULL`],
    /// which has no budget: that is [`Contract::Full`].
    pub fn new(name: &str) -> Result<Self, ContractError> {
        match name {
            "" => Err(ContractError::Missing(Field::Policy)),
            FULL => Err(ContractError::unknown(
                Field::Policy,
                name,
                ["a policy that evicts"],
            )),
            name => Ok(Self(name.into())),
        }
    }

    /// The name on the wire.
    pub const fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl MemoryName {
    /// The name on the wire.
    pub const fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl LatentMemory {
    /// The memory called `name` on the wire, paid for by `slots` entries of the budget. `None` for
    /// [`NO_MEMORY`] without entries.
    ///
    /// # Errors
    /// [`ContractError::Missing`] for the empty name; [`ContractError::SlotsWithoutMemory`] and
    /// [`ContractError::MemoryWithoutSlots`] where one comes without the other.
    pub fn parse(name: &str, slots: u32) -> Result<Option<Self>, ContractError> {
        match (name, NonZeroU32::new(slots)) {
            ("", _) => Err(ContractError::Missing(Field::Memory)),
            (NO_MEMORY, None) => Ok(None),
            (NO_MEMORY, Some(slots)) => Err(ContractError::SlotsWithoutMemory(slots)),
            (name, None) => Err(ContractError::memory_without_slots(name)),
            (name, Some(slots)) => Ok(Some(Self {
                name: MemoryName(name.into()),
                slots,
            })),
        }
    }
}

impl HeadBudget {
    /// Every variant.
    pub const ALL: [Self; 4] = [Self::Uniform, Self::Column, Self::Layer, Self::Group];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Column => "column",
            Self::Layer => "layer",
            Self::Group => "group",
        }
    }

    /// Whether ranks share a pool, so that each may hold another number of entries.
    pub const fn spans_ranks(self) -> bool {
        matches!(self, Self::Layer | Self::Group)
    }
}

impl FromStr for HeadBudget {
    type Err = ContractError;

    fn from_str(name: &str) -> Result<Self, ContractError> {
        let found = Self::ALL.into_iter().find(|one| one.name() == name);
        found.ok_or_else(|| {
            ContractError::unknown(Field::HeadBudget, name, Self::ALL.map(Self::name))
        })
    }
}

impl Positions {
    /// Every variant.
    pub const ALL: [Self; 2] = [Self::Absolute, Self::Compacted];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Absolute => "absolute",
            Self::Compacted => "compacted",
        }
    }
}

impl FromStr for Positions {
    type Err = ContractError;

    fn from_str(name: &str) -> Result<Self, ContractError> {
        let found = Self::ALL.into_iter().find(|one| one.name() == name);
        found.ok_or_else(|| {
            ContractError::unknown(Field::Positions, name, Self::ALL.map(Self::name))
        })
    }
}
