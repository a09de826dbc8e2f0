//! State of one sequence on one rank: slots, what the policy knows about them, latent memory.

use std::sync::Arc;

use palimpsest_kernels::{Backend, LatentHead, PageShape};
use xxhash_rust::xxh3::Xxh3;

use super::pages::PagePool;
use super::{Contract, Positions};
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::policy::Policy;
use crate::shard::HeadLayout;
use crate::slots::HeadSlots;

/// Keys and values of a head's slots.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Entries {
    /// Keys, rotated `[len, D]`.
    pub keys: Vec<f32>,
    /// Values `[len, D]`.
    pub values: Vec<f32>,
}

impl Entries {
    /// Reads all slots of a head with `D = head_dim`, as f32.
    ///
    /// # Errors
    /// Those of [`palimpsest_kernels::Cache::read_slots`].
    pub fn read<B: Backend>(
        backend: &B,
        pages: &B::Pages,
        head: &HeadSlots,
        head_dim: usize,
    ) -> Result<Self> {
        let all: Vec<u32> = (0..head.len() as u32).collect();
        let mut keys = vec![0.0; all.len() * head_dim];
        let mut values = keys.clone();
        backend.read_slots(pages, head.view(head.len()), &all, &mut keys, &mut values)?;
        Ok(Self { keys, values })
    }
}

/// What a rank holds of one sequence.
pub struct SequenceCache {
    /// Heads of this rank, layer-major: `layer * kv_heads + kv_head`.
    pub heads: Vec<HeadSlots>,
    /// Which heads these are.
    pub layout: HeadLayout,
    /// Tokens read so far; also the absolute position of the next one.
    pub seen: u64,
    /// Rotary position of the next token.
    pub next_rotary: u64,
    /// Entries evicted so far, over all heads.
    pub evicted: u64,
    /// The request's contract.
    pub contract: Contract,
    /// Scores slots.
    pub policy: Arc<dyn Policy>,
    /// What remains of evicted entries.
    pub memory: Option<Memory>,
}

impl SequenceCache {
    /// An empty cache under `contract`, whose policy and memory these are.
    pub fn new(
        layout: HeadLayout,
        contract: Contract,
        policy: Arc<dyn Policy>,
        memory: Option<Memory>,
    ) -> Self {
        Self {
            heads: vec![HeadSlots::default(); layout.heads()],
            layout,
            seen: 0,
            next_rotary: 0,
            evicted: 0,
            contract,
            policy,
            memory,
        }
    }

    /// Adds `count` slots to every head: pages, positions and empty policy state.
    ///
    /// # Errors
    /// [`Error::PagesExhausted`] when the arena cannot hold them; the cache is unchanged.
    pub fn grow(&mut self, count: usize, pool: &mut PagePool) -> Result<()> {
        let missing =
            |head: &HeadSlots| (head.len() + count).div_ceil(PageShape::SLOTS) - head.pages.len();
        let needed: usize = self.heads.iter().map(missing).sum();
        if needed > pool.free() {
            return Err(Error::PagesExhausted {
                needed,
                free: pool.free(),
            });
        }
        let needs = self.policy.needs();
        let terms = needs.terms;
        let masses = needs.attention.kept(self.layout.query_heads);
        let compacted = self.contract.positions() == Positions::Compacted;
        let first =
            u32::try_from(self.seen).map_err(|_| Error::Contract("position beyond 2^32".into()))?;
        let next_rotary = self.next_rotary as u32;
        for head in &mut self.heads {
            let pages = missing(head);
            pool.take(pages, &mut head.pages)?;
            head.positions.extend(first..first + count as u32);
            if compacted {
                head.rotary.extend(next_rotary..next_rotary + count as u32);
            }
            let len = head.positions.len();
            head.terms.resize(len * terms, 0.0);
            head.mass.resize(masses, Vec::new());
            head.mass.iter_mut().for_each(|mass| mass.resize(len, 0.0));
        }
        self.seen += count as u64;
        self.next_rotary += count as u64;
        Ok(())
    }

    /// Returns every page to the pool, and the latent memory to the device.
    pub fn reclaim<B: Backend>(&mut self, backend: &B, pages: &mut B::Pages, pool: &mut PagePool) {
        for head in &mut self.heads {
            pool.give_back(&mut head.pages, 0);
        }
        self.heads.clear();
        if let Some(memory) = self.memory.take() {
            backend.free_latent(pages, memory.id);
        }
    }

    /// The latent memory, once there is something in it.
    pub fn filled_memory(&self) -> Option<&Memory> {
        self.memory.as_ref().filter(|_| self.evicted > 0)
    }

    /// Slots over all heads.
    pub fn held_entries(&self) -> u64 {
        self.heads.iter().map(|h| h.len() as u64).sum()
    }

    /// Pages over all heads.
    pub fn held_pages(&self) -> u64 {
        self.heads.iter().map(|h| h.pages.len() as u64).sum()
    }

    /// Bytes of latent memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.bytes as u64)
    }

    /// Bytes of what is held: entries of `entry_bytes` each, and the latent memory once there is
    /// something in it. What is set aside for more is not in it: the rest of pages, the notes of
    /// slots, and a memory that is still empty.
    pub fn held_bytes(&self, entry_bytes: u64) -> u64 {
        let memory = self.filled_memory().map_or(0, |memory| memory.bytes as u64);
        self.held_entries() * entry_bytes + memory
    }

    /// Digest of which positions are held: equal on every machine that made equal decisions.
    pub fn decision_digest(&self) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(&self.seen.to_le_bytes());
        for head in &self.heads {
            hash.update(&(head.len() as u64).to_le_bytes());
            for &p in &head.positions {
                hash.update(&p.to_le_bytes());
            }
        }
        hash.digest()
    }

    /// Digest of everything the next token depends on, keys and values included.
    ///
    /// # Errors
    /// Those of [`palimpsest_kernels::Cache::read_slots`] and
    /// [`palimpsest_kernels::LatentMemory::read_latent`].
    pub fn digest<B: Backend>(
        &self,
        backend: &B,
        pages: &B::Pages,
        head_dim: usize,
    ) -> Result<u64> {
        let mut hash = Xxh3::new();
        hash.update(&self.decision_digest().to_le_bytes());
        hash.update(&self.next_rotary.to_le_bytes());
        let needs = self.policy.needs();
        for head in &self.heads {
            head.rotary
                .iter()
                .for_each(|p| hash.update(&p.to_le_bytes()));
            let Entries { keys, values } = Entries::read(backend, pages, head, head_dim)?;
            head.sums
                .iter()
                .for_each(|m| hash.update(&m.to_bits().to_le_bytes()));
            let notes = if needs.notes {
                backend.read_notes(pages, head.view(head.len()))?
            } else {
                Vec::new()
            };
            notes
                .iter()
                .for_each(|note| hash.update(&note.to_le_bytes()));
            for v in keys
                .iter()
                .chain(&values)
                .chain(&head.terms)
                .chain(head.mass.iter().flatten())
            {
                hash.update(&v.to_bits().to_le_bytes());
            }
        }
        if let Some(memory) = &self.memory {
            for head in 0..self.heads.len() {
                let state = backend.read_latent(
                    pages,
                    LatentHead {
                        id: memory.id,
                        head,
                    },
                )?;
                state
                    .all()
                    .iter()
                    .for_each(|v| hash.update(&v.to_bits().to_le_bytes()));
            }
        }
        Ok(hash.digest())
    }

    /// Checks the invariants of the module; a violation is a bug.
    pub fn check_integrity(&self) {
        let terms = self.policy.needs().terms;
        for head in &self.heads {
            assert!(
                head.positions.windows(2).all(|p| p[0] < p[1]),
                "positions increase"
            );
            assert_eq!(
                head.pages.len(),
                head.len().div_ceil(PageShape::SLOTS),
                "pages fit the slots"
            );
            assert_eq!(head.terms.len(), head.len() * terms, "terms fit the slots");
            assert!(
                head.positions
                    .last()
                    .is_none_or(|&p| u64::from(p) + 1 == self.seen),
                "the last token is held"
            );
        }
    }
}
