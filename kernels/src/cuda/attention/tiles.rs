//! What blocks of the tensor-core kernels work on.

use crate::cuda::backend::SPLIT;
use crate::cuda::descriptors::Items;
use crate::cuda::launch::{Item, NONE};
use crate::cuda::stream::Bucket;
use crate::shapes::QkvShape;

/// Query rows of a decode block.
pub(super) const DECODE_ROWS: usize = 16;
/// Query rows of a prefill block.
const PREFILL_ROWS: usize = 64;

/// Bytes of a partial result, of heads padded to `padded` elements: for each query row its values,
/// maximum and sum.
pub(super) fn partial_bytes(padded: usize) -> usize {
    (DECODE_ROWS * padded + 2 * DECODE_ROWS) * size_of::<f32>()
}

/// Bytes of two stages of keys and values of `slots` slots, in halves. A row is 16 bytes longer
/// than its elements.
fn stage_bytes(slots: usize, padded: usize) -> usize {
    2 * 2 * slots * (padded + 8) * 2
}

/// Bytes of shared memory of a prefill block.
pub(super) fn prefill_bytes(padded: usize) -> usize {
    stage_bytes(64, padded)
}

/// Bytes of shared memory of a decode block: stages of four warps, then their partial results.
pub(super) fn decode_bytes(padded: usize) -> usize {
    (4 * stage_bytes(32, padded)).max(4 * partial_bytes(padded))
}

/// What blocks work on: see the parameters of the kernels.
#[derive(Default)]
pub(super) struct Tiles {
    pub(super) prefill: Vec<[u32; 2]>,
    pub(super) splits: Vec<[u32; 4]>,
    pub(super) merges: Vec<[u32; 4]>,
    /// Partial results that decode blocks leave.
    pub(super) partials: usize,
}

impl Tiles {
    pub(super) fn new(shape: QkvShape, all: &Items<'_>) -> Self {
        let mut tiles = Self::default();
        let group = shape.heads / shape.kv_heads;
        for (index, item) in all.items.iter().enumerate() {
            let rows = item.rows as usize * group;
            if rows > DECODE_ROWS {
                tiles.add_prefill(index as u32, rows);
            } else if rows > 0 {
                tiles.add_decode(index as u32, item, all);
            }
        }
        tiles
    }

    /// An item of many query rows.
    fn add_prefill(&mut self, index: u32, rows: usize) {
        let tiles = rows.div_ceil(PREFILL_ROWS) as u32;
        // The last rows see the most slots: they start first.
        self.prefill
            .extend((0..tiles).rev().map(|tile| [index, tile]));
    }

    /// An item of few query rows, split over its slots.
    fn add_decode(&mut self, index: u32, item: &Item, all: &Items<'_>) {
        let first = match item.first {
            NONE => 0,
            first => all.first_visible[first as usize..][..item.rows as usize]
                .iter()
                .copied()
                .min()
                .unwrap_or(0),
        };
        let (begin, end) = (first as usize / SPLIT, (item.len as usize).div_ceil(SPLIT));
        let count = end - begin;
        for split in begin..end {
            let partial = if count == 1 {
                NONE
            } else {
                (self.partials + split - begin) as u32
            };
            let reads_centroids = u32::from(split == begin);
            self.splits
                .push([index, (split * SPLIT) as u32, partial, reads_centroids]);
        }
        if count > 1 {
            self.merges
                .push([index, self.partials as u32, count as u32, 0]);
            self.partials += count;
        }
    }

    /// Goes on to the sizes of a step's bucket, with blocks that have nothing to do; `items` are
    /// those of the call. Splits beyond those of the bucket would be a mistake of the caller's and
    /// change nothing but the list of commands.
    pub(super) fn pad(&mut self, bucket: Bucket, items: usize) {
        let splits = self.splits.len().max(bucket.splits);
        let merges = if bucket.merges {
            items.max(bucket.items)
        } else {
            self.merges.len()
        };
        self.splits.resize(splits, [NONE, 0, NONE, 0]);
        self.merges
            .resize(merges.max(self.merges.len()), [NONE, 0, 0, 0]);
        self.partials = self.partials.max(if bucket.merges { splits } else { 0 });
    }
}
