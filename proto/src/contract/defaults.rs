//! What a contract is where a request does not say.

use super::{Contract, ContractError, FULL, HeadBudget, NO_MEMORY, Positions};
use crate::v1::KvContract;

/// Protected first positions.
pub const DEFAULT_SINKS: u32 = 4;
/// Protected last positions, at most.
pub const MOST_WINDOW: u32 = 128;

/// The policy of a server that names none.
const DEFAULT_POLICY: &str = "window";

/// What a server has for requests.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// What a request gets where it leaves a field open. It may leave fields open too.
    pub defaults: &'a KvContract,
    /// Policies whose scores of different heads can be compared, so that heads may share a budget.
    pub pooled: &'a [String],
}

/// Last positions that a budget of `budget` entries protects: a sixteenth of it, 8 to
/// [`MOST_WINDOW`]. Chosen by measurement: a learned policy spends these entries better than a
/// window does (EVALUATION.md).
pub const fn default_window(budget: u32) -> u32 {
    let share = budget / 16;
    if share < 8 {
        8
    } else if share > MOST_WINDOW {
        MOST_WINDOW
    } else {
        share
    }
}

/// Entries of a budget that pay for a latent memory: a smaller share where the budget is small,
/// since there it takes entries that hold what is asked for (EVALUATION.md).
pub const fn default_memory(budget: u32) -> u32 {
    let share = if budget < 512 {
        budget / 16
    } else {
        budget / 8
    };
    // What one centroid costs, whatever the head size.
    if share < 4 { 4 } else { share }
}

impl Contract {
    /// The contract of a request that `asked`, with what the server offers for what the request
    /// leaves open.
    ///
    /// # Errors
    /// A name that is not known, and parts that do not go together.
    pub fn complete(asked: &KvContract, offer: Offer<'_>) -> Result<Self, ContractError> {
        let server = offer.defaults;
        let policy = first_named([&asked.policy, &server.policy, DEFAULT_POLICY]);
        let policy = policy.to_owned();
        if policy == FULL {
            // The server's other defaults are for policies that evict.
            return Self::try_from(&KvContract {
                policy,
                ..asked.clone()
            });
        }
        let contract = Self::try_from(&fill(policy, asked, offer))?;
        offer.check(&contract)?;
        Ok(contract)
    }
}

impl Offer<'_> {
    fn pools(&self, policy: &str) -> bool {
        self.pooled.iter().any(|name| name == policy)
    }

    /// Whether heads share a budget only by scores that can be compared.
    fn check(&self, contract: &Contract) -> Result<(), ContractError> {
        match contract.bounded() {
            Some(bounded)
                if bounded.head_budget != HeadBudget::Uniform && !self.pools(contract.policy()) =>
            {
                let pooled = self.pooled.iter().map(String::as_str);
                let head_budget = bounded.head_budget.name();
                Err(ContractError::not_comparable(
                    contract.policy(),
                    head_budget,
                    pooled,
                ))
            }
            _ => Ok(()),
        }
    }
}

/// The contract of a `policy` that evicts, with every field set, not yet checked.
fn fill(policy: String, asked: &KvContract, offer: Offer<'_>) -> KvContract {
    let server = offer.defaults;
    let budget = if asked.budget == 0 {
        server.budget
    } else {
        asked.budget
    };
    // The server's memory is chosen for the server's policy.
    let of_server = if policy == server.policy {
        &server.memory
    } else {
        NO_MEMORY
    };
    let memory = first_named([&asked.memory, of_server, NO_MEMORY]).to_owned();
    let memory_slots = asked
        .memory_slots
        .unwrap_or_else(|| memory_slots(&memory, budget, server));
    let sinks = asked.sinks.or(server.sinks).unwrap_or(DEFAULT_SINKS);
    let window = asked.window.unwrap_or_else(|| {
        // At least half of what is not yet spent is left to the policy.
        let unspent = budget.saturating_sub(sinks).saturating_sub(memory_slots);
        let window = server.window.unwrap_or_else(|| default_window(budget));
        window.min(unspent / 2)
    });
    // The server's head budget may pool; another policy may have scores that do not allow it.
    let (of_server, usual) = match (offer.pools(&policy), policy == server.policy) {
        (true, _) => (server.head_budget.as_str(), HeadBudget::Column),
        (false, true) => (server.head_budget.as_str(), HeadBudget::Uniform),
        (false, false) => ("", HeadBudget::Uniform),
    };
    let head_budget = [&asked.head_budget, of_server, usual.name()];
    let positions = [
        &asked.positions,
        &server.positions,
        Positions::Absolute.name(),
    ];
    KvContract {
        head_budget: first_named(head_budget).to_owned(),
        positions: first_named(positions).to_owned(),
        policy,
        budget,
        memory,
        memory_slots: Some(memory_slots),
        sinks: Some(sinks),
        window: Some(window),
    }
}

/// Entries that pay for `memory` out of `budget`, at most half of it.
fn memory_slots(memory: &str, budget: u32, server: &KvContract) -> u32 {
    if memory == NO_MEMORY {
        return 0;
    }
    let of_server = server.memory_slots.filter(|_| memory == server.memory);
    of_server
        .unwrap_or_else(|| default_memory(budget))
        .min(budget / 2)
}

/// The first name that is not empty.
fn first_named(names: [&str; 3]) -> &str {
    names
        .into_iter()
        .find(|name| !name.is_empty())
        .unwrap_or_default()
}
