//! Scores of pairwise indexers, whose inputs and results are the host's.
//!
//! See `kernels/cu/latent.cu`.

use super::backend::CudaBackend;
use super::checks::{at_least, exactly};
use super::descriptors::{Descriptors, Items};
use super::device::Device;
use super::launch::kernels::IndexScores;
use super::launch::{Item, Kernel, PtrMut};
use crate::backend::{IndexItem, IndexShape, Indexing};
use crate::error::Result;

impl<D: Device> Indexing for CudaBackend<D> {
    fn index(&self, shape: IndexShape, items: &mut [IndexItem<'_>]) -> Result<()> {
        let (mut all, mut scores) = (Items::default(), Vec::new());
        for item in items.iter() {
            check(shape, item)?;
            all.items.push(Item {
                len: item.scores.len() as u32,
                extra: all.floats.len() as u32,
                output: scores.len() as u32,
                ..Item::new(&(0..item.rows), 0)
            });
            all.floats
                .extend(item.queries.iter().chain(item.weights).chain(item.keys));
            scores.extend_from_slice(item.scores);
        }
        if scores.is_empty() {
            return Ok(());
        }

        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_call(&self.stream);
        let on_device = all.push(&mut descriptors, &self.stream);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut scores);
        let out = self
            .stream
            .reserve(&mut work.scratch, "indexer scores", bytes.len())?;
        self.stream.upload(bytes, work.scratch.memory()?, 0)?;
        let kernel = IndexScores {
            items: on_device.items,
            inputs: on_device.floats,
            scores: PtrMut::at(out),
            heads: shape.heads as u32,
            dim: shape.dim as u32,
        };
        self.launch(kernel.grid(all.most_slots().div_ceil(128), all.items.len()))?;
        self.stream.download(work.scratch.memory()?, 0, bytes)?;

        let mut rest = &scores[..];
        for item in items {
            let (own, after) = rest.split_at(item.scores.len());
            item.scores.copy_from_slice(own);
            rest = after;
        }
        Ok(())
    }
}

/// Checks the sizes of an item's arrays.
fn check(shape: IndexShape, item: &IndexItem<'_>) -> Result<()> {
    let (op, rows, len) = ("index", item.rows, item.scores.len());
    let weights = rows.saturating_mul(shape.heads);
    at_least(op, "scores", len, rows)?;
    exactly(
        op,
        "queries",
        item.queries.len(),
        weights.saturating_mul(shape.dim),
    )?;
    exactly(op, "weights", item.weights.len(), weights)?;
    exactly(op, "keys", item.keys.len(), len.saturating_mul(shape.dim))
}
