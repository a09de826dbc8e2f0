//! Between [`Contract`] and the message on the wire.

use super::{
    Bounded, Contract, ContractError, FULL, Field, HeadBudget, LatentMemory, NO_MEMORY, PolicyName,
    Positions,
};
use crate::v1::KvContract;

impl TryFrom<&KvContract> for Contract {
    type Error = ContractError;

    /// Reads a contract in which every default has been filled in, as ranks get it.
    /// [`Contract::complete`] fills in.
    fn try_from(wire: &KvContract) -> Result<Self, ContractError> {
        if wire.policy == FULL {
            return full(wire);
        }
        let set = |field, value: Option<u32>| value.ok_or(ContractError::Missing(field));
        let bounded = Bounded {
            policy: PolicyName::new(&wire.policy)?,
            budget: wire.budget,
            head_budget: named(Field::HeadBudget, &wire.head_budget)?.parse()?,
            sinks: set(Field::Sinks, wire.sinks)?,
            window: set(Field::Window, wire.window)?,
            positions: named(Field::Positions, &wire.positions)?.parse()?,
            memory: LatentMemory::parse(&wire.memory, wire.memory_slots.unwrap_or(0))?,
        };
        bounded.check()?;
        Ok(Self::Bounded(bounded))
    }
}

fn named(field: Field, name: &str) -> Result<&str, ContractError> {
    match name {
        "" => Err(ContractError::Missing(field)),
        name => Ok(name),
    }
}

/// Under the policy `full` every other field is unset, or what [`KvContract::from`] writes there.
fn full(wire: &KvContract) -> Result<Contract, ContractError> {
    if !wire.positions.is_empty() {
        // A name that nobody knows is told apart from one that has no meaning here.
        wire.positions.parse::<Positions>()?;
    }
    if !wire.head_budget.is_empty() {
        wire.head_budget.parse::<HeadBudget>()?;
    }
    let neutral = KvContract::from(&Contract::Full);
    let is_set = |name: &str, neutral: &str| !name.is_empty() && name != neutral;
    let fields = [
        (Field::Memory, is_set(&wire.memory, &neutral.memory)),
        (Field::MemorySlots, wire.memory_slots() != 0),
        (Field::Budget, wire.budget != 0),
        (
            Field::HeadBudget,
            is_set(&wire.head_budget, &neutral.head_budget),
        ),
        (
            Field::Positions,
            is_set(&wire.positions, &neutral.positions),
        ),
        (Field::Sinks, wire.sinks() != 0),
        (Field::Window, wire.window() != 0),
    ];
    match fields.into_iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => Err(ContractError::MeaninglessWithFull { field }),
        None => Ok(Contract::Full),
    }
}

impl From<&Contract> for KvContract {
    /// The contract with every field set.
    fn from(contract: &Contract) -> Self {
        let Contract::Bounded(bounded) = contract else {
            return Self {
                budget: 0,
                policy: FULL.into(),
                memory: NO_MEMORY.into(),
                head_budget: HeadBudget::Uniform.name().into(),
                sinks: Some(0),
                window: Some(0),
                positions: Positions::Absolute.name().into(),
                memory_slots: Some(0),
            };
        };
        let memory = bounded.memory.as_ref();
        Self {
            budget: bounded.budget,
            policy: bounded.policy.as_str().into(),
            memory: memory
                .map_or(NO_MEMORY, |memory| memory.name.as_str())
                .into(),
            head_budget: bounded.head_budget.name().into(),
            sinks: Some(bounded.sinks),
            window: Some(bounded.window),
            positions: bounded.positions.name().into(),
            memory_slots: Some(bounded.memory_slots()),
        }
    }
}
