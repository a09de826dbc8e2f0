//! Attention: tensor-core kernels for f16 and 8-bit caches, split over slots for few query rows;
//! f32 throughout for f32 caches.

use super::items::{Items, NONE};
use super::queue::Shape;
use super::slots::Pages;
use super::{Arg, Buffer, CudaBackend, Device, Launch, Pack, at_least, exactly};
use crate::backend::{AttentionItem, KvType, QkvShape};
use crate::error::Result;

/// Slots of a split: `SPLIT` of `kernels/cu/attention_decode.cu`.
pub(super) const SPLIT: usize = 512;
/// Query rows of a decode block, and of a prefill block.
const DECODE_ROWS: usize = 16;
const PREFILL_ROWS: usize = 64;

type Width = (usize, [&'static str; 2], [&'static str; 2]);
/// Head dimensions that the tensor-core kernels are compiled for: padded size, prefill kernels and
/// decode kernels, of halves and of 8-bit integers.
const WIDTHS: [Width; 5] = [
    (
        16,
        ["attention_prefill_16", "attention_prefill_16_q8"],
        ["attention_decode_16", "attention_decode_16_q8"],
    ),
    (
        32,
        ["attention_prefill_32", "attention_prefill_32_q8"],
        ["attention_decode_32", "attention_decode_32_q8"],
    ),
    (
        64,
        ["attention_prefill_64", "attention_prefill_64_q8"],
        ["attention_decode_64", "attention_decode_64_q8"],
    ),
    (
        96,
        ["attention_prefill_96", "attention_prefill_96_q8"],
        ["attention_decode_96", "attention_decode_96_q8"],
    ),
    (
        128,
        ["attention_prefill_128", "attention_prefill_128_q8"],
        ["attention_decode_128", "attention_decode_128_q8"],
    ),
];

/// What blocks work on: see the kernels.
#[derive(Default)]
struct Tiles {
    prefill: Vec<[u32; 2]>,
    splits: Vec<[u32; 4]>,
    merges: Vec<[u32; 4]>,
    partials: usize,
}

impl Tiles {
    fn new(shape: QkvShape, all: &Items<'_>) -> Self {
        let mut tiles = Self::default();
        let group = shape.heads / shape.kv_heads;
        for (index, item) in all.items.iter().enumerate() {
            let (index, rows) = (index as u32, item.rows as usize * group);
            if rows == 0 {
                continue;
            }
            if rows > DECODE_ROWS {
                // The last rows see the most slots: they start first.
                tiles.prefill.extend(
                    (0..rows.div_ceil(PREFILL_ROWS) as u32)
                        .rev()
                        .map(|tile| [index, tile]),
                );
                continue;
            }
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
                    (tiles.partials + split - begin) as u32
                };
                tiles.splits.push([
                    index,
                    (split * SPLIT) as u32,
                    partial,
                    u32::from(split == begin),
                ]);
            }
            if count > 1 {
                tiles
                    .merges
                    .push([index, tiles.partials as u32, count as u32, 0]);
                tiles.partials += count;
            }
        }
        tiles
    }

    /// Goes on to the sizes of a step's bucket, with blocks that have nothing to do. Splits beyond
    /// those of the bucket would be a mistake of the caller's and change nothing but the list of
    /// launches.
    fn pad(&mut self, bucket: Shape, items: usize) {
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

impl<D: Device> CudaBackend<D> {
    pub(super) fn attend(
        &self,
        shape: QkvShape,
        pages: &Pages<D>,
        q: &Buffer<D>,
        items: &[AttentionItem<'_>],
        out: &Buffer<D>,
    ) -> Result<()> {
        let op = "attention";
        exactly(
            op,
            "a head of the pages",
            pages.shape.head_dim,
            shape.head_dim,
        )?;
        let rows = items.iter().map(|item| item.rows.end).max().unwrap_or(0);
        at_least(
            op,
            "q",
            q.len,
            rows.saturating_mul(shape.heads * shape.head_dim),
        )?;
        at_least(
            op,
            "out",
            out.len,
            rows.saturating_mul(shape.heads * shape.head_dim),
        )?;
        let mut all = Items::default();
        items
            .iter()
            .try_for_each(|item| all.attend(op, shape, pages, item))?;
        let width = WIDTHS.iter().find(|width| width.0 >= shape.head_dim);
        match width.filter(|_| pages.shape.dtype != KvType::F32) {
            Some(&width) => self.attend_tiles(shape, pages, q, &mut all, (width, out)),
            None => self.attend_exact(shape, pages, q, &mut all, out),
        }
    }

    fn attend_tiles(
        &self,
        shape: QkvShape,
        pages: &Pages<D>,
        q: &Buffer<D>,
        all: &mut Items<'_>,
        ((padded, prefill, decode), out): (Width, &Buffer<D>),
    ) -> Result<()> {
        let [prefill, decode] =
            [prefill, decode].map(|kernels| kernels[usize::from(pages.shape.dtype == KvType::Q8)]);
        let mut tiles = Tiles::new(shape, all);
        let count = all.items.len();
        let mut work = self.work();
        let mut pack = Pack::of_step(&self.device);
        let packed = all.pack(&mut pack, &self.device);
        if let Some(bucket) = pack.shape {
            tiles.pad(bucket, count);
        }
        let parts = (
            pack.push(&tiles.prefill),
            pack.push(&tiles.splits),
            pack.push(&tiles.merges),
        );
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let (items, tables) = (arg(packed.items), arg(packed.tables));
        let [heads, kv_heads, dim] =
            [shape.heads, shape.kv_heads, shape.head_dim].map(|n| Arg::U32(n as u32));
        let scale = Arg::F32(std::f32::consts::LOG2_E / (shape.head_dim as f32).sqrt());
        let (first, states) = (arg(packed.first_visible), arg(packed.states));
        let common = [
            items,
            tables,
            first,
            states,
            pages.arg(),
            q.arg(),
            out.arg(),
            heads,
            kv_heads,
            dim,
            scale,
        ];
        // Two stages of keys and values; a row is 16 bytes longer than its halves.
        let stages = |slots: usize| 2 * 2 * slots * (padded + 8) * 2;
        self.run(Launch {
            kernel: prefill,
            grid: [tiles.prefill.len() as u32, 1, 1],
            threads: 128,
            shared: stages(64) as u32,
            args: &[&common[..], &[arg(parts.0)]].concat(),
        })?;
        let partial = DECODE_ROWS * padded + 2 * DECODE_ROWS;
        let partials = work.scratch.address(
            &self.device,
            "partial attention",
            tiles.partials * partial * 4,
        )?;
        let partials = Arg::Pointer(partials);
        self.run(Launch {
            kernel: decode,
            grid: [tiles.splits.len() as u32, 1, 1],
            threads: 128,
            shared: (4 * stages(32)).max(4 * partial * 4) as u32,
            args: &[&common[..], &[arg(parts.1), partials]].concat(),
        })?;
        self.run(Launch {
            kernel: "attention_merge",
            grid: [DECODE_ROWS as u32, tiles.merges.len() as u32, 1],
            threads: 128,
            shared: 0,
            args: &[
                items,
                arg(parts.2),
                partials,
                out.arg(),
                heads,
                kv_heads,
                dim,
                Arg::U32(padded as u32),
            ],
        })
    }

    fn attend_exact(
        &self,
        shape: QkvShape,
        pages: &Pages<D>,
        q: &Buffer<D>,
        all: &mut Items<'_>,
        out: &Buffer<D>,
    ) -> Result<()> {
        let rows = all.items.iter().map(|item| item.rows).max().unwrap_or(0);
        let mut work = self.work();
        let mut pack = Pack::of_step(&self.device);
        let packed = all.pack(&mut pack, &self.device);
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let [heads, kv_heads, dim] =
            [shape.heads, shape.kv_heads, shape.head_dim].map(|n| Arg::U32(n as u32));
        let (items, tables) = (arg(packed.items), arg(packed.tables));
        let (first, states) = (arg(packed.first_visible), arg(packed.states));
        self.run(Launch {
            kernel: pages.kernel([
                "attention_exact_q8",
                "attention_exact_f16",
                "attention_exact_f32",
            ]),
            grid: [
                rows * (shape.heads / shape.kv_heads) as u32,
                packed.count,
                1,
            ],
            threads: 128,
            shared: (4 * shape.head_dim * 4) as u32,
            args: &[
                items,
                tables,
                first,
                states,
                pages.arg(),
                q.arg(),
                out.arg(),
                heads,
                kv_heads,
                dim,
            ],
        })
    }
}
