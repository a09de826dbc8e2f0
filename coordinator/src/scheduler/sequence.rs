//! Sequences in the hands of the scheduler: those that wait and those that run.

use std::cmp::Reverse;
use std::sync::Arc;

use bytes::Bytes;
use palimpsest_proto::internal::v1::{SequenceInit, SequenceStep};
use palimpsest_proto::v1::Sampling;

use super::capacity::Cost;
use super::lineage::{Lineage, Reuse};
use super::suspicion::Suspicion;
use crate::flow::Flow;
use crate::ids::SequenceId;
use crate::snapshots::Name;

/// What starts before what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(Class);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    WarmUp,
    Client(Reverse<i32>),
}

impl Priority {
    /// The sequence by which a group shows that it serves: before every client's, whatever number
    /// that has, and in steps of its own.
    pub const WARM_UP: Self = Self(Class::WarmUp);

    /// A client's; the larger number starts first.
    pub const fn client(number: i32) -> Self {
        Self(Class::Client(Reverse(number)))
    }
}

/// A sequence as it arrives.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Ids increase in the order of arrival.
    pub id: SequenceId,
    /// Who starts first.
    pub priority: Priority,
    /// Whose it is.
    pub flow: Flow,
    /// At least one token.
    pub prompt: Arc<[u32]>,
    /// Tokens to generate at most; 0: the prompt is read, and that is all.
    pub max_new_tokens: u32,
    /// Tokens that end the sequence.
    pub stop_ids: Arc<[u32]>,
    /// For the ranks, with the first piece.
    pub init: SequenceInit,
    /// What it reserves; must fit an empty arena.
    pub cost: Cost,
    /// Ask the ranks which positions they retain, whenever that changes after the prompt.
    pub retention_report: bool,
    /// Ask them too at every multiple of this many tokens, which is one of the stride, and where
    /// the prompt ends; 0: not.
    pub map_every: u64,
    /// What of it may be kept and used again; `None`: nothing.
    pub reuse: Option<Reuse>,
}

/// A place in the queue: by priority, then by arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) priority: Priority,
    pub(super) id: SequenceId,
}

/// What a sequence waits for, though there is room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Another one is reading what both begin with, up to this boundary.
    Follows { leader: SequenceId, until: u64 },
    /// It is on its way from the store.
    Fetches(Name),
}

/// A sequence that waits to start, or to start again.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) arrival: Arrival,
    /// What it answered in an earlier epoch.
    pub(super) answer: Vec<u32>,
    pub(super) paused: bool,
    /// Of earlier epochs.
    pub(super) suspicion: Suspicion,
    /// What it waits for beside its turn and room.
    pub(super) hold: Option<Hold>,
}

impl Waiting {
    /// Tokens of prompt and answer so far.
    pub(super) fn known_tokens(&self) -> u64 {
        (self.arrival.prompt.len() + self.answer.len()) as u64
    }
}

/// A sequence that holds memory.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) arrival: Arrival,
    /// Sampled tokens.
    pub(super) answer: Vec<u32>,
    /// Tokens that the ranks have seen; the position of the next one.
    pub(super) fed: u64,
    /// More tokens are known than the ranks have seen, beyond the last sampled one.
    pub(super) prefilling: bool,
    pub(super) paused: bool,
    /// The ranks have its init, so they must be told to release it.
    pub(super) known: bool,
    /// Tokens in the step that is under way.
    pub(super) in_step: u64,
    /// The ranks have read all that is known, and could not choose the next token yet.
    pub(super) due: bool,
    /// What groups that were lost say of it.
    pub(super) suspicion: Suspicion,
    /// Where it comes from, and what it leaves; `None`: nothing of it is kept.
    pub(super) lineage: Option<Lineage>,
}

impl Running {
    /// Tokens of prompt and answer so far.
    pub(super) fn known_tokens(&self) -> u64 {
        (self.arrival.prompt.len() + self.answer.len()) as u64
    }

    /// Whether all of it has been read, and nothing else was asked for.
    pub(super) fn is_read(&self) -> bool {
        self.arrival.max_new_tokens == 0 && self.fed == self.known_tokens()
    }

    /// Whether it is ready for its next token.
    pub(super) const fn decodes(&self) -> bool {
        !self.prefilling && !self.paused
    }

    /// Its next step as one of those that decode: its last token, or none where the choice of the
    /// next one is all that is missing.
    pub(super) fn decode(&mut self, stride: u64) -> SequenceStep {
        self.step(u64::from(!self.due), stride)
    }

    /// The next `count` known tokens.
    pub(super) fn step(&mut self, count: u64, stride: u64) -> SequenceStep {
        let known = self.arrival.prompt.iter().chain(&self.answer);
        let tokens = known
            .skip(self.fed as usize)
            .take(count as usize)
            .copied()
            .collect();
        let end = self.fed + count;
        let is_read = end == self.known_tokens();
        let sample = is_read && self.arrival.max_new_tokens > 0;
        self.prefilling = !sample;
        let init = (!self.known).then(|| self.init());
        self.known = true;
        self.in_step = count;
        let report = self.reports(end, stride);
        SequenceStep {
            sequence: self.arrival.id.0,
            init,
            tokens,
            position: self.fed,
            sample,
            retention_report: report,
            keep: Bytes::new(),
            next: self.scored_next(end),
        }
    }

    /// Whether the ranks say what they retain once they have seen `end` tokens.
    fn reports(&self, end: u64, stride: u64) -> bool {
        let is_read = end == self.known_tokens();
        let samples = is_read && self.arrival.max_new_tokens > 0;
        let ends_prompt = is_read && self.answer.is_empty();
        // Between boundaries only the tail grows, so these reports determine every other one.
        let is_last = samples && (ends_prompt || end.is_multiple_of(stride));
        let every = self.arrival.map_every;
        let is_mapped = every > 0 && (ends_prompt || end.is_multiple_of(every));
        (self.arrival.retention_report && is_last) || is_mapped
    }

    /// The token of the prompt at `end`, if its log-probability is wanted.
    fn scored_next(&self, end: u64) -> Option<u32> {
        let sampling = self.arrival.init.sampling.as_ref()?;
        sampling.prompt_logprobs?;
        self.arrival.prompt.get(end as usize).copied()
    }

    /// For the ranks, in its first step.
    fn init(&self) -> SequenceInit {
        let mut init = self.arrival.init.clone();
        let Some(began) = self.lineage.as_ref().and_then(Lineage::began) else {
            return init;
        };
        init.fork = began.name.bytes();
        let is_followed = init.guide.is_some() || init.calls.is_some();
        if is_followed || init.sampling.as_ref().is_some_and(counts_tokens) {
            let known = self.arrival.prompt.iter().chain(&self.answer);
            init.forked_tokens = known.take(began.position as usize).copied().collect();
        }
        init
    }
}

/// Whether a sampler goes by how often each token occurred.
fn counts_tokens(sampling: &Sampling) -> bool {
    sampling.repetition_penalty.unwrap_or(1.0) != 1.0
        || sampling.frequency_penalty != 0.0
        || sampling.presence_penalty != 0.0
}
