//! Latent memories: what remains of slots that go at a boundary.

use std::ops::Range;

use super::boundary::Boundary;
use super::buffers::Buffers;
use crate::error::Result;
use crate::latent::{LatentHead, LatentId, LatentKind, LatentState};
use crate::shapes::{HeadPages, QkvShape};

/// Smallest denominator of [`LatentMemory::readout`].
pub const LEAST_MASS: f32 = 1e-6;

/// Learned part of associative memories, of which a call reads one layer: linear features `phi(z) =
/// features * z` and a gate per KV head.
///
/// Source: IndexMem (arXiv 2605.25475), latent memory.
pub struct AssociativeLayer<'a, B: Buffers + ?Sized> {
    /// Heads of a layer on this rank.
    pub shape: QkvShape,
    /// `[layers, F, D]`; a memory may use fewer features, then the first ones.
    pub features: &'a B::Buffer,
    /// `F`.
    pub count: usize,
    /// Gates of this rank's KV heads `[layers, K]`.
    pub gates: &'a B::Buffer,
    /// The layer.
    pub layer: usize,
}

impl<B: Buffers + ?Sized> Clone for AssociativeLayer<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Buffers + ?Sized> Copy for AssociativeLayer<'_, B> {}

/// Trained features of associative memories, in an array `T` of the device or of the host.
pub struct Features<'a, T: ?Sized> {
    /// `[layers, F, D]`.
    pub values: &'a T,
    /// `F`.
    pub count: usize,
}

impl<T: ?Sized> Clone for Features<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Features<'_, T> {}

/// Associative memory of one KV head of one sequence, read by [`LatentMemory::readout`].
#[derive(Debug, Clone)]
pub struct ReadoutItem {
    /// Token rows of this sequence in the step.
    pub rows: Range<usize>,
    /// KV head of this rank.
    pub kv_head: usize,
    /// The memory.
    pub memory: LatentHead,
}

/// A device that merges slots into latent memories ([`crate::latent`]) and reads them.
pub trait LatentMemory: Boundary {
    /// Sets `bytes` aside for latent memories, before the first of them. A device that allocates
    /// when it starts and never after takes all of them from there, and refuses what does not fit;
    /// one that commits memory as it is used does nothing.
    fn reserve_latents(&self, pages: &mut Self::Pages, bytes: usize) -> Result<()> {
        let _ = (pages, bytes);
        Ok(())
    }

    /// An empty latent memory beside the pages, for `heads` KV heads.
    fn alloc_latent(
        &self,
        pages: &mut Self::Pages,
        kind: LatentKind,
        heads: usize,
    ) -> Result<LatentId>;

    /// Gives the memory of a latent memory back. Its id may be used again.
    fn free_latent(&self, pages: &mut Self::Pages, id: LatentId);

    /// Merges the slots that do not stay into a latent memory, head by head in position order: see
    /// [`crate::latent`]. `heads` are all heads of the memory, layer-major, as they were before the
    /// compaction. `features` are needed by associative memories. The call may return before the
    /// device is done.
    fn memorise(
        &self,
        pages: &mut Self::Pages,
        id: LatentId,
        features: Option<Features<'_, Self::Buffer>>,
        heads: &[HeadPages<'_>],
        kept: &Self::Kept,
    ) -> Result<()>;

    /// The state of one head of a latent memory.
    fn read_latent(&self, pages: &Self::Pages, head: LatentHead) -> Result<LatentState>;

    /// Replaces the state of one head.
    fn write_latent(
        &self,
        pages: &mut Self::Pages,
        head: LatentHead,
        state: &LatentState,
    ) -> Result<()>;

    /// Adds the readout of associative memories to attention outputs: for every query head of an
    /// item's KV head `out += gate * (phi(q)^T A) / max((phi(q)^2)^T b, LEAST_MASS)`. `q`, `out`:
    /// `[T, H, D]`. One that holds nothing adds nothing.
    fn readout(
        &self,
        layer: AssociativeLayer<'_, Self>,
        pages: &Self::Pages,
        q: &Self::Buffer,
        items: &[ReadoutItem],
        out: &mut Self::Buffer,
    ) -> Result<()>;
}
