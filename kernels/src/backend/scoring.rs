//! Notes beside slots, and the scores of slots.

use super::cache::Cache;
use crate::error::Result;
use crate::score::{NoteItem, ScoreItem};
use crate::shapes::HeadPages;

/// A device that keeps a note with each slot and scores slots by rules ([`crate::score`]).
pub trait Scoring: Cache {
    /// Keeps a note with each new slot, and the slot's position. A note is `values[row, kv_head]`
    /// as f32, or the pair `values[row, kv_head]` and `values[row, second]` as f16. `values`: `[T,
    /// width]`.
    fn note(
        &self,
        pages: &mut Self::Pages,
        values: &Self::Buffer,
        width: usize,
        items: &[NoteItem<'_>],
    ) -> Result<()>;

    /// The 32 bits of the note of each slot of a head. Those of a slot without a note are
    /// undefined.
    fn read_notes(&self, pages: &Self::Pages, head: HeadPages<'_>) -> Result<Vec<u32>>;

    /// Keeps a note with each slot of a head, as [`Self::read_notes`] read them, and the slots'
    /// absolute positions. `notes`, `positions`: `[head.len]`.
    fn write_notes(
        &self,
        pages: &mut Self::Pages,
        head: HeadPages<'_>,
        notes: &[u32],
        positions: &[u32],
    ) -> Result<()>;

    /// Scores all slots of all items, one item after the other in `out`, where
    /// [`Boundary::select`](super::Boundary::select) reads them; `at` is the position of the last
    /// token read.
    fn score(
        &self,
        pages: &Self::Pages,
        at: u32,
        items: &[ScoreItem<'_>],
        out: &mut Self::Buffer,
    ) -> Result<()>;
}
