//! Sequences of a rank, between steps and in one.

use palimpsest_proto::internal::v1 as internal;

use crate::kv::SequenceCache;
use crate::sampler::Sampler;

/// One sequence on this rank.
pub(super) struct Sequence {
    pub(super) cache: SequenceCache,
    pub(super) sampler: Sampler,
    /// Tokens before the answer.
    pub(super) prompt_tokens: u64,
}

/// A sequence of a step that passed its checks.
pub(super) struct Admitted<'a> {
    pub(super) step: &'a internal::SequenceStep,
    pub(super) sequence: Sequence,
}

impl Admitted<'_> {
    /// Position of the token that the step samples.
    pub(super) fn next_position(&self) -> u64 {
        self.sequence.cache.seen + self.step.tokens.len() as u64
    }
}
