//! Sequences of a rank, between steps and in one.

use std::ops::Range;

use palimpsest_proto::internal::v1 as internal;

use super::pool::Pool;
use crate::decoder::{Known, Logits, Piece};
use crate::guides::{Guided, Pending};
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
    /// If the prompt's embedding is wanted.
    pub(super) pool: Option<Pool>,
    /// What its next token is chosen by, where an earlier step could not choose it.
    pub(super) due: Option<Due>,
}

/// A token that is still to be chosen.
pub(super) struct Due {
    /// `[V]`, over the whole vocabulary.
    pub(super) logits: Vec<f32>,
    /// The tokens that its guide allows, once they are known.
    pub(super) mask: Pending,
}

impl Sequence {
    /// Why the step cannot be done, if it cannot.
    pub(super) fn problem(
        &self,
        step: &internal::SequenceStep,
        stride: u64,
        vocabulary: usize,
    ) -> Option<String> {
        let (seen, count) = (self.cache.seen, step.tokens.len() as u64);
        let room = stride - seen % stride;
        if step.position != seen {
            let position = step.position;
            return Some(format!(
                "plan starts at position {position}, the sequence is at {seen}"
            ));
        }
        if self.due.is_some() {
            let is_choice = count == 0 && step.sample;
            let what = "its next token is due: a step without tokens chooses it";
            return (!is_choice).then(|| what.to_owned());
        }
        if count == 0 || count > room {
            return Some(format!(
                "{count} tokens at position {seen}; a step has 1 to {room}"
            ));
        }
        let mut tokens = step.tokens.iter().chain(&step.next);
        let bad = tokens.find(|&&t| t as usize >= vocabulary);
        bad.map(|t| format!("token {t} is outside the vocabulary of {vocabulary}"))
    }

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

impl Admitted<'_> {
    /// Whether the step only chooses a token that is due.
    pub(super) fn is_due(&self) -> bool {
        self.sequence.due.is_some()
    }

    /// The tokens of the prompt that follow those of the step, as far as their log-probabilities
    /// are wanted.
    pub(super) fn following(&self) -> Vec<u32> {
        let (prompt, position) = (self.sequence.prompt_tokens, self.step.position);
        if self.sequence.sampler.prompt_alternatives().is_none() {
            return Vec::new();
        }
        let next = self.step.tokens.iter().skip(1).copied();
        let left = prompt.saturating_sub(position + 1) as usize;
        let next = next.chain(self.step.next).take(left);
        next.skip(self.unscored_rows()).collect()
    }

    /// Rows of the step before the first one whose next token is scored.
    fn unscored_rows(&self) -> usize {
        let from = self.sequence.sampler.prompt_logprobs_from();
        let rows = from.saturating_sub(self.step.position + 1);
        usize::try_from(rows).unwrap_or(usize::MAX)
    }

    /// What the decoder does for it. `following`: see [`Self::following`].
    pub(super) fn piece<'p>(&'p mut self, following: &'p [u32]) -> Piece<'p> {
        let alternatives = self.sequence.sampler.prompt_alternatives().unwrap_or(0);
        let (states, first_row) = (self.pooled_rows(), self.unscored_rows());
        Piece {
            cache: &mut self.sequence.cache,
            tokens: &self.step.tokens,
            logits: if self.step.sample {
                Logits::Last
            } else {
                Logits::None
            },
            known: (!following.is_empty()).then_some(Known {
                next: following,
                first_row,
                alternatives,
            }),
            states,
        }
    }

    /// Whether the prompt ends with this step.
    pub(super) fn ends_prompt(&self) -> bool {
        let count = self.step.tokens.len() as u64;
        count > 0 && self.step.position + count == self.sequence.prompt_tokens
    }

    /// Rows of the step whose final states are pooled.
    fn pooled_rows(&self) -> Range<usize> {
        let left = self
            .sequence
            .prompt_tokens
            .saturating_sub(self.step.position);
        let count = (self.step.tokens.len() as u64).min(left) as usize;
        let pool = self.sequence.pool.as_ref();
        pool.map_or(0..0, |pool| pool.rows(count, self.ends_prompt()))
    }

    /// Position of the token that the step samples.
    pub(super) fn next_position(&self) -> u64 {
        self.sequence.cache.seen + self.step.tokens.len() as u64
    }
}
