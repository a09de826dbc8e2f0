use super::*;
use crate::error::{Reason, RequestError};
use crate::v1::KvContract;

/// A contract with every field set.
fn learned() -> KvContract {
    KvContract {
        budget: 1024,
        policy: "retention".into(),
        memory: "centroid".into(),
        head_budget: "column".into(),
        sinks: Some(4),
        window: Some(64),
        positions: "compacted".into(),
        memory_slots: Some(128),
    }
}

/// Completes by the defaults of `server`, which can compare scores of `retention` alone.
fn complete(asked: &KvContract, server: &KvContract) -> Result<Contract, ContractError> {
    let pooled = ["retention".to_owned()];
    let offer = Offer {
        defaults: server,
        pooled: &pooled,
    };
    Contract::complete(asked, offer)
}

fn full() -> KvContract {
    KvContract {
        policy: FULL.into(),
        ..KvContract::default()
    }
}

/// `of` with a change.
fn but(of: KvContract, change: impl FnOnce(&mut KvContract)) -> KvContract {
    let mut wire = of;
    change(&mut wire);
    wire
}

#[test]
fn a_contract_comes_back_from_the_wire_as_it_went() {
    let contract = Contract::try_from(&learned()).unwrap();
    assert_eq!(KvContract::from(&contract), learned());
    assert_eq!(
        (contract.policy(), contract.budget()),
        ("retention", Some(1024))
    );
    assert_eq!(contract.exact_slots(), Some(896));

    for head_budget in HeadBudget::ALL {
        for positions in Positions::ALL {
            let wire = but(learned(), |kv| {
                kv.head_budget = head_budget.name().into();
                kv.positions = positions.name().into();
                (kv.memory, kv.memory_slots) = (NO_MEMORY.into(), Some(0));
            });
            let contract = Contract::try_from(&wire).unwrap();
            let bounded = contract.bounded().unwrap();
            assert_eq!(
                (bounded.head_budget, bounded.positions),
                (head_budget, positions)
            );
            assert_eq!(KvContract::from(&contract), wire);
        }
    }

    let wire = KvContract::from(&Contract::Full);
    assert_eq!(Contract::try_from(&wire), Ok(Contract::Full));
    assert_eq!(Contract::try_from(&full()), Ok(Contract::Full));
}

/// Checks that a rank refuses `wire`, names `field` and says `part`.
fn refused(wire: KvContract, field: Field, part: &str) {
    let error = Contract::try_from(&wire).expect_err(&format!("{wire:?}"));
    assert_eq!(error.field(), field, "{error}");
    let text = error.to_string();
    assert!(text.contains(part), "{text} should say {part}");
    assert!(text.contains(field.path()), "{text} names {field}");
    assert_eq!(RequestError::from(error).reason, Reason::BadContract);
}

/// What stands beside `full` is refused by the name of its field, and not dropped.
#[test]
fn full_takes_nothing_beside_it() {
    refused(
        but(full(), |kv| kv.positions = "compacted".into()),
        Field::Positions,
        "takes no compacted positions",
    );
    refused(
        but(full(), |kv| kv.memory = "centroid".into()),
        Field::Memory,
        "takes no memory",
    );
    refused(
        but(full(), |kv| kv.memory_slots = Some(8)),
        Field::MemorySlots,
        "takes no memory slots",
    );
    refused(
        but(full(), |kv| kv.budget = 1024),
        Field::Budget,
        "takes no budget",
    );
    refused(
        but(full(), |kv| kv.head_budget = "column".into()),
        Field::HeadBudget,
        "takes no head budget",
    );
    refused(
        but(full(), |kv| kv.sinks = Some(4)),
        Field::Sinks,
        "takes no protected first positions",
    );
    refused(
        but(full(), |kv| kv.window = Some(64)),
        Field::Window,
        "takes no protected last positions",
    );
    refused(
        but(full(), |kv| kv.positions = "rope".into()),
        Field::Positions,
        "\"rope\" is not known",
    );
    refused(
        but(full(), |kv| kv.head_budget = "row".into()),
        Field::HeadBudget,
        "\"row\" is not known",
    );
}

#[test]
fn names_that_nobody_knows_and_numbers_that_do_not_fit_are_refused() {
    refused(
        but(learned(), |kv| kv.head_budget = "row".into()),
        Field::HeadBudget,
        "use one of: uniform, column, layer, group",
    );
    refused(
        but(learned(), |kv| kv.positions = "rope".into()),
        Field::Positions,
        "use one of: absolute, compacted",
    );
    refused(
        but(learned(), |kv| kv.memory = NO_MEMORY.into()),
        Field::MemorySlots,
        "kv.memory_slots is 128 but kv.memory is none",
    );
    refused(
        but(learned(), |kv| kv.memory_slots = None),
        Field::MemorySlots,
        "kv.memory is \"centroid\" but it gets 0 slots",
    );
    refused(
        but(learned(), |kv| kv.budget = 196),
        Field::Budget,
        "kv.budget is 196, the least is 197",
    );
    refused(
        but(learned(), |kv| kv.window = Some(u32::MAX)),
        Field::Budget,
        "the least is 4294967295",
    );
    refused(
        but(learned(), |kv| kv.policy = String::new()),
        Field::Policy,
        "kv.policy is not set",
    );
}

/// A rank does not guess: what the coordinator left open is refused.
#[test]
fn a_rank_takes_no_contract_with_open_fields() {
    let open = [
        (but(learned(), |kv| kv.memory.clear()), Field::Memory),
        (
            but(learned(), |kv| kv.head_budget.clear()),
            Field::HeadBudget,
        ),
        (but(learned(), |kv| kv.positions.clear()), Field::Positions),
        (but(learned(), |kv| kv.sinks = None), Field::Sinks),
        (but(learned(), |kv| kv.window = None), Field::Window),
    ];
    for (wire, field) in open {
        assert_eq!(
            Contract::try_from(&wire),
            Err(ContractError::Missing(field))
        );
    }
}

#[test]
fn a_request_gets_the_servers_defaults_for_what_it_leaves_open() {
    let completed = |asked: KvContract| {
        complete(&asked, &learned()).map(|contract| KvContract::from(&contract))
    };
    assert_eq!(completed(KvContract::default()), Ok(learned()));

    // Another policy takes no memory of the server's, and pools nothing that it cannot compare.
    let window = but(KvContract::default(), |kv| kv.policy = "window".into());
    let expected = but(learned(), |kv| {
        kv.policy = "window".into();
        kv.head_budget = "uniform".into();
        (kv.memory, kv.memory_slots) = (NO_MEMORY.into(), Some(0));
    });
    assert_eq!(completed(window), Ok(expected));

    // A small budget is left to the policy by half, after the memory's share.
    let small = but(KvContract::default(), |kv| kv.budget = 20);
    let expected = but(learned(), |kv| {
        (kv.budget, kv.window, kv.memory_slots) = (20, Some(3), Some(10));
    });
    assert_eq!(completed(small), Ok(expected));
}

/// Heads share a budget by their scores. Where scores cannot be compared, who asks for that is
/// told, and who leaves it open gets a budget for each head.
#[test]
fn heads_share_no_budget_by_scores_that_cannot_be_compared() {
    let window = but(KvContract::default(), |kv| kv.policy = "window".into());
    for name in ["column", "layer", "group"] {
        let asked = but(window.clone(), |kv| kv.head_budget = name.into());
        let error = complete(&asked, &learned()).unwrap_err();
        assert_eq!(error.field(), Field::HeadBudget);
        let said = error.to_string();
        assert!(said.contains("retention") && said.contains(name), "{said}");
        let learned_asks = but(learned(), |kv| kv.head_budget = name.into());
        assert!(complete(&learned_asks, &learned()).is_ok());
    }
    let uniform = but(window, |kv| kv.head_budget = "uniform".into());
    assert!(complete(&uniform, &learned()).is_ok());
}

/// The server's defaults are for policies that evict: `full` takes none of them. What the request
/// itself asks for beside `full` is refused.
#[test]
fn full_takes_none_of_the_servers_defaults() {
    assert_eq!(complete(&full(), &learned()), Ok(Contract::Full));

    let compacted = but(full(), |kv| kv.positions = "compacted".into());
    let refused = Err(ContractError::MeaninglessWithFull {
        field: Field::Positions,
    });
    assert_eq!(complete(&compacted, &learned()), refused);

    // Where `full` is the server's, a budget needs a policy to go with it.
    let budget = but(KvContract::default(), |kv| kv.budget = 64);
    let refused = Err(ContractError::MeaninglessWithFull {
        field: Field::Budget,
    });
    assert_eq!(complete(&budget, &full()), refused);
}
