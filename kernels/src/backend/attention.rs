//! Softmax attention over cached slots.

use std::ops::Range;

use super::cache::Cache;
use crate::error::Result;
use crate::latent::LatentHead;
use crate::shapes::{HeadPages, QkvShape};

/// One KV head of one sequence in an attention call.
#[derive(Debug, Clone)]
pub struct AttentionItem<'a> {
    /// Token rows of this sequence in the step.
    pub rows: Range<usize>,
    /// KV head of this rank; its query heads are `kv_head*G .. (kv_head+1)*G`.
    pub kv_head: usize,
    /// All slots **including** the entries of `rows`, which are the last `rows.len()` ones: row
    /// `rows.start + i` sees slots `0 .. len - rows.len() + i + 1`.
    pub slots: HeadPages<'a>,
    /// First visible slot of each row (`rows.len()` entries) for sliding-window models; `None`:
    /// all are visible.
    pub first_visible: Option<&'a [u32]>,
    /// Centroids of evicted entries, read in the same softmax; `None`, and one that holds nothing
    /// yet: no such logits.
    pub centroids: Option<LatentHead>,
    /// Logits of attention sinks, one for each of the `G` query heads: each takes its share of the
    /// softmax of its head's rows and adds no value (gpt-oss). Only where
    /// [`Attention::offers_sinks`] says so; `None`: there are none.
    pub sinks: Option<&'a [f32]>,
}

/// How attention probabilities are reduced over query rows by [`Attention::observe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    /// Sum over rows.
    Sum,
    /// Maximum over rows.
    Max,
}

/// One KV head of one sequence whose attention probabilities are observed.
#[derive(Debug, Clone)]
pub struct ObserveItem<'a> {
    /// What is attended, as in the attention call. `attend.rows` may be the last part of the
    /// sequence's rows only.
    pub attend: AttentionItem<'a>,
    /// Reduction over the rows; the `G` query heads of a row are averaged first for `Sum`,
    /// maximised for `Max`.
    pub reduce: Reduce,
    /// What the probabilities of each row are multiplied with (`rows.len()` entries, at least 0);
    /// `None`: 1.
    pub row_weights: Option<&'a [f32]>,
}

/// A device that attends to the slots of its arena.
pub trait Attention: Cache {
    /// Whether the device takes [`AttentionItem::sinks`], which only some families need. Elsewhere
    /// it refuses items that have them.
    fn offers_sinks(&self) -> bool {
        false
    }

    /// Softmax attention at scale `1/sqrt(D)` over centroids and slots. `q`, `out`: `[T, H, D]`;
    /// every row belongs to exactly one item per KV head, rows of no item stay untouched.
    fn attention(
        &self,
        shape: QkvShape,
        pages: &Self::Pages,
        q: &Self::Buffer,
        items: &[AttentionItem<'_>],
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Attention probabilities per slot, reduced over rows: the slot weights that attention-based
    /// policies score by. `out[i]` goes on from the values it holds (zeros are added up to
    /// `items[i].attend.slots.len`), row by row, so the same rows give the same bits in one call or
    /// in several. Computed separately from `attention`, so that policies that do not look at
    /// attention never pay for it.
    fn observe(
        &self,
        shape: QkvShape,
        pages: &Self::Pages,
        q: &Self::Buffer,
        items: &[ObserveItem<'_>],
        out: &mut [Vec<f32>],
    ) -> Result<()>;
}
