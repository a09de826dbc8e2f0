//! Attention probabilities for the policies that look at them.

use super::items::add_item;
use crate::backend::{ObserveItem, Reduce};
use crate::cuda::backend::{Buffer, CudaBackend};
use crate::cuda::cache::Pages;
use crate::cuda::checks::{at_least, exactly, within};
use crate::cuda::descriptors::{Descriptors, Items};
use crate::cuda::device::Device;
use crate::cuda::launch::kernels::{ObserveLogits, ObserveReduce};
use crate::cuda::launch::{Kernel, NONE, PtrMut, Reduction};
use crate::error::Result;
use crate::shapes::QkvShape;

/// Logits that are held at a time; a call of more items than fit runs them in turns.
const MOST_LOGITS: usize = 64 << 20;
/// Logits that an item's offset can count.
const COUNTED_LOGITS: usize = 1 << 32;

/// What all parts of a call have in common.
struct Observed<'a, D: Device> {
    backend: &'a CudaBackend<D>,
    shape: QkvShape,
    pages: &'a Pages<D>,
    q: &'a Buffer<D>,
}

/// See [`Attention::observe`](crate::backend::Attention::observe). Everything is checked before
/// anything is written.
pub(super) fn observe<D: Device>(
    backend: &CudaBackend<D>,
    shape: QkvShape,
    pages: &Pages<D>,
    q: &Buffer<D>,
    items: &[ObserveItem<'_>],
    out: &mut [Vec<f32>],
) -> Result<()> {
    let (op, dim) = ("observe", shape.head_dim);
    exactly(op, "a head of the pages", pages.shape.head_dim, dim)?;
    exactly(op, "out", out.len(), items.len())?;
    let rows = items.iter().map(|item| item.attend.rows.end).max();
    let values = rows.unwrap_or(0).saturating_mul(shape.heads * dim);
    at_least(op, "q", q.len, values)?;
    let mut checked = Items::default();
    for (item, out) in items.iter().zip(out.iter()) {
        let (rows, slots) = (item.attend.rows.len(), item.attend.slots.len);
        add_item(op, &mut checked, shape, pages, &item.attend)?;
        let weights = item.row_weights.map_or(rows, <[f32]>::len);
        exactly(op, "row weights", weights, rows)?;
        at_least(op, "slots of an item", slots, out.len())?;
    }

    let observed = Observed {
        backend,
        shape,
        pages,
        q,
    };
    let mut rest = (items, out);
    for count in turns(items.iter().map(|item| logits(shape, item))) {
        let (now, later) = (rest.0.split_at(count), rest.1.split_at_mut(count));
        observed.run(now.0, later.0)?;
        rest = (now.1, later.1);
    }
    Ok(())
}

/// Logits of an item: one for each slot of each query row.
fn logits(shape: QkvShape, item: &ObserveItem<'_>) -> usize {
    let query_rows = item.attend.rows.len() * (shape.heads / shape.kv_heads);
    query_rows.saturating_mul(item.attend.slots.len)
}

/// How many items run at a time, so that their logits fit; an item that does not fit runs alone.
fn turns(logits: impl Iterator<Item = usize>) -> Vec<usize> {
    let (mut turns, mut held) = (Vec::new(), 0usize);
    for logits in logits {
        match turns.last_mut() {
            Some(count) if held.saturating_add(logits) <= MOST_LOGITS => {
                *count += 1;
                held += logits;
            }
            _ => {
                turns.push(1);
                held = logits;
            }
        }
    }
    turns
}

/// Where the logits of items begin, and how many there are in all.
#[derive(Debug, Default)]
struct Offsets {
    first: Vec<u32>,
    count: usize,
}

impl Offsets {
    /// Adds an item of so many logits.
    ///
    /// # Errors
    /// [`Error::Index`](crate::Error::Index) where they begin further than an item can say.
    fn add(&mut self, logits: usize) -> Result<()> {
        within("observe", "first logit", self.count, COUNTED_LOGITS)?;
        self.first.push(self.count as u32);
        self.count = self.count.saturating_add(logits);
        Ok(())
    }
}

/// What the kernels read of some items.
struct Gathered<'a> {
    items: Items<'a>,
    reductions: Vec<Reduction>,
    row_weights: Vec<f32>,
    /// Slots' weights so far, which the call goes on with.
    weights: Vec<f32>,
    logits: usize,
    query_rows: usize,
}

impl<D: Device> Observed<'_, D> {
    /// Items whose logits fit.
    fn run(&self, items: &[ObserveItem<'_>], out: &mut [Vec<f32>]) -> Result<()> {
        let (shape, stream) = (self.shape, &self.backend.stream);
        let mut all = self.gather(items, out)?;
        let mut work = self.backend.workspaces();
        let mut descriptors = Descriptors::of_call(stream);
        let on_device = all.items.push(&mut descriptors, stream);
        let reductions = descriptors.push(&all.reductions);
        let row_weights = descriptors.push(&all.row_weights);
        descriptors.send(stream, &mut work.descriptors)?;

        // Weights, then a maximum and a sum of each query row, then logits.
        let floats = all.weights.len() + 2 * all.query_rows;
        let bytes = floats.saturating_add(all.logits).saturating_mul(4);
        let scratch = &mut work.scratch;
        let base = stream.reserve(scratch, "observed attention", bytes)?;
        let memory = scratch.memory()?;
        stream.upload(bytemuck::cast_slice(&all.weights), memory, 0)?;
        let weights = PtrMut::<f32>::at(base);
        let statistics = weights.skip(all.weights.len());
        let logits = weights.skip(floats);

        let group = shape.heads / shape.kv_heads;
        let observe_logits = ObserveLogits {
            items: on_device.items,
            tables: on_device.tables,
            first_visible: on_device.first_visible,
            centroids: on_device.states.cast(),
            pages: self.pages.slots(),
            q: self.q.ptr(),
            logits,
            statistics,
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            dim: shape.head_dim as u32,
        };
        let query_rows = all.items.most_rows() * group;
        self.backend
            .launch(observe_logits.grid(query_rows, on_device.count))?;
        let observe_reduce = ObserveReduce {
            items: on_device.items,
            reductions,
            logits: logits.read(),
            statistics: statistics.read(),
            row_weights,
            out: weights,
            group: group as u32,
        };
        let blocks = all.items.most_slots().div_ceil(128);
        self.backend
            .launch(observe_reduce.grid(blocks, on_device.count))?;
        stream.download(memory, 0, bytemuck::cast_slice_mut(&mut all.weights))?;

        let mut rest = &all.weights[..];
        for out in out {
            let (own, after) = rest.split_at(out.len());
            out.copy_from_slice(own);
            rest = after;
        }
        Ok(())
    }

    /// Gathers items, and lengthens their results to all of their slots. An item's `output` is its
    /// first logit, and its `flags` the first of its query rows.
    fn gather<'a>(&self, items: &[ObserveItem<'a>], out: &mut [Vec<f32>]) -> Result<Gathered<'a>> {
        let group = (self.shape.heads / self.shape.kv_heads) as u32;
        let mut offsets = Offsets::default();
        for item in items {
            offsets.add(logits(self.shape, item))?;
        }
        let mut all = Gathered {
            items: Items::default(),
            reductions: Vec::new(),
            row_weights: Vec::new(),
            weights: Vec::new(),
            logits: offsets.count,
            query_rows: 0,
        };
        for (index, (item, out)) in items.iter().zip(out).enumerate() {
            add_item(
                "observe",
                &mut all.items,
                self.shape,
                self.pages,
                &item.attend,
            )?;
            let entry = &mut all.items.items[index];
            (entry.output, entry.flags) = (offsets.first[index], all.query_rows as u32);
            all.query_rows += (entry.rows * group) as usize;
            all.reductions.push(Reduction {
                item: index as u32,
                is_max: u32::from(item.reduce == Reduce::Max),
                row_weights: item
                    .row_weights
                    .map_or(NONE, |_| all.row_weights.len() as u32),
                weights: all.weights.len() as u32,
            });
            all.row_weights
                .extend_from_slice(item.row_weights.unwrap_or_default());
            out.resize(item.attend.slots.len, 0.0);
            all.weights.extend_from_slice(out);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn items_run_together_as_long_as_their_logits_fit() {
        let half = MOST_LOGITS / 2;
        let all = [half, half, 1, 3 * half, 1, 0, half];
        assert_eq!(turns(all.into_iter()), [2, 1, 1, 3]);
        assert!(turns(std::iter::empty()).is_empty());
    }

    #[test]
    fn logits_beyond_an_items_offset_are_refused() {
        let mut offsets = Offsets::default();
        offsets.add(COUNTED_LOGITS - 1).expect("it begins at 0");
        offsets.add(1).expect("the last place that can be said");
        let error = offsets.add(1).expect_err("it begins too far");
        assert!(
            matches!(error, Error::Index { index, .. } if index == COUNTED_LOGITS),
            "{error}"
        );
        assert_eq!(offsets.first, [0, u32::MAX]);

        // One item alone begins at 0, however many logits it has.
        let mut alone = Offsets::default();
        alone.add(5 * COUNTED_LOGITS).expect("it begins at 0");
        assert_eq!(alone.count, 5 * COUNTED_LOGITS);
    }
}
