//! A snapshot: the whole state of a sequence at a position, in host memory.
//!
//! It holds all that the next token depends on, head by head and bit for bit: slots as they are
//! stored, their positions, what the policy knows of them, and the latent memory. So a sequence
//! that goes on from one cannot be told from one that read the tokens.
//!
//! How many entries were evicted is not in it. Every token gives every head a slot, so a head that
//! holds `L` slots at position `N` has evicted `N - L`. That stays true when heads move to other
//! ranks, where a sum over the heads of a rank would not.

mod error;
mod extent;
pub mod file;
mod join;
mod latent;

use std::fmt;

use palimpsest_kernels::{
    Backend, HeadPages, LatentHead, LatentKind, LatentState, PageShape, StoredParts,
};

pub use self::error::SnapshotError;
pub use self::extent::Extent;
use self::latent::LatentArrays;
use crate::decoder::Arena;
use crate::error::{Error, Result};
use crate::kv::{Contract, PagePool, Positions, SequenceCache};
use crate::slots::HeadSlots;

/// The whole state of a sequence on one rank at a position, normally a boundary.
#[derive(Clone, PartialEq)]
pub struct Snapshot {
    extent: Extent,
    /// Of the pages that the slots come from.
    shape: PageShape,
    contract: Contract,
    /// Name of the policy: that of the contract, except where one only observes.
    policy: String,
    /// Whether the policy keeps numbers of each query head, rather than of each KV head.
    per_query_head: bool,
    memory: Option<LatentKind>,
    position: u64,
    next_rotary: u64,
    /// Heads, layer-major: `layer * kv_heads + kv_head`.
    heads: Vec<HeadState>,
    /// Slots of all heads, as [`palimpsest_kernels::Cache::save_slots`] gives them.
    slots: Vec<u8>,
}

/// What is held of one KV head beside its slots; see [`HeadSlots`].
#[derive(Debug, Clone, Default, PartialEq)]
struct HeadState {
    positions: Vec<u32>,
    /// Empty where rotary positions are the absolute ones.
    rotary: Vec<u32>,
    terms: Vec<f32>,
    mass: Vec<Vec<f32>>,
    sums: Vec<f64>,
    /// Empty where the policy keeps none.
    notes: Vec<u32>,
    latent: Option<LatentArrays>,
}

impl HeadState {
    fn of(head: &HeadSlots, notes: Vec<u32>, latent: Option<LatentState>) -> Self {
        Self {
            positions: head.positions.clone(),
            rotary: head.rotary.clone(),
            terms: head.terms.clone(),
            mass: head.mass.clone(),
            sums: head.sums.clone(),
            notes,
            latent: latent.map(LatentArrays::from),
        }
    }

    /// Gives a head all but its pages.
    fn put(&self, head: &mut HeadSlots) {
        head.positions.clone_from(&self.positions);
        head.rotary.clone_from(&self.rotary);
        head.terms.clone_from(&self.terms);
        head.mass.clone_from(&self.mass);
        head.sums.clone_from(&self.sums);
    }

    fn len(&self) -> usize {
        self.positions.len()
    }

    fn bytes(&self) -> usize {
        let words = self.positions.len() + self.rotary.len() + self.notes.len() + self.terms.len();
        let mass: usize = self.mass.iter().map(Vec::len).sum();
        let latent = self.latent.as_ref().map_or(0, LatentArrays::bytes);
        4 * (words + mass) + 8 * self.sums.len() + latent + size_of::<Self>()
    }
}

/// Views of the slots of all heads, for kernels.
fn views(cache: &SequenceCache) -> Vec<HeadPages<'_>> {
    cache
        .heads
        .iter()
        .map(|head| head.view(head.len()))
        .collect()
}

impl Snapshot {
    /// Copies the state of a sequence. Nothing of the sequence changes.
    ///
    /// # Errors
    /// Those of [`palimpsest_kernels::Cache::save_slots`],
    /// [`palimpsest_kernels::Scoring::read_notes`] and
    /// [`palimpsest_kernels::LatentMemory::read_latent`].
    pub fn take<B: Backend>(backend: &B, arena: &Arena<B>, cache: &SequenceCache) -> Result<Self> {
        let needs = cache.policy.needs();
        let mut heads = Vec::with_capacity(cache.heads.len());
        for (index, head) in cache.heads.iter().enumerate() {
            let notes = if needs.notes {
                backend.read_notes(&arena.pages, head.view(head.len()))?
            } else {
                Vec::new()
            };
            let latent = cache.memory.as_ref().map(|memory| {
                let head = LatentHead {
                    id: memory.id,
                    head: index,
                };
                backend.read_latent(&arena.pages, head)
            });
            heads.push(HeadState::of(head, notes, latent.transpose()?));
        }
        let bytes = |head: &HeadState| StoredParts::of(arena.shape, head.len()).bytes();
        let mut slots = vec![0; heads.iter().map(bytes).sum()];
        backend.save_slots(&arena.pages, &views(cache), &mut slots)?;
        let snapshot = Self {
            extent: Extent::of(&cache.layout),
            shape: arena.shape,
            contract: cache.contract.clone(),
            policy: cache.policy.name().to_owned(),
            per_query_head: needs.attention.is_per_query_head(),
            memory: cache.memory.as_ref().map(|memory| memory.kind),
            position: cache.seen,
            next_rotary: cache.next_rotary,
            heads,
            slots,
        };
        debug_assert_eq!(
            snapshot.evicted(),
            cache.evicted,
            "see the head of the module"
        );
        Ok(snapshot)
    }

    /// Gives the state to an empty sequence that was opened under the same contract.
    ///
    /// # Errors
    /// [`Error::Snapshot`] for a sequence that is not empty, and for one of another contract, of
    /// other heads or in an arena of other pages; [`Error::PagesExhausted`]; those of the kernels.
    /// The sequence is then as empty as before, and its pages are back in the pool.
    pub fn restore<B: Backend>(
        &self,
        backend: &B,
        arena: &mut Arena<B>,
        cache: &mut SequenceCache,
    ) -> Result<()> {
        self.check(arena.shape, cache)?;
        self.take_pages(&mut arena.pool, cache)?;
        for (state, head) in self.heads.iter().zip(&mut cache.heads) {
            state.put(head);
        }
        if let Err(error) = self.fill(backend, &mut arena.pages, cache) {
            empty(backend, arena, cache);
            return Err(error);
        }
        cache.seen = self.position;
        cache.next_rotary = self.next_rotary;
        cache.evicted = self.evicted();
        cache.check_integrity();
        Ok(())
    }

    /// Tokens that it is the state of; the absolute position of the next one.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What the sequence was held to.
    pub fn contract(&self) -> &Contract {
        &self.contract
    }

    /// Whose state it is.
    pub fn extent(&self) -> &Extent {
        &self.extent
    }

    /// Bytes of host memory that it takes.
    pub fn bytes(&self) -> usize {
        let heads: usize = self.heads.iter().map(HeadState::bytes).sum();
        size_of::<Self>() + self.slots.len() + heads
    }

    /// Lines of numbers that the policy keeps with a KV head.
    fn lines(&self) -> usize {
        lines(self.per_query_head, &self.extent)
    }

    /// Entries evicted so far, over all heads here.
    fn evicted(&self) -> u64 {
        let evicted = |head: &HeadState| self.position - head.len() as u64;
        self.heads.iter().map(evicted).sum()
    }

    /// Whether the sequence is empty, and such that it could have come to this state.
    fn check(&self, shape: PageShape, cache: &SequenceCache) -> Result<()> {
        if cache.seen > 0 {
            return Err(SnapshotError::NotEmpty { seen: cache.seen }.into());
        }
        let pages =
            |shape: &PageShape| format!("{} heads of {}", shape.dtype.name(), shape.head_dim);
        error::same("contract", &self.contract, &cache.contract, |contract| {
            format!("{contract:?}")
        })?;
        let policy = cache.policy.name().to_owned();
        error::same("policy", &self.policy, &policy, String::clone)?;
        error::same("cache", &self.shape, &shape, pages)?;
        let extent = Extent::of(&cache.layout);
        error::same(
            "part of a model",
            &self.extent,
            &extent,
            ToString::to_string,
        )?;
        let memory = cache.memory.as_ref().map(|memory| memory.kind);
        error::same("latent memory", &self.memory, &memory, |kind| {
            format!("{kind:?}")
        })?;
        self.check_needs(cache)
    }

    /// Whether there is what the policy keeps, and nothing else.
    fn check_needs(&self, cache: &SequenceCache) -> Result<()> {
        let needs = cache.policy.needs();
        let lines = needs.attention.kept(cache.layout.query_heads);
        let compacted = self.contract.positions() == Positions::Compacted;
        let fits = |head: &HeadState| {
            let len = head.len();
            head.terms.len() == len * needs.terms
                && head.notes.len() == if needs.notes { len } else { 0 }
                && head.rotary.len() == if compacted { len } else { 0 }
                && head.mass.len() == lines
                && head.mass.iter().all(|line| line.len() == len)
        };
        error::possible(self.heads.iter().all(fits), || {
            format!("it has other numbers than the policy {} keeps", self.policy)
        })?;
        Ok(())
    }

    /// Takes as many pages as the heads need, or none.
    fn take_pages(&self, pool: &mut PagePool, cache: &mut SequenceCache) -> Result<()> {
        let pages = |head: &HeadState| head.len().div_ceil(PageShape::SLOTS);
        let needed = self.heads.iter().map(pages).sum();
        let free = pool.free();
        if needed > free {
            return Err(Error::PagesExhausted { needed, free });
        }
        for (state, head) in self.heads.iter().zip(&mut cache.heads) {
            pool.take(pages(state), &mut head.pages)?;
        }
        Ok(())
    }

    /// Writes what lies on the device.
    fn fill<B: Backend>(
        &self,
        backend: &B,
        pages: &mut B::Pages,
        cache: &SequenceCache,
    ) -> Result<()> {
        backend.load_slots(pages, &views(cache), &self.slots)?;
        for (index, (state, head)) in self.heads.iter().zip(&cache.heads).enumerate() {
            if cache.policy.needs().notes {
                let view = head.view(head.len());
                backend.write_notes(pages, view, &state.notes, &state.positions)?;
            }
            if let (Some(memory), Some(latent)) = (&cache.memory, &state.latent) {
                let head = LatentHead {
                    id: memory.id,
                    head: index,
                };
                backend.write_latent(pages, head, &latent.to_state())?;
            }
        }
        Ok(())
    }
}

/// Nothing of what it holds: that tells of the tokens.
impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, bytes) = (self.position, self.bytes());
        write!(f, "Snapshot({}, {at} tokens, {bytes} bytes)", self.extent)
    }
}

/// Lines of numbers that a policy keeps with a KV head: one for each query head, or a single one.
fn lines(per_query_head: bool, extent: &Extent) -> usize {
    if per_query_head {
        extent.queries.len()
    } else {
        1
    }
}

/// Takes back what a restore that failed has given to a sequence.
fn empty<B: Backend>(backend: &B, arena: &mut Arena<B>, cache: &mut SequenceCache) {
    for head in &mut cache.heads {
        arena.pool.give_back(&mut head.pages, 0);
        *head = HeadSlots::default();
    }
    let Some(memory) = &cache.memory else { return };
    for head in 0..cache.heads.len() {
        let head = LatentHead {
            id: memory.id,
            head,
        };
        // On a device that refuses this too, the memory goes back with the sequence.
        let nothing = LatentState::empty(memory.kind);
        if let Err(error) = backend.write_latent(&mut arena.pages, head, &nothing) {
            tracing::debug!("a latent memory was not emptied: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
