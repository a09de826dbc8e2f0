//! The slot arena: pages of keys and values.

use std::ops::Range;

use super::buffers::Buffers;
use crate::error::Result;
use crate::shapes::{HeadPages, PageShape, QkvShape};

/// Where `split_qkv` writes the keys and values of one KV head of one sequence.
#[derive(Debug, Clone)]
pub struct SplitItem<'a> {
    /// Token rows of this sequence in the step.
    pub rows: Range<usize>,
    /// KV head of this rank.
    pub kv_head: usize,
    /// The head's slots; row `rows.start + i` becomes slot `slots.len + i`.
    pub slots: HeadPages<'a>,
}

/// RMS norms of query heads and key heads, with weights in an array `T`.
pub struct QkNorm<'a, T: ?Sized> {
    /// Weight of query heads `[D]`.
    pub query: &'a T,
    /// Weight of key heads `[D]`.
    pub key: &'a T,
    /// Added to the mean square.
    pub eps: f32,
}

impl<T: ?Sized> Clone for QkNorm<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for QkNorm<'_, T> {}

/// Arguments of [`Cache::split_qkv`].
pub struct SplitQkv<'a, B: Buffers + ?Sized> {
    /// Head layout.
    pub shape: QkvShape,
    /// Fused rows `[T, (H+2K)*D]`.
    pub qkv: &'a B::Buffer,
    /// Number of rows `T`.
    pub rows: usize,
    /// Cosines `[T, D/2]`.
    pub cos: &'a B::Buffer,
    /// Sines `[T, D/2]`.
    pub sin: &'a B::Buffer,
    /// Per-head RMS norms (Qwen3).
    pub qk_norm: Option<QkNorm<'a, B::Buffer>>,
    /// Destination of every KV head of every sequence.
    pub items: &'a [SplitItem<'a>],
}

/// Re-rotation of one KV head's cached keys (positions `compacted`).
#[derive(Debug, Clone)]
pub struct RotateItem<'a> {
    /// The head's slots.
    pub slots: HeadPages<'a>,
    /// For each slot the change of its rotary position, in tokens.
    pub delta: &'a [f32],
}

/// A device that keeps keys and values in pages.
pub trait Cache: Buffers {
    /// Slot arena: pages of keys and values.
    type Pages: Send;

    /// An arena of `count` pages. Backends may commit memory lazily, page by page.
    fn alloc_pages(&self, shape: PageShape, count: usize) -> Result<Self::Pages>;

    /// Splits fused rows: normalises query and key heads when `qk_norm` is given, rotates them
    /// (GPT-NeoX halves: value `i` pairs with `i + D/2`) by row `t` of `cos`, `sin` (`[T, D/2]`),
    /// writes queries to `q` (`[T, H, D]`) and keys and values to the slots of `items`.
    fn split_qkv(
        &self,
        args: SplitQkv<'_, Self>,
        pages: &mut Self::Pages,
        q: &mut Self::Buffer,
    ) -> Result<()>;

    /// Rotates cached keys by `delta * inv_freq[i]` (`inv_freq`: `[D/2]`), rounding once to the
    /// stored type.
    fn rotate_keys(
        &self,
        pages: &mut Self::Pages,
        items: &[RotateItem<'_>],
        inv_freq: &[f32],
    ) -> Result<()>;

    /// Copies keys and values of the listed slots to the host as f32. `keys`, `values`:
    /// `[slots.len(), D]`.
    fn read_slots(
        &self,
        pages: &Self::Pages,
        head: HeadPages<'_>,
        slots: &[u32],
        keys: &mut [f32],
        values: &mut [f32],
    ) -> Result<()>;

    /// Writes keys and values (`[n, D]` each) to slots `first ..` of a head.
    fn write_slots(
        &self,
        pages: &mut Self::Pages,
        head: HeadPages<'_>,
        first: usize,
        keys: &[f32],
        values: &[f32],
    ) -> Result<()>;

    /// Copies all slots of some heads to the host as they are stored, head by head: see
    /// [`StoredParts`](crate::StoredParts), which says how long `out` is. Every device gives the
    /// same bytes.
    fn save_slots(
        &self,
        pages: &Self::Pages,
        heads: &[HeadPages<'_>],
        out: &mut [u8],
    ) -> Result<()>;

    /// Fills all slots of some heads with what [`Self::save_slots`] wrote of as many, bit for bit.
    fn load_slots(
        &self,
        pages: &mut Self::Pages,
        heads: &[HeadPages<'_>],
        from: &[u8],
    ) -> Result<()>;
}
