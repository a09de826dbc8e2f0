//! Sequences of a rank, between steps and in one.

use palimpsest_proto::internal::v1 as internal;

use crate::guides::Guided;
use crate::kv::SequenceCache;
use crate::sampler::Sampler;

/// One sequence on this rank.
pub(super) struct Sequence {
    pub(super) cache: SequenceCache,
    pub(super) sampler: Sampler,
    /// What its answer must be.
    pub(super) guide: Option<Guided>,
    /// Tokens before the answer.
    pub(super) prompt_tokens: u64,
}

impl Sequence {
    /// Takes note of the tokens from position `first` on: those of the prompt, and those of the
    /// answer.
    pub(super) fn observe(&mut self, tokens: &[u32], first: u64) {
        let prompt = self.prompt_tokens.saturating_sub(first);
        let prompt = prompt.min(tokens.len() as u64) as usize;
        let (prompt, answer) = tokens.split_at(prompt);
        self.sampler.observe(prompt, false);
        self.sampler.observe(answer, true);
        if let Some(guide) = &mut self.guide {
            guide.observe(answer);
        }
    }
}

/// A sequence of a step that passed its checks.
pub(super) struct Admitted<'a> {
    pub(super) step: &'a internal::SequenceStep,
    pub(super) sequence: Sequence,
}
