//! Why a contract is refused.

use std::fmt;
use std::num::NonZeroU32;

use crate::error::{Reason, RequestError};

/// Characters of a client's word that an error repeats.
const QUOTED: usize = 64;

/// A field of `palimpsest.v1.KvContract`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `budget`.
    Budget,
    /// `policy`.
    Policy,
    /// `memory`.
    Memory,
    /// `head_budget`.
    HeadBudget,
    /// `sinks`.
    Sinks,
    /// `window`.
    Window,
    /// `positions`.
    Positions,
    /// `memory_slots`.
    MemorySlots,
}

impl Field {
    /// Path of the field in a `GenerateRequest`.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Budget => "kv.budget",
            Self::Policy => "kv.policy",
            Self::Memory => "kv.memory",
            Self::HeadBudget => "kv.head_budget",
            Self::Sinks => "kv.sinks",
            Self::Window => "kv.window",
            Self::Positions => "kv.positions",
            Self::MemorySlots => "kv.memory_slots",
        }
    }

    /// What the field asks for, where the policy `full` has no use for it.
    const fn asks_for(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::Policy => "other policy",
            Self::Memory => "memory",
            Self::HeadBudget => "head budget",
            Self::Sinks => "protected first positions",
            Self::Window => "protected last positions",
            Self::Positions => "compacted positions",
            Self::MemorySlots => "memory slots",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}

/// A contract that means nothing or cannot be kept. The text is for the client: it names the field
/// and says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContractError {
    /// A field that must be set by now is not.
    #[error("{0} is not set: fill every default in before a contract goes to a rank")]
    Missing(Field),
    /// A name that nobody knows.
    #[error("{field} {value:?} is not known, use one of: {known}")]
    Unknown {
        /// Where it stands.
        field: Field,
        /// The beginning of it.
        value: String,
        /// Names that are known.
        known: String,
    },
    /// Heads would share a budget by scores that cannot be compared.
    #[error(
        "kv.head_budget is {head_budget:?}, but the scores of different heads under the policy \
         {policy:?} cannot be compared: use \"uniform\", or one of the policies {pooled}"
    )]
    NotComparable {
        /// The beginning of the policy's name.
        policy: String,
        /// What is asked for.
        head_budget: &'static str,
        /// Policies whose scores can be compared.
        pooled: String,
    },
    /// A field that has no meaning where everything is kept.
    #[error(
        "the policy `full` evicts nothing, so it takes no {}: leave {field} out, or name another \
         kv.policy", .field.asks_for()
    )]
    MeaninglessWithFull {
        /// The field that is set.
        field: Field,
    },
    /// Entries are set aside for a memory that is not there.
    #[error("kv.memory_slots is {0} but kv.memory is none: name a memory or leave it out")]
    SlotsWithoutMemory(NonZeroU32),
    /// A memory without entries that would pay for it.
    #[error("kv.memory is {memory:?} but it gets 0 slots: raise kv.memory_slots or kv.budget")]
    MemoryWithoutSlots {
        /// The beginning of the memory's name.
        memory: String,
    },
    /// The budget is spent before the policy has an entry.
    #[error(
        "kv.budget is {budget}, the least is {least}: {sinks} sinks, a window of {window}, \
         {memory_slots} memory slots and 1"
    )]
    BudgetTooSmall {
        /// What is asked for.
        budget: u32,
        /// What the other fields need.
        least: u32,
        /// Protected first positions.
        sinks: u32,
        /// Protected last positions.
        window: u32,
        /// Entries that pay for memory.
        memory_slots: u32,
    },
}

impl ContractError {
    /// `value` of `field` is none of `known`.
    pub fn unknown<'a>(
        field: Field,
        value: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        Self::Unknown {
            field,
            value: beginning(value),
            known: known.into_iter().collect::<Vec<_>>().join(", "),
        }
    }

    /// `head_budget` pools scores of `policy`, which is none of `pooled`.
    pub fn not_comparable<'a>(
        policy: &str,
        head_budget: &'static str,
        pooled: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        Self::NotComparable {
            policy: beginning(policy),
            head_budget,
            pooled: pooled.into_iter().collect::<Vec<_>>().join(", "),
        }
    }

    pub(super) fn memory_without_slots(memory: &str) -> Self {
        Self::MemoryWithoutSlots {
            memory: beginning(memory),
        }
    }

    /// The field that has to change.
    pub const fn field(&self) -> Field {
        match self {
            Self::Missing(field)
            | Self::Unknown { field, .. }
            | Self::MeaninglessWithFull { field } => *field,
            Self::SlotsWithoutMemory(_) | Self::MemoryWithoutSlots { .. } => Field::MemorySlots,
            Self::NotComparable { .. } => Field::HeadBudget,
            Self::BudgetTooSmall { .. } => Field::Budget,
        }
    }
}

impl From<ContractError> for RequestError {
    fn from(error: ContractError) -> Self {
        Self::new(Reason::BadContract, error.to_string()).in_field(error.field().path())
    }
}

/// The value is a client's: not all of it is repeated.
fn beginning(value: &str) -> String {
    value.chars().take(QUOTED).collect()
}
