//! Words of the service in those of the command line.

use palimpsest_proto::contract::Field;

/// Fields of a contract with the flags that set them. A name that begins another one stands behind
/// it.
const FLAGS: [(Field, &str); 8] = [
    (Field::MemorySlots, "--memory-slots"),
    (Field::Memory, "--memory"),
    (Field::Budget, "--kv-budget"),
    (Field::Policy, "--policy"),
    (Field::HeadBudget, "--head-budget"),
    (Field::Sinks, "--sinks"),
    (Field::Window, "--window"),
    (Field::Positions, "--positions"),
];

/// What is wrong with a contract, with the flags that were typed in place of the fields on the
/// wire.
pub fn with_flags(said: &str) -> String {
    let mut text = said.to_owned();
    for (field, flag) in FLAGS {
        text = text.replace(field.path(), flag);
    }
    text
}

#[cfg(test)]
mod tests {
    use palimpsest_proto::contract::{Bounded, HeadBudget, PolicyName, Positions};

    use super::*;

    #[test]
    fn a_refusal_names_the_flag() {
        let bounded = Bounded {
            policy: PolicyName::new("window").expect("a name"),
            budget: 1,
            head_budget: HeadBudget::Uniform,
            sinks: 4,
            window: 128,
            positions: Positions::Absolute,
            memory: None,
        };
        let said = bounded.check().expect_err("too small").to_string();
        assert!(said.starts_with("kv.budget is 1"), "{said}");
        assert!(with_flags(&said).starts_with("--kv-budget is 1, the least is 133"));
        let said = with_flags("kv.memory_slots is 3 but kv.memory is none");
        assert_eq!(said, "--memory-slots is 3 but --memory is none");
    }
}
