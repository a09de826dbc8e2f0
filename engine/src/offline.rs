//! Sequences driven by hand: what benchmarks, calibration and evaluation use instead of a server.

pub mod oracle;
pub mod reconstruction;

use std::sync::Arc;

use palimpsest_kernels::Backend;
use palimpsest_proto::v1::Sampling;

use crate::decoder::{Answer, Choices, Logits, Piece};
use crate::error::Result;
use crate::kv::{Contract, Entries, SequenceCache};
use crate::policy::Policy;
use crate::runner::Runner;
use crate::sampler::Sampler;
use crate::slots::HeadSlots;
use crate::snapshot::Snapshot;

/// A sequence on a runner that nothing else uses meanwhile.
pub struct OfflineSequence<'a, B: Backend> {
    runner: &'a mut Runner<B>,
    cache: SequenceCache,
}

/// A place in a sequence that it can go back to.
pub struct Mark {
    heads: Vec<HeadSlots>,
    seen: u64,
    next_rotary: u64,
}

impl<'a, B: Backend> OfflineSequence<'a, B> {
    /// An empty sequence under `contract`.
    ///
    /// # Errors
    /// [`crate::Error::Contract`] for a policy or memory that is not known, or a memory that is too
    /// small; those of the kernels when the device has no room for the memory.
    pub fn open(runner: &'a mut Runner<B>, contract: Contract) -> Result<Self> {
        let cache = runner.open_cache(contract)?;
        Ok(Self { runner, cache })
    }

    /// An empty sequence that keeps everything, while `policy` observes it.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn watched(runner: &'a mut Runner<B>, policy: Arc<dyn Policy>) -> Result<Self> {
        let cache = runner.open_cache_under(Contract::Full, policy)?;
        Ok(Self { runner, cache })
    }

    /// Tokens between two boundaries.
    pub fn stride(&self) -> usize {
        self.runner.decoder.stride() as usize
    }

    /// The sequence's state.
    pub fn cache(&mut self) -> &mut SequenceCache {
        &mut self.cache
    }

    /// The runner.
    pub fn runner(&mut self) -> &mut Runner<B> {
        self.runner
    }

    /// Reads tokens, any number of them, and returns the wanted logits `[rows, V]` flattened.
    ///
    /// # Errors
    /// Those of [`crate::decoder::Decoder::forward`].
    pub fn feed(&mut self, tokens: &[u32], logits: Logits) -> Result<Vec<f32>> {
        let stride = self.stride();
        let mut rest = tokens;
        let mut wanted = Vec::new();
        while !rest.is_empty() {
            let room = stride - self.cache.seen as usize % stride;
            let (piece, after) = rest.split_at(room.min(rest.len()));
            rest = after;
            let logits = if logits == Logits::Last && !rest.is_empty() {
                Logits::None
            } else {
                logits
            };
            let mut pieces = [Piece {
                cache: &mut self.cache,
                tokens: piece,
                logits,
                known: None,
                states: 0..0,
            }];
            let mut out = self
                .runner
                .decoder
                .forward(&mut self.runner.arena, &mut pieces)?;
            wanted.append(&mut out[0]);
        }
        Ok(wanted)
    }

    /// Cached keys and values of head `layer * K + kv_head`.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn entries(&self, head: usize) -> Result<Entries> {
        let arena = &self.runner.arena;
        Entries::read(
            self.runner.decoder.backend(),
            &arena.pages,
            &self.cache.heads[head],
            arena.shape.head_dim,
        )
    }

    /// Begins again with nothing read, under the same contract.
    ///
    /// # Errors
    /// [`crate::Error::Contract`] for a policy or memory that is not known, or a memory that is too
    /// small; those of the kernels when the device has no room for the memory.
    pub fn restart(&mut self) -> Result<()> {
        self.runner.reclaim(&mut self.cache);
        let (contract, policy) = (self.cache.contract.clone(), self.cache.policy.clone());
        self.cache = self.runner.open_cache_under(contract, policy)?;
        Ok(())
    }

    /// The place where the sequence stands.
    pub fn mark(&self) -> Mark {
        Mark {
            heads: self.cache.heads.clone(),
            seen: self.cache.seen,
            next_rotary: self.cache.next_rotary,
        }
    }

    /// Forgets what was read since `mark`, so that something else can be read in its place. Returns
    /// whether it could: after an eviction there is no way back, and nothing changes.
    pub fn rewind(&mut self, mark: &Mark) -> bool {
        let stride = self.stride() as u64;
        let cache = &mut self.cache;
        // Between two boundaries slots are only added at the end, and what changes of the others is
        // in the mark.
        if cache.contract.bounded().is_some() && mark.seen / stride != cache.seen / stride {
            return false;
        }
        for (head, old) in cache.heads.iter_mut().zip(&mark.heads) {
            self.runner
                .arena
                .pool
                .give_back(&mut head.pages, old.pages.len());
            *head = old.clone();
        }
        (cache.seen, cache.next_rotary) = (mark.seen, mark.next_rotary);
        true
    }

    /// Copies the state of the sequence.
    ///
    /// # Errors
    /// Those of [`Snapshot::take`].
    pub fn snapshot(&self) -> Result<Snapshot> {
        let (decoder, arena) = (&self.runner.decoder, &self.runner.arena);
        Snapshot::take(decoder.backend(), arena, &self.cache)
    }

    /// An empty sequence under a snapshot's contract, which goes on from it.
    ///
    /// # Errors
    /// As [`Self::open`], and those of [`Snapshot::restore`].
    pub fn resume(runner: &'a mut Runner<B>, snapshot: &Snapshot) -> Result<Self> {
        let mut sequence = Self::open(runner, snapshot.contract().clone())?;
        let Self { runner, cache } = &mut sequence;
        snapshot.restore(runner.decoder.backend(), &mut runner.arena, cache)?;
        Ok(sequence)
    }

    /// Digest of everything the next token depends on.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn digest(&self) -> Result<u64> {
        let arena = &self.runner.arena;
        self.cache.digest(
            self.runner.decoder.backend(),
            &arena.pages,
            arena.shape.head_dim,
        )
    }

    /// Returns the sequence's memory. Dropping does the same.
    pub fn close(self) {}
}

impl<B: Backend> Drop for OfflineSequence<'_, B> {
    fn drop(&mut self) {
        self.runner.reclaim(&mut self.cache);
    }
}

/// Sequences on a runner that advance together, for benchmarks of a batch.
pub struct OfflineBatch<'a, B: Backend> {
    runner: &'a mut Runner<B>,
    caches: Vec<SequenceCache>,
}

impl<'a, B: Backend> OfflineBatch<'a, B> {
    /// `count` empty sequences under `contract`.
    ///
    /// # Errors
    /// [`crate::Error::Contract`] for a policy or memory that is not known, or a memory that is too
    /// small; those of the kernels when the device has no room for the memory.
    pub fn open(runner: &'a mut Runner<B>, contract: &Contract, count: usize) -> Result<Self> {
        let caches = (0..count)
            .map(|_| runner.open_cache(contract.clone()))
            .collect::<Result<_>>()?;
        Ok(Self { runner, caches })
    }

    /// The runner.
    pub fn runner(&self) -> &Runner<B> {
        self.runner
    }

    /// Gives every sequence `count` slots as if it had read as many tokens, without computing them:
    /// their keys and values are what the pages hold. The time of a step does not depend on that,
    /// what it answers does.
    ///
    /// # Errors
    /// [`crate::Error::PagesExhausted`].
    pub fn assume(&mut self, count: usize) -> Result<()> {
        self.caches
            .iter_mut()
            .try_for_each(|cache| cache.grow(count, &mut self.runner.arena.pool))
    }

    /// Every sequence reads `tokens`, all of them in the same steps; returns the logits after each
    /// one's last token.
    ///
    /// # Errors
    /// Those of [`crate::decoder::Decoder::forward`].
    pub fn feed(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let stride = self.runner.decoder.stride() as usize;
        let (mut rest, mut last) = (tokens, Vec::new());
        while !rest.is_empty() {
            let seen = self.caches.first().map_or(0, |cache| cache.seen as usize);
            let (piece, after) = rest.split_at((stride - seen % stride).min(rest.len()));
            rest = after;
            let logits = if rest.is_empty() {
                Logits::Last
            } else {
                Logits::None
            };
            let mut pieces: Vec<_> = self
                .caches
                .iter_mut()
                .map(|cache| Piece {
                    cache,
                    tokens: piece,
                    logits,
                    known: None,
                    states: 0..0,
                })
                .collect();
            last = self
                .runner
                .decoder
                .forward(&mut self.runner.arena, &mut pieces)?;
        }
        Ok(last)
    }

    /// Every sequence reads its token and chooses the likeliest one after it, as a server's step
    /// does: where the device samples, no logits leave it. Returns the chosen tokens; `None` where
    /// no logit is a number.
    ///
    /// # Errors
    /// Those of [`crate::decoder::Decoder::forward`].
    ///
    /// # Panics
    /// Unless there is one token for each sequence.
    pub fn decode(&mut self, tokens: &[u32]) -> Result<Vec<Option<u32>>> {
        assert_eq!(tokens.len(), self.caches.len(), "a token for each sequence");
        let sampling = Sampling {
            temperature: Some(0.0),
            ..Sampling::default()
        };
        let sampler = Sampler::new(sampling, Vec::new());
        let mut choices = Choices::default();
        let mut pieces = Vec::with_capacity(tokens.len());
        for (cache, token) in self.caches.iter_mut().zip(tokens) {
            choices.push(Some(sampler.item(&[], cache.seen + 1)), None);
            pieces.push(Piece {
                cache,
                tokens: std::slice::from_ref(token),
                logits: Logits::Last,
                known: None,
                states: 0..0,
            });
        }
        let runner = &mut *self.runner;
        let answers = runner
            .decoder
            .step(&mut runner.arena, &mut pieces, &mut choices)?;
        let chosen = |answer| match answer {
            Answer::Token(token) => token,
            Answer::Logits(_) => None,
        };
        Ok(answers.into_iter().map(chosen).collect())
    }
}

impl<B: Backend> Drop for OfflineBatch<'_, B> {
    fn drop(&mut self) {
        let runner = &mut *self.runner;
        self.caches
            .iter_mut()
            .for_each(|cache| runner.reclaim(cache));
    }
}
