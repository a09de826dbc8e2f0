//! Latent memories: their state stays on the device, and slots that go are merged into it there.
//!
//! See `kernels/cu/memorise.cu` and `kernels/cu/latent.cu`.

use bytemuck::Zeroable;

use super::backend::{Buffer, CudaBackend};
use super::boundary::Kept;
use super::cache::{LatentSize, MovedBytes, Pages};
use super::checks::{at_least, exactly, within};
use super::descriptors::{Descriptors, Items};
use super::device::Device;
use super::launch::kernels::{MemoriseAssociative, MemoriseCentroids, Readout};
use super::launch::{Item, Kernel, Ptr, PtrMut};
use super::stream::LEAST_BYTES;
use crate::backend::{AssociativeLayer, Features, LatentMemory, ReadoutItem};
use crate::error::{Error, Result};
use crate::latent::{
    AssociativeState, CentroidState, FeatureSize, LatentHead, LatentId, LatentKind, LatentState,
    check_features,
};
use crate::select;
use crate::shapes::HeadPages;

/// Features of a block that memorises into associative memories, and entries that it takes at a
/// time: `kernels/cu/memorise.cu`.
const GROUP: usize = 8;
const ENTRIES: usize = 32;
/// What rows of centroids in shared memory are longer than their keys.
const PADDING: usize = 4;
/// Bytes that are moved at a time: what the scratch memory has at least.
const MOVED: usize = LEAST_BYTES;

impl<D: Device> LatentMemory for CudaBackend<D> {
    fn reserve_latents(&self, pages: &mut Pages<D>, bytes: usize) -> Result<()> {
        if !pages.latents.is_empty() {
            return Err(Error::Device {
                op: "reserve_latents",
                what: "there are latent memories already".into(),
            });
        }
        let memory = self.stream.alloc("latent memories", bytes)?;
        pages.latents.reserve(memory, bytes);
        Ok(())
    }

    fn alloc_latent(
        &self,
        pages: &mut Pages<D>,
        kind: LatentKind,
        heads: usize,
    ) -> Result<LatentId> {
        kind.check("alloc_latent")?;
        let size = LatentSize::new(kind, heads, pages.shape.head_dim);
        if !pages.latents.is_reserved() {
            let memory = self.stream.alloc("latent memory", size.bytes())?;
            return Ok(pages.latents.insert_alone(size, memory));
        }
        let moved = |bytes| self.move_bytes(&bytes);
        let (id, address) = pages.latents.insert_reserved(size, moved)?;
        self.put_words(Ptr::NULL, size.bytes() / 4, PtrMut::at(address))?;
        Ok(id)
    }

    fn free_latent(&self, pages: &mut Pages<D>, id: LatentId) {
        pages.latents.free(id);
    }

    fn memorise(
        &self,
        pages: &mut Pages<D>,
        id: LatentId,
        features: Option<Features<'_, Buffer<D>>>,
        heads: &[HeadPages<'_>],
        kept: &Kept<D>,
    ) -> Result<()> {
        let (op, dim) = ("memorise", pages.shape.head_dim);
        select::check_lens(op, kept.lens(), heads)?;
        let size = pages.latents.size(op, id)?;
        exactly(op, "heads", heads.len(), size.heads)?;
        let sizes = features.map(|features| FeatureSize {
            len: features.values.len,
            count: features.count,
        });
        let layout = check_features(size.kind, heads.len(), sizes, dim)?;
        let mut all = memorised(pages, id, heads)?;

        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_call(&self.stream);
        let on_device = all.push(&mut descriptors, &self.stream);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let lists = kept.lists();
        match (size.kind, features) {
            (LatentKind::Associative { features: count }, Some(features)) => {
                let kernel = MemoriseAssociative {
                    pages: pages.slots(),
                    items: on_device.items,
                    tables: on_device.tables,
                    states: on_device.states,
                    kept: lists.counts.read(),
                    losts: lists.losts.read(),
                    dim: dim as u32,
                    features: features.values.ptr(),
                    group: layout.layer_heads as u32,
                    layer: layout.layer_values as u32,
                };
                let floats = GROUP * (dim + 1) + ENTRIES * (2 * dim + 1 + GROUP);
                let launch = kernel.grid(count.div_ceil(GROUP), heads.len());
                self.launch(launch.with_shared(4 * floats))
            }
            (kind, _) => {
                let keys = centroids(kind) * (dim + PADDING);
                let held = 4 * (dim + keys) <= self.device().shared_bytes();
                let kernel = MemoriseCentroids {
                    pages: pages.slots(),
                    items: on_device.items,
                    tables: on_device.tables,
                    states: on_device.states,
                    kept: lists.counts.read(),
                    losts: lists.losts.read(),
                    dim: dim as u32,
                    held,
                };
                let floats = dim + if held { keys } else { 0 };
                self.launch(kernel.blocks(heads.len()).with_shared(4 * floats))
            }
        }
    }

    fn read_latent(&self, pages: &Pages<D>, head: LatentHead) -> Result<LatentState> {
        let state = pages.latents.state("read_latent", head)?;
        let dim = pages.shape.head_dim;
        let mut values = vec![0.0f32; state.kind.head_values(dim)];
        let bytes = bytemuck::cast_slice_mut(&mut values);
        self.stream.download(state.memory, state.offset, bytes)?;
        Ok(match state.kind {
            LatentKind::Centroids { most } => {
                let counts = &values[2 * most * dim..];
                let count = counts.iter().take_while(|&&n| n > 0.0).count();
                let part = |first: usize| &values[first..first + count * dim];
                LatentState::Centroids(CentroidState::new(
                    part(0),
                    part(most * dim),
                    counts[..count].to_vec(),
                ))
            }
            LatentKind::Associative { features } => {
                let norms = values.split_off(features * dim);
                LatentState::Associative(AssociativeState {
                    sums: values,
                    norms,
                })
            }
        })
    }

    fn write_latent(
        &self,
        pages: &mut Pages<D>,
        head: LatentHead,
        state: &LatentState,
    ) -> Result<()> {
        let op = "write_latent";
        let place = pages.latents.state(op, head)?;
        let dim = pages.shape.head_dim;
        state.check(op, place.kind, dim)?;
        let mut values = vec![0.0f32; place.kind.head_values(dim)];
        let mut put =
            |first: usize, from: &[f32]| values[first..first + from.len()].copy_from_slice(from);
        match (state, place.kind) {
            (LatentState::Centroids(state), LatentKind::Centroids { most }) => {
                put(0, &state.keys());
                put(most * dim, &state.values());
                put(2 * most * dim, state.counts());
            }
            (LatentState::Associative(state), LatentKind::Associative { features }) => {
                put(0, &state.sums);
                put(features * dim, &state.norms);
            }
            _ => unreachable!("checked above"),
        }
        let bytes = bytemuck::cast_slice(&values);
        self.stream.upload(bytes, place.memory, place.offset)
    }

    fn readout(
        &self,
        layer: AssociativeLayer<'_, Self>,
        pages: &Pages<D>,
        q: &Buffer<D>,
        items: &[ReadoutItem],
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let (op, shape) = ("readout", layer.shape);
        let (size, first_gate) = (layer.count * shape.head_dim, layer.layer * shape.kv_heads);
        at_least(op, "gates", layer.gates.len, first_gate + shape.kv_heads)?;
        at_least(op, "features", layer.features.len, (layer.layer + 1) * size)?;
        let rows = items.iter().map(|item| item.rows.end).max().unwrap_or(0);
        let values = rows.saturating_mul(shape.heads * shape.head_dim);
        at_least(op, "q", q.len, values)?;
        at_least(op, "out", out.len, values)?;
        let mut all = read_out(&layer, pages, items)?;

        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_step(&self.stream);
        let on_device = all.push(&mut descriptors, &self.stream);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let kernel = Readout {
            features: layer.features.ptr().skip(layer.layer * size),
            gates: layer.gates.ptr().skip(first_gate),
            q: q.ptr(),
            items: on_device.items,
            states: on_device.states.cast(),
            out: out.ptr_mut(),
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            dim: shape.head_dim as u32,
        };
        let most = all.items.iter().map(|item| item.count).max().unwrap_or(0);
        let group = shape.heads / shape.kv_heads;
        let launch = kernel.grid(all.most_rows() * group, on_device.count);
        self.launch(launch.with_shared(most.max(1) as usize * 4))
    }
}

impl<D: Device> CudaBackend<D> {
    /// Moves bytes to a smaller address, through the scratch memory: where they come from and where
    /// they go may overlap.
    fn move_bytes(&self, MovedBytes { from, to, bytes }: &MovedBytes) -> Result<()> {
        let mut work = self.workspaces();
        let between = self
            .stream
            .reserve(&mut work.scratch, "latent memories that move", MOVED)?;
        for first in (0..*bytes).step_by(MOVED) {
            let words = (bytes - first).min(MOVED) / 4;
            let first = first as u64;
            self.put_words(Ptr::at(from + first), words, PtrMut::at(between))?;
            self.put_words(Ptr::at(between), words, PtrMut::at(to + first))?;
        }
        Ok(())
    }
}

/// Centroids of a head, 0 for associative memories.
fn centroids(kind: LatentKind) -> usize {
    match kind {
        LatentKind::Centroids { most } => most,
        LatentKind::Associative { .. } => 0,
    }
}

/// The heads that a boundary merges into a memory, checked. An item's `extra` is its state, `count`
/// the centroids or features of that, and `output` where its lists begin.
fn memorised<'a, D: Device>(
    pages: &Pages<D>,
    id: LatentId,
    heads: &[HeadPages<'a>],
) -> Result<Items<'a>> {
    let op = "memorise";
    let (mut all, mut output) = (Items::default(), 0);
    for (index, head) in heads.iter().enumerate() {
        pages.check(op, head, head.len)?;
        let state = pages.latents.state(op, LatentHead { id, head: index })?;
        let count = match state.kind {
            LatentKind::Centroids { most } => most,
            LatentKind::Associative { features } => features,
        };
        all.states.push(state.ptr());
        let len = head.len as u32;
        let table = all.table(head, head.len);
        all.items.push(Item {
            len,
            table,
            extra: index as u32,
            count: count as u32,
            output,
            ..Item::zeroed()
        });
        output += len;
    }
    Ok(all)
}

/// The heads of a readout, checked. An item's `extra` is its state, and `count` the features of
/// that.
fn read_out<'a, D: Device>(
    layer: &AssociativeLayer<'_, CudaBackend<D>>,
    pages: &Pages<D>,
    items: &[ReadoutItem],
) -> Result<Items<'a>> {
    let op = "readout";
    let mut all = Items::default();
    for item in items {
        within(op, "KV head", item.kv_head, layer.shape.kv_heads)?;
        let state = pages.latents.state(op, item.memory)?;
        let LatentKind::Associative { features } = state.kind else {
            return Err(Error::Index {
                op,
                what: "features of centroids",
                index: 0,
                len: 0,
            });
        };
        at_least(op, "features", layer.count, features)?;
        all.items.push(Item {
            extra: all.states.len() as u32,
            count: features as u32,
            ..Item::new(&item.rows, item.kv_head)
        });
        all.states.push(state.ptr());
    }
    Ok(all)
}
