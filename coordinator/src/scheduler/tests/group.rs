//! What a group must see: the rules of the contract, kept independently of the scheduler.

use std::collections::{BTreeMap, BTreeSet};

use palimpsest_proto::internal::v1::{SequenceOutput, SequenceStep, StepOutput, StepPlan};

use crate::scheduler::Limits;

/// A sequence that holds memory.
struct Held {
    /// Where its next token stands.
    position: u64,
    /// Bytes.
    cost: u64,
    /// Its token comes with the next step.
    due: bool,
}

/// A worker group that fails the test where a plan breaks the contract.
#[derive(Default)]
pub(super) struct Group {
    held: BTreeMap<u64, Held>,
    released: BTreeSet<u64>,
    pub(super) finished: BTreeSet<u64>,
    pub(super) decoding: BTreeSet<u64>,
    pub(super) paused: BTreeSet<u64>,
}

impl Group {
    /// Carries a plan out. `costs`: bytes of every sequence.
    pub(super) fn execute(
        &mut self,
        plan: &StepPlan,
        costs: &BTreeMap<u64, u64>,
        limits: &Limits,
    ) -> StepOutput {
        self.release(&plan.release);
        self.check_company(plan, limits);
        let mut output = StepOutput {
            epoch: plan.epoch,
            step: plan.step,
            ..Default::default()
        };
        for step in &plan.sequences {
            output.sequences.push(self.advance(step, costs, limits));
        }
        assert!(self.held.len() <= limits.max_running);
        assert!(
            self.held.values().map(|held| held.cost).sum::<u64>() <= limits.room.pages,
            "over-committed"
        );
        output
    }

    /// Whether the sequence holds memory.
    pub(super) fn holds(&self, id: u64) -> bool {
        self.held.contains_key(&id)
    }

    /// Sequences that hold memory.
    pub(super) fn held(&self) -> Vec<u64> {
        self.held.keys().copied().collect()
    }

    fn release(&mut self, ids: &[u64]) {
        for id in ids {
            assert!(
                self.held.remove(id).is_some(),
                "{id} released without memory"
            );
            assert!(self.released.insert(*id), "{id} released twice");
            self.decoding.remove(id);
        }
    }

    /// Every sequence that decodes is in the step, none twice, and prefill keeps to its budget.
    fn check_company(&self, plan: &StepPlan, limits: &Limits) {
        let present: BTreeSet<_> = plan.sequences.iter().map(|s| s.sequence).collect();
        assert_eq!(
            present.len(),
            plan.sequences.len(),
            "a sequence twice in a step"
        );
        for id in self.decoding.difference(&self.paused) {
            assert!(
                present.contains(id),
                "{id} decodes but was left out of a step"
            );
        }
        let prefill: u64 = plan
            .sequences
            .iter()
            .filter(|s| !self.decoding.contains(&s.sequence))
            .map(|s| s.tokens.len() as u64)
            .sum();
        let has_decodes = present.iter().any(|id| self.decoding.contains(id));
        let most = if has_decodes {
            limits.tokens.busy
        } else {
            limits.tokens.idle
        };
        assert!(prefill <= most);
    }

    /// Feeds a sequence, which begins with its init and never crosses a boundary.
    fn advance(
        &mut self,
        step: &SequenceStep,
        costs: &BTreeMap<u64, u64>,
        limits: &Limits,
    ) -> SequenceOutput {
        let id = step.sequence;
        assert!(!self.paused.contains(&id), "{id} is paused");
        if step.init.is_some() {
            let held = Held {
                position: 0,
                cost: costs[&id],
                due: false,
            };
            assert!(self.held.insert(id, held).is_none(), "{id} begins twice");
        }
        let held = self.held.get_mut(&id).expect("init comes first");
        assert_eq!(held.position, step.position);
        assert_eq!(step.tokens.is_empty(), held.due, "{id}");
        let end = held.position + step.tokens.len() as u64;
        let last = end.max(held.position + 1) - 1;
        assert_eq!(
            held.position / limits.stride,
            last / limits.stride,
            "{id} carried across a boundary"
        );
        held.position = end;
        if step.sample {
            self.decoding.insert(id);
        }
        // Every third sequence has a guide that is late with every other token.
        held.due = step.sample && id % 3 == 2 && end.is_multiple_of(2) && !held.due;
        SequenceOutput {
            sequence: id,
            token: (step.sample && !held.due).then_some(7),
            awaits_guide: held.due,
            ..Default::default()
        }
    }
}
