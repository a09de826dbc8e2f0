//! What a running sequence began with, and the snapshots that it leaves behind.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::snapshots::{Chain, Found, Name};

/// Strides of a prompt from which on a second boundary of it is kept, beside the last one: the next
/// question about the same text parts from this one in its last stride.
const LONG_PROMPT: u64 = 4;

/// What of a sequence may be kept, and used again by others.
#[derive(Debug, Clone)]
pub struct Reuse {
    /// The names of its prompt's states.
    pub chain: Arc<Chain>,
    /// Positions of its prompt before which a state is to be kept, as the client marked them.
    pub marks: Vec<u64>,
    /// Whether the last boundary of the answer is kept as well. Where everything is kept, each
    /// such snapshot is as large as the whole text.
    pub rolls: bool,
}

/// The same, of a sequence that runs.
#[derive(Debug)]
pub(super) struct Lineage {
    chain: Chain,
    stride: u64,
    /// Tokens of the prompt.
    prompt: u64,
    /// Boundaries ahead whose states are to be kept.
    keeps: BTreeSet<u64>,
    rolls: bool,
    /// What it began with, if that was not nothing.
    began: Option<Found>,
    /// What was kept of it last, or what it began with.
    last: Option<Found>,
    /// Kept of the prompt's end, and of the answer so far.
    ends: [Option<Name>; 2],
}

impl Lineage {
    /// The lineage of a sequence that knows `tokens`, of which `prompt` are its prompt's, and that
    /// begins with `began`.
    pub(super) fn new(reuse: &Reuse, tokens: &[u32], prompt: u64, began: Option<Found>) -> Self {
        let mut chain = (*reuse.chain).clone();
        let stride = chain.stride();
        let rest = tokens.get(chain.end() as usize..).unwrap_or_default();
        chain.extend(rest.chunks_exact(stride as usize));
        let mut lineage = Self {
            chain,
            stride,
            prompt,
            keeps: BTreeSet::new(),
            rolls: reuse.rolls,
            began,
            last: began,
            ends: [None; 2],
        };
        lineage.keep(prompt);
        if prompt / stride >= LONG_PROMPT {
            lineage.keep((prompt / stride - 1) * stride);
        }
        reuse.marks.iter().for_each(|&mark| lineage.keep(mark));
        lineage
    }

    /// The names of its states.
    pub(super) const fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Tokens that it did not have to read.
    pub(super) fn reused(&self) -> u64 {
        self.began.map_or(0, |began| began.position)
    }

    /// What it begins with.
    pub(super) const fn began(&self) -> Option<Found> {
        self.began
    }

    /// Has the last boundary up to `position` kept, if it is still to come.
    pub(super) fn keep(&mut self, position: u64) {
        let at = position.min(self.prompt) / self.stride * self.stride;
        if at > self.reused() {
            self.keeps.insert(at);
        }
    }

    /// The name under which the state at `end` is to be kept, if it is. `tokens`: all that the
    /// sequence has read by then.
    pub(super) fn wanted_at<'t>(
        &mut self,
        end: u64,
        tokens: impl Iterator<Item = &'t u32>,
    ) -> Option<Found> {
        if !end.is_multiple_of(self.stride) {
            return None;
        }
        let missing: Vec<u32> = tokens.skip(self.chain.end() as usize).copied().collect();
        self.chain
            .extend(missing.chunks_exact(self.stride as usize));
        let is_wanted = self.keeps.remove(&end) || (self.rolls && end > self.prompt);
        let name = self.chain.at(end).filter(|_| is_wanted)?;
        Some(Found {
            position: end,
            name,
        })
    }

    /// What was kept of it last, or what it began with.
    pub(super) const fn last(&self) -> Option<Found> {
        self.last
    }

    /// It was kept. Returns what it replaces.
    pub(super) fn took(&mut self, found: Found) -> Option<Name> {
        self.last = Some(found);
        let of_answer = usize::from(found.position > self.prompt);
        let before = self.ends[of_answer].replace(found.name);
        before.filter(|_| of_answer == 1)
    }

    /// What is worth to outlive the ranks: the end of the prompt, and of the answer.
    pub(super) fn ends(&self) -> impl Iterator<Item = Name> {
        self.ends.into_iter().flatten()
    }
}
