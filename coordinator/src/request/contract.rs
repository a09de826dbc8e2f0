//! The KV contract of a request: whether this server can keep it, and what it costs.

use palimpsest_proto::contract::{Contract, ContractError, Field, Positions};
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::KvContract;

use crate::config::Config;
use crate::model::ServedModel;
use crate::scheduler::Cost;

/// Fills defaults in and checks the result.
pub(super) fn validate(
    asked: &KvContract,
    model: &ServedModel,
    config: &Config,
) -> Result<Contract, RequestError> {
    let contract = model.contract(asked)?;
    one_of(Field::Policy, contract.policy(), &model.info.policies)?;
    if let Some(memory) = contract.memory() {
        one_of(Field::Memory, memory.name.as_str(), &model.info.memories)?;
    }
    match contract.budget() {
        Some(budget) if budget > config.max_budget => {
            let most = config.max_budget;
            let message = format!("kv.budget is {budget}, over the limit of {most}");
            let refused = RequestError::new(Reason::BadContract, message);
            Err(refused.in_field(Field::Budget.path()))
        }
        _ => Ok(contract),
    }
}

fn one_of(field: Field, value: &str, known: &[String]) -> Result<(), ContractError> {
    if known.iter().any(|name| name == value) {
        return Ok(());
    }
    let known = known.iter().map(String::as_str);
    Err(ContractError::unknown(field, value, known))
}

/// Cost of a sequence of at most `total` tokens, if an empty arena holds it.
pub(super) fn cost(
    contract: &Contract,
    model: &ServedModel,
    total: u64,
) -> Result<Cost, RequestError> {
    let cost = Cost::of(contract, &model.geometry, total);
    if cost.fits(&model.room) {
        return Ok(cost);
    }
    let (what, need, have, advice) = match contract {
        Contract::Full => (
            "pages",
            cost.pages,
            model.room.pages,
            "use a bounded policy or fewer tokens",
        ),
        Contract::Bounded(_) if cost.pages > model.room.pages => {
            ("pages", cost.pages, model.room.pages, "lower kv.budget")
        }
        Contract::Bounded(_) => (
            "latent memory",
            cost.latent,
            model.room.latent,
            "lower kv.memory_slots",
        ),
    };
    let message = format!(
        "policy {:?} with {total} tokens reserves {need} bytes of {what} on each rank, which has \
         {have}: {advice}",
        contract.policy()
    );
    Err(RequestError::new(Reason::NeverFits, message))
}

/// What the client should know about an answer for which `read` tokens were read, its own among
/// them.
pub(super) fn beyond_trained(
    contract: &Contract,
    model: &ServedModel,
    read: u64,
) -> Option<String> {
    let trained = model.info.context_length;
    let farthest = match contract {
        Contract::Bounded(bounded) if bounded.positions == Positions::Compacted => {
            read.min(u64::from(bounded.budget) + model.geometry.stride)
        }
        _ => read,
    };
    let is_beyond = trained > 0 && farthest > trained;
    is_beyond.then(|| format!("positions reach {farthest}, beyond the trained range of {trained}"))
}
