//! The KV contract of a request, parsed: enums and checked numbers instead of strings.

use palimpsest_proto::{kv as cost, v1};

use crate::error::{Error, Result};

/// How many slots each KV head gets out of the mean budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadBudget {
    /// The same for every head.
    Uniform,
    /// Slots of one KV head index are pooled over all layers.
    Column,
    /// Slots are pooled over the KV heads of each layer.
    Layer,
    /// Slots are pooled over all layers and KV heads.
    Group,
}

impl HeadBudget {
    /// Every variant.
    pub const ALL: [Self; 4] = [Self::Uniform, Self::Column, Self::Layer, Self::Group];

    /// Wire name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Column => "column",
            Self::Layer => "layer",
            Self::Group => "group",
        }
    }

    /// Whether ranks share a pool, so that each may hold another number of slots.
    pub const fn spans_ranks(self) -> bool {
        matches!(self, Self::Layer | Self::Group)
    }
}

/// Which rotary positions retained keys have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// The position the token had when it was read.
    Absolute,
    /// Re-indexed at a boundary whenever the next stride would leave the trained range.
    Compacted,
}

impl Positions {
    /// Wire name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Absolute => "absolute",
            Self::Compacted => "compacted",
        }
    }
}

/// What a sequence may hold. See `palimpsest.v1.KvContract`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contract {
    /// Mean entries per KV head, latent memory included; `None`: everything is kept.
    pub budget: Option<u32>,
    /// Name of the policy.
    pub policy: String,
    /// Name of the latent memory.
    pub memory: String,
    /// Head budgets.
    pub head_budget: HeadBudget,
    /// First positions, never evicted.
    pub sinks: u32,
    /// Last positions, never evicted at a boundary.
    pub window: u32,
    /// Rotary positions.
    pub positions: Positions,
    /// Entries of the budget that pay for latent memory.
    pub memory_slots: u32,
}

impl Contract {
    /// A contract that keeps everything.
    pub fn full() -> Self {
        Self {
            budget: None,
            policy: cost::FULL.into(),
            memory: "none".into(),
            head_budget: HeadBudget::Uniform,
            sinks: cost::DEFAULT_SINKS,
            window: cost::DEFAULT_WINDOW,
            positions: Positions::Absolute,
            memory_slots: 0,
        }
    }

    /// Parses a contract whose defaults have been filled in.
    ///
    /// # Errors
    /// [`Error::Contract`] names the field and the accepted values.
    pub fn parse(wire: &v1::KvContract) -> Result<Self> {
        if wire.policy == cost::FULL {
            return Ok(Self::full());
        }
        let asked = &wire.head_budget;
        let head_budget = HeadBudget::ALL
            .into_iter()
            .find(|head_budget| head_budget.name() == asked);
        let names = HeadBudget::ALL.map(HeadBudget::name).join(", ");
        let refused = || Error::Contract(format!("head_budget `{asked}` is not one of {names}"));
        let head_budget = head_budget.ok_or_else(refused)?;
        let positions = match wire.positions.as_str() {
            "absolute" | "" => Positions::Absolute,
            "compacted" => Positions::Compacted,
            other => {
                return Err(Error::Contract(format!(
                    "positions `{other}` is not absolute or compacted"
                )));
            }
        };
        let sinks = wire.sinks.unwrap_or(cost::DEFAULT_SINKS);
        let window = wire.window.unwrap_or(cost::DEFAULT_WINDOW);
        let memory_slots = wire.memory_slots.unwrap_or(0);
        let smallest = cost::smallest_budget(sinks, window, memory_slots);
        if wire.budget < smallest {
            let budget = wire.budget;
            return Err(Error::Contract(format!(
                "budget {budget} is below {smallest} (sinks {sinks} + window {window} + memory \
                 {memory_slots} + 1)"
            )));
        }
        Ok(Self {
            budget: Some(wire.budget),
            policy: wire.policy.clone(),
            memory: if wire.memory.is_empty() {
                "none".into()
            } else {
                wire.memory.clone()
            },
            head_budget,
            sinks,
            window,
            positions,
            memory_slots,
        })
    }

    /// Exact slots per KV head on average: the budget less what pays for memory. `None`: unbounded.
    pub fn exact_slots(&self) -> Option<usize> {
        self.budget.map(|b| (b - self.memory_slots) as usize)
    }
}
