//! The KV contract of a request: defaults, checks, cost.

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::internal::v1::ModelInfo;
use palimpsest_proto::kv::{DEFAULT_SINKS, FULL, default_memory, default_window, smallest_budget};
use palimpsest_proto::v1::KvContract;

use crate::config::Config;
use crate::model::ServedModel;
use crate::scheduler::Cost;

const NONE: &str = "none";
const HEAD_BUDGETS: [&str; 4] = ["uniform", "column", "layer", "group"];
const POSITIONS: [&str; 2] = ["absolute", "compacted"];

/// The contract with every default filled in, not yet checked.
///
/// The window shrinks where the budget is small; at least half of what remains is left to the
/// policy.
pub fn with_defaults(asked: &KvContract, info: &ModelInfo) -> KvContract {
    let server = info.default_kv.clone().unwrap_or_default();
    let or = |value: &str, default: &str, last: &str| {
        [value, default, last]
            .into_iter()
            .find(|name| !name.is_empty())
            .unwrap_or_default()
            .to_owned()
    };
    let policy = or(&asked.policy, &server.policy, "window");
    if policy == FULL {
        // Nothing is evicted: budget, protection and head budgets have no meaning, and nothing
        // reaches a memory.
        return KvContract {
            policy,
            memory: or(&asked.memory, "", NONE),
            head_budget: or(&asked.head_budget, "", "uniform"),
            positions: or(&asked.positions, &server.positions, "absolute"),
            budget: asked.budget,
            sinks: Some(asked.sinks.unwrap_or(0)),
            window: Some(asked.window.unwrap_or(0)),
            memory_slots: Some(asked.memory_slots.unwrap_or(0)),
        };
    }
    let budget = if asked.budget == 0 {
        server.budget
    } else {
        asked.budget
    };
    // The server's memory is chosen for the server's policy.
    let memory = or(
        &asked.memory,
        if policy == server.policy {
            &server.memory
        } else {
            NONE
        },
        NONE,
    );
    let memory_slots = asked.memory_slots.unwrap_or_else(|| {
        let own = server
            .memory_slots
            .filter(|_| memory == server.memory)
            .unwrap_or_else(|| default_memory(budget));
        if memory == NONE {
            0
        } else {
            own.min(budget / 2)
        }
    });
    let sinks = asked.sinks.or(server.sinks).unwrap_or(DEFAULT_SINKS);
    let room = budget.saturating_sub(sinks).saturating_sub(memory_slots);
    let window = asked.window.unwrap_or_else(|| {
        server
            .window
            .unwrap_or_else(|| default_window(budget))
            .min(room / 2)
    });
    // These keep the same positions in every head, so pooling would only cost partly filled pages.
    let alike = ["window", "random"].contains(&policy.as_str());
    let head_budget = or(
        &asked.head_budget,
        if alike {
            "uniform"
        } else {
            &server.head_budget
        },
        "column",
    );
    KvContract {
        budget,
        policy,
        memory,
        head_budget,
        sinks: Some(sinks),
        window: Some(window),
        positions: or(&asked.positions, &server.positions, "absolute"),
        memory_slots: Some(memory_slots),
    }
}

/// Fills defaults in and checks the result.
pub(super) fn validate(
    asked: &KvContract,
    model: &ServedModel,
    config: &Config,
) -> Result<KvContract, RequestError> {
    let bad = |message: String| Err(RequestError::new(Reason::BadContract, message));
    let kv = with_defaults(asked, &model.info);
    one_of("kv.policy", &kv.policy, &model.info.policies)?;
    if kv.memory != NONE {
        one_of("kv.memory", &kv.memory, &model.info.memories)?;
    }
    one_of("kv.head_budget", &kv.head_budget, &HEAD_BUDGETS)?;
    one_of("kv.positions", &kv.positions, &POSITIONS)?;
    let memory_slots = kv.memory_slots.unwrap_or(0);
    if kv.policy == FULL {
        if kv.memory != NONE || memory_slots != 0 {
            return bad(
                "the policy `full` evicts nothing, so it takes no memory: leave kv.memory out or \
                 use none"
                    .into(),
            );
        }
        return Ok(kv);
    }
    if kv.memory == NONE && memory_slots != 0 {
        return bad(format!(
            "kv.memory_slots is {memory_slots} but kv.memory is none: name a memory or leave it \
             out"
        ));
    }
    if kv.memory != NONE && memory_slots == 0 {
        return bad(format!(
            "kv.memory is {:?} but it gets 0 slots: raise kv.memory_slots or kv.budget",
            kv.memory
        ));
    }
    let (sinks, window) = (kv.sinks.unwrap_or(0), kv.window.unwrap_or(0));
    let smallest = smallest_budget(sinks, window, memory_slots);
    if kv.budget < smallest {
        return bad(format!(
            "kv.budget is {}, the least is {smallest}: {sinks} sinks, a window of {window}, \
             {memory_slots} memory slots and 1",
            kv.budget
        ));
    }
    if kv.budget > config.max_budget {
        return bad(format!(
            "kv.budget is {}, over the limit of {}",
            kv.budget, config.max_budget
        ));
    }
    Ok(kv)
}

/// Cost of a sequence, if an empty arena holds it.
pub(super) fn cost(kv: &KvContract, model: &ServedModel, total: u64) -> Result<Cost, RequestError> {
    let cost = Cost::of(kv, &model.geometry, total);
    if cost.fits(&model.room) {
        return Ok(cost);
    }
    let (what, need, have, advice) = match kv.policy.as_str() {
        FULL => (
            "pages",
            cost.pages,
            model.room.pages,
            "use a bounded policy or fewer tokens",
        ),
        _ if cost.pages > model.room.pages => {
            ("pages", cost.pages, model.room.pages, "lower kv.budget")
        }
        _ => (
            "latent memory",
            cost.latent,
            model.room.latent,
            "lower kv.memory_slots",
        ),
    };
    let message = format!(
        "policy {:?} with {total} tokens reserves {need} bytes of {what} on each rank, which has \
         {have}: {advice}",
        kv.policy
    );
    Err(RequestError::new(Reason::NeverFits, message))
}

/// What the client should know about a request that is served nevertheless.
pub(super) fn warnings(kv: &KvContract, model: &ServedModel, total: u64) -> Vec<String> {
    let trained = model.info.context_length;
    let farthest = match kv.positions.as_str() {
        "compacted" if kv.policy != FULL => total.min(u64::from(kv.budget) + model.geometry.stride),
        _ => total,
    };
    let beyond = trained > 0 && farthest > trained;
    let warning = || format!("positions reach {farthest}, beyond the trained range of {trained}");
    beyond.then(warning).into_iter().collect()
}

fn one_of<S: AsRef<str>>(field: &str, value: &str, known: &[S]) -> Result<(), RequestError> {
    if known.iter().any(|name| name.as_ref() == value) {
        return Ok(());
    }
    let known: Vec<_> = known.iter().map(AsRef::as_ref).collect();
    // The value is the client's: quoted, and not all of it.
    let value: String = value.chars().take(64).collect();
    Err(RequestError::new(
        Reason::BadContract,
        format!(
            "{field} {value:?} is not known, use one of: {}",
            known.join(", ")
        ),
    ))
}
