//! Readout of associative memories, and scores of pairwise indexers.

use super::items::{Item, Items};
use super::slots::Pages;
use super::{Arg, Buffer, CudaBackend, Device, Launch, Pack, at_least, exactly};
use crate::backend::{AssociativeLayer, IndexItem, IndexShape, ReadoutItem};
use crate::error::{Error, Result};
use crate::latent::LatentKind;

impl<D: Device> CudaBackend<D> {
    pub(super) fn read_memories(
        &self,
        layer: AssociativeLayer<'_, Self>,
        (pages, q): (&Pages<D>, &Buffer<D>),
        items: &[ReadoutItem],
        out: &Buffer<D>,
    ) -> Result<()> {
        let (op, shape) = ("readout", layer.shape);
        let dim = shape.head_dim;
        let (size, first_gate) = (layer.count * dim, layer.layer * shape.kv_heads);
        at_least(op, "gates", layer.gates.len, first_gate + shape.kv_heads)?;
        at_least(op, "features", layer.features.len, (layer.layer + 1) * size)?;
        let mut all = Items::default();
        for item in items {
            let values = item.rows.end.saturating_mul(shape.heads * dim);
            at_least(op, "q", q.len, values)?;
            at_least(op, "out", out.len, values)?;
            if item.kv_head >= shape.kv_heads {
                return Err(Error::Index {
                    op,
                    what: "KV head",
                    index: item.kv_head,
                    len: shape.kv_heads,
                });
            }
            let (latent, address) = pages.latent(op, item.memory)?;
            let LatentKind::Associative { features } = latent.kind else {
                return Err(Error::Index {
                    op,
                    what: "features of centroids",
                    index: 0,
                    len: 0,
                });
            };
            at_least(op, "features", layer.count, features)?;
            let extra = all.states.len() as u32;
            all.states.push(address);
            all.items.push(Item {
                extra,
                count: features as u32,
                ..Item::new(&item.rows, item.kv_head)
            });
        }
        let group = (shape.heads / shape.kv_heads) as u32;
        let rows = all.items.iter().map(|item| item.rows).max().unwrap_or(0);
        let most = all.items.iter().map(|item| item.count).max().unwrap_or(0);
        let mut work = self.work();
        let mut pack = Pack::of_step(&self.device);
        let packed = all.pack(&mut pack, &self.device);
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let [heads, kv_heads, dim] = [shape.heads, shape.kv_heads, dim].map(|n| Arg::U32(n as u32));
        let (items, states) = (arg(packed.items), arg(packed.states));
        let float = |buffer: &Buffer<D>, at: usize| Arg::Pointer(buffer.address() + 4 * at as u64);
        let (features, gates) = (
            float(layer.features, layer.layer * size),
            float(layer.gates, first_gate),
        );
        self.run(Launch {
            kernel: "readout",
            grid: [rows * group, packed.count, 1],
            threads: 128,
            shared: most.max(1) * 4,
            args: &[
                features,
                gates,
                q.arg(),
                items,
                states,
                out.arg(),
                heads,
                kv_heads,
                dim,
            ],
        })
    }

    pub(super) fn score_pairs(&self, shape: IndexShape, items: &mut [IndexItem<'_>]) -> Result<()> {
        let op = "index";
        let (mut all, mut scores) = (Items::default(), Vec::new());
        for item in items.iter() {
            let (rows, len) = (item.rows, item.scores.len());
            at_least(op, "scores", len, rows)?;
            exactly(
                op,
                "queries",
                item.queries.len(),
                rows.saturating_mul(shape.heads * shape.dim),
            )?;
            exactly(
                op,
                "weights",
                item.weights.len(),
                rows.saturating_mul(shape.heads),
            )?;
            exactly(op, "keys", item.keys.len(), len.saturating_mul(shape.dim))?;
            let (extra, output) = (all.floats.len() as u32, scores.len() as u32);
            all.floats
                .extend(item.queries.iter().chain(item.weights).chain(item.keys));
            scores.extend_from_slice(item.scores);
            all.items.push(Item {
                len: len as u32,
                extra,
                output,
                ..Item::new(&(0..rows), 0)
            });
        }
        if scores.is_empty() {
            return Ok(());
        }
        let longest = all.items.iter().map(|item| item.len).max().unwrap_or(0);
        let mut work = self.work();
        let mut pack = Pack::new();
        let packed = all.pack(&mut pack, &self.device);
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut scores);
        let to = work
            .scratch
            .address(&self.device, "indexer scores", bytes.len())?;
        self.device.upload(bytes, work.scratch.memory()?, 0)?;
        let [heads, dim] = [shape.heads, shape.dim].map(|n| Arg::U32(n as u32));
        self.run(Launch {
            kernel: "index_scores",
            grid: [longest.div_ceil(128), all.items.len() as u32, 1],
            threads: 128,
            shared: 0,
            args: &[
                arg(packed.items),
                arg(packed.floats),
                Arg::Pointer(to),
                heads,
                dim,
            ],
        })?;
        self.device.download(work.scratch.memory()?, 0, bytes)?;
        let mut from = 0;
        for item in items {
            let len = item.scores.len();
            item.scores.copy_from_slice(&scores[from..from + len]);
            from += len;
        }
        Ok(())
    }
}
