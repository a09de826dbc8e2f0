//! Attention: tensor-core kernels for f16 and 8-bit caches, split over slots for few query rows;
//! f32 throughout for f32 caches.

mod items;
mod observe;
mod tiles;

use items::add_item;
use tiles::Tiles;

use super::backend::{Buffer, CudaBackend};
use super::cache::Pages;
use super::checks::{at_least, exactly};
use super::descriptors::{Descriptors, Items};
use super::device::Device;
use super::launch::kernels::{
    AttentionDecode, AttentionExact, AttentionMerge, AttentionPrefill, padded_width,
};
use super::launch::{Kernel, Ptr, PtrMut};
use crate::backend::{Attention, AttentionItem, ObserveItem};
use crate::error::Result;
use crate::shapes::{KvType, QkvShape};

impl<D: Device> Attention for CudaBackend<D> {
    fn attention(
        &self,
        shape: QkvShape,
        pages: &Pages<D>,
        q: &Buffer<D>,
        items: &[AttentionItem<'_>],
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let (op, dim) = ("attention", shape.head_dim);
        exactly(op, "a head of the pages", pages.shape.head_dim, dim)?;
        let rows = items.iter().map(|item| item.rows.end).max().unwrap_or(0);
        let values = rows.saturating_mul(shape.heads * dim);
        at_least(op, "q", q.len, values)?;
        at_least(op, "out", out.len, values)?;
        let mut all = Items::default();
        for item in items {
            add_item(op, &mut all, shape, pages, item)?;
        }
        match padded_width(dim).filter(|_| pages.shape.dtype != KvType::F32) {
            Some(_) => self.attend_tiles(shape, pages, q, &mut all, out),
            None => self.attend_exact(shape, pages, q, &mut all, out),
        }
    }

    fn observe(
        &self,
        shape: QkvShape,
        pages: &Pages<D>,
        q: &Buffer<D>,
        items: &[ObserveItem<'_>],
        out: &mut [Vec<f32>],
    ) -> Result<()> {
        observe::observe(self, shape, pages, q, items, out)
    }
}

impl<D: Device> CudaBackend<D> {
    /// Attention on tensor cores: one launch for items of many rows, one for splits of the others,
    /// and one that merges these.
    fn attend_tiles(
        &self,
        shape: QkvShape,
        pages: &Pages<D>,
        q: &Buffer<D>,
        all: &mut Items<'_>,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let padded = padded_width(shape.head_dim).unwrap_or(shape.head_dim);
        let mut tiles = Tiles::new(shape, all);
        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_step(&self.stream);
        let on_device = all.push(&mut descriptors, &self.stream);
        if let Some(bucket) = descriptors.bucket() {
            tiles.pad(bucket, all.items.len());
        }
        let prefill_tiles = descriptors.push(&tiles.prefill);
        let splits = descriptors.push(&tiles.splits);
        let merges = descriptors.push(&tiles.merges);
        descriptors.send(&self.stream, &mut work.descriptors)?;

        let prefill = AttentionPrefill {
            items: on_device.items,
            tables: on_device.tables,
            first_visible: on_device.first_visible,
            centroids: on_device.states.cast(),
            pages: pages.slots(),
            q: q.ptr(),
            out: out.ptr_mut(),
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            dim: shape.head_dim as u32,
            scale: std::f32::consts::LOG2_E / (shape.head_dim as f32).sqrt(),
            tiles: prefill_tiles,
        };
        let launch = prefill.blocks(tiles.prefill.len());
        self.launch(launch.with_shared(tiles::prefill_bytes(padded)))?;

        let bytes = tiles.partials * tiles::partial_bytes(padded);
        let partials = self
            .stream
            .reserve(&mut work.scratch, "partial attention", bytes)?;
        let partials = PtrMut::at(partials);
        let decode = prefill.into_decode(splits, partials);
        let launch = decode.blocks(tiles.splits.len());
        self.launch(launch.with_shared(tiles::decode_bytes(padded)))?;

        let merge = AttentionMerge {
            items: on_device.items,
            merges,
            partials: partials.read(),
            out: out.ptr_mut(),
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            dim: shape.head_dim as u32,
            padded: padded as u32,
        };
        self.launch(merge.grid(tiles::DECODE_ROWS, tiles.merges.len()))
    }

    /// Attention in f32 throughout.
    fn attend_exact(
        &self,
        shape: QkvShape,
        pages: &Pages<D>,
        q: &Buffer<D>,
        all: &mut Items<'_>,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_step(&self.stream);
        let on_device = all.push(&mut descriptors, &self.stream);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let kernel = AttentionExact {
            items: on_device.items,
            tables: on_device.tables,
            first_visible: on_device.first_visible,
            centroids: on_device.states.cast(),
            pages: pages.slots(),
            q: q.ptr(),
            out: out.ptr_mut(),
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            dim: shape.head_dim as u32,
        };
        let group = shape.heads / shape.kv_heads;
        let launch = kernel.grid(all.most_rows() * group, on_device.count);
        self.launch(launch.with_shared(4 * shape.head_dim * size_of::<f32>()))
    }
}

impl AttentionPrefill {
    /// The kernel for few rows, with the arguments that the two have in common.
    fn into_decode(self, splits: Ptr<[u32; 4]>, partials: PtrMut<f32>) -> AttentionDecode {
        AttentionDecode {
            items: self.items,
            tables: self.tables,
            first_visible: self.first_visible,
            centroids: self.centroids,
            pages: self.pages,
            q: self.q,
            out: self.out,
            heads: self.heads,
            kv_heads: self.kv_heads,
            dim: self.dim,
            scale: self.scale,
            splits,
            partials,
        }
    }
}
