//! What happens at a boundary: which slots stay, and their compaction.

use std::ops::Range;

use super::cache::Cache;
use crate::error::Result;
use crate::shapes::HeadPages;

/// How many slots stay at a boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelectBudget {
    /// Head `i` belongs to pool `i % pools`; the number of heads is a multiple of it.
    pub pools: usize,
    /// Candidates that the heads of a pool keep on average.
    pub take: usize,
    /// Candidates that every head keeps for itself, at most `take`.
    pub floor: usize,
}

/// Slots of one KV head that are ranked at a boundary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectHead {
    /// `L`: its slots.
    pub len: usize,
    /// Slots that compete; those before and behind stay.
    pub candidates: Range<usize>,
}

/// A device that chooses the slots that stay and moves them together.
pub trait Boundary: Cache {
    /// Which slots of some heads stay.
    type Kept: Send;

    /// Chooses the slots that stay: every head keeps its best `floor` candidates, then the best of
    /// all that are left in a pool stay until its heads keep `take` on average. Ties go by head,
    /// then by slot, smaller first. The answer stays on the device, where [`Self::compact`]
    /// reads it.
    ///
    /// `scores`: `L` numbers of each head, one after the other, higher: keep. NaN loses against
    /// everything.
    fn select(
        &self,
        budget: SelectBudget,
        scores: &Self::Buffer,
        heads: &[SelectHead],
    ) -> Result<Self::Kept>;

    /// A choice that the host made: `lists[i]` are the slots that stay of head `i`, which has
    /// `lens[i]` slots, strictly increasing.
    fn keep_lists(&self, lens: &[usize], lists: &[Vec<u32>]) -> Result<Self::Kept>;

    /// Slots that stay, strictly increasing, for each head.
    fn kept(&self, kept: &Self::Kept) -> Result<Vec<Vec<u32>>>;

    /// Moves kept slots to the front, in order: the `i`-th of a head becomes its slot `i`, its note
    /// with it. The stored bits do not change.
    /// `heads` are those that were chosen from, before the compaction.
    fn compact(
        &self,
        pages: &mut Self::Pages,
        heads: &[HeadPages<'_>],
        kept: &Self::Kept,
    ) -> Result<()>;
}
