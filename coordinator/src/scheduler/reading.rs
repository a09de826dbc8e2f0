//! Whose prompt is read next.
//!
//! The highest priority comes first, then the flow of which least was read. Within a flow the
//! prompt with the fewest tokens left comes first: so prompts of one length are done one after the
//! other and not all at the end, and a short question does not wait for a long document. A prompt
//! that others overtake grows shorter in this order by a share of what is read of them, so others
//! overtake it by a few times its own length and not for ever.

use std::collections::BTreeMap;

use super::sequence::Priority;
use super::shares::Shares;
use crate::flow::Flow;
use crate::ids::SequenceId;

/// Tokens of others for which a prompt counts as one token shorter.
pub(super) const PATIENCE: u64 = 3;

/// Prompts that are being read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    shares: Shares,
    prompts: BTreeMap<SequenceId, Prompt>,
}

#[derive(Debug)]
struct Prompt {
    flow: Flow,
    /// What its flow had been served when it came, and what was read of this prompt since.
    passed: u64,
}

/// A prompt that may be in the next step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) id: SequenceId,
    pub(super) priority: Priority,
    /// Tokens to be read.
    pub(super) left: u64,
}

impl Reading {
    /// A prompt is to be read.
    pub(super) fn enter(&mut self, id: SequenceId, flow: &Flow) {
        self.shares.enter(flow);
        let prompt = Prompt {
            flow: flow.clone(),
            passed: self.shares.served(flow),
        };
        self.prompts.insert(id, prompt);
    }

    /// It is read to its end, or has gone. Nothing changes for one that is not being read.
    pub(super) fn leave(&mut self, id: SequenceId) {
        if let Some(prompt) = self.prompts.remove(&id) {
            self.shares.leave(&prompt.flow);
        }
    }

    /// All that are being read, in the order in which they came.
    pub(super) fn ids(&self) -> impl Iterator<Item = SequenceId> {
        self.prompts.keys().copied()
    }

    /// Takes the next one out of `candidates`.
    pub(super) fn next(&self, candidates: &mut Vec<Candidate>) -> Option<Candidate> {
        let order = |one: &Candidate| {
            let (served, overtaken) = self.prompts.get(&one.id).map_or((0, 0), |prompt| {
                let served = self.shares.served(&prompt.flow);
                (served, served.saturating_sub(prompt.passed))
            });
            // What is left, in units of what others must be read to make up for it.
            let left = i128::from(one.left) * i128::from(PATIENCE) - i128::from(overtaken);
            (one.priority, served, left, one.id)
        };
        let next = candidates.iter().enumerate();
        let (index, _) = next.min_by_key(|(_, one)| order(one))?;
        Some(candidates.swap_remove(index))
    }

    /// So many tokens of a prompt are read.
    pub(super) fn serve(&mut self, id: SequenceId, tokens: u64) {
        if let Some(prompt) = self.prompts.get_mut(&id) {
            self.shares.serve(&prompt.flow, tokens);
            prompt.passed = prompt.passed.saturating_add(tokens);
        }
    }
}
