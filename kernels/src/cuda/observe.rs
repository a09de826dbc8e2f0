//! Attention probabilities for the policies that look at them.

use super::items::{Items, NONE};
use super::slots::Pages;
use super::{Arg, Buffer, CudaBackend, Device, Launch, Pack, at_least, exactly};
use crate::backend::{ObserveItem, QkvShape, Reduce};
use crate::error::{Error, Result};

/// Logits that are held at a time; a call of more items than fit runs them in turns.
const MOST_LOGITS: usize = 64 << 20;

impl<D: Device> CudaBackend<D> {
    pub(super) fn observe_all(
        &self,
        shape: QkvShape,
        pages: &Pages<D>,
        q: &Buffer<D>,
        items: &[ObserveItem<'_>],
        out: &mut [Vec<f32>],
    ) -> Result<()> {
        let op = "observe";
        exactly(
            op,
            "a head of the pages",
            pages.shape.head_dim,
            shape.head_dim,
        )?;
        exactly(op, "out", out.len(), items.len())?;
        let rows = items
            .iter()
            .map(|item| item.attend.rows.end)
            .max()
            .unwrap_or(0);
        at_least(
            op,
            "q",
            q.len,
            rows.saturating_mul(shape.heads * shape.head_dim),
        )?;
        let group = shape.heads / shape.kv_heads;
        // Everything is checked before anything is written.
        let mut checked = Items::default();
        for (
            ObserveItem {
                attend,
                row_weights,
                ..
            },
            out,
        ) in items.iter().zip(out.iter())
        {
            checked.attend(op, shape, pages, attend)?;
            exactly(
                op,
                "row weights",
                row_weights.map_or(attend.rows.len(), <[f32]>::len),
                attend.rows.len(),
            )?;
            if out.len() > attend.slots.len {
                return Err(Error::Shape {
                    op,
                    what: "slots of an item",
                    got: attend.slots.len,
                    want: out.len(),
                });
            }
        }
        let logits =
            |item: &ObserveItem<'_>| item.attend.rows.len() * group * item.attend.slots.len;
        let mut first = 0;
        while first < items.len() {
            let (mut end, mut held) = (first, 0);
            while end < items.len() && (end == first || held + logits(&items[end]) <= MOST_LOGITS) {
                held += logits(&items[end]);
                end += 1;
            }
            self.observe_some(shape, pages, q, &items[first..end], &mut out[first..end])?;
            first = end;
        }
        Ok(())
    }

    fn observe_some(
        &self,
        shape: QkvShape,
        pages: &Pages<D>,
        q: &Buffer<D>,
        items: &[ObserveItem<'_>],
        out: &mut [Vec<f32>],
    ) -> Result<()> {
        let group = (shape.heads / shape.kv_heads) as u32;
        let (mut all, mut row_weights, mut weights) = (Items::default(), Vec::new(), Vec::new());
        let (mut logits, mut query_rows, mut reductions) = (0, 0, Vec::new());
        for (index, (item, out)) in items.iter().zip(out.iter_mut()).enumerate() {
            all.attend("observe", shape, pages, &item.attend)?;
            let packed = &mut all.items[index];
            (packed.output, packed.flags) = (logits, query_rows);
            logits += packed.rows * group * packed.len;
            query_rows += packed.rows * group;
            let rows = item.row_weights.map_or(NONE, |_| row_weights.len() as u32);
            row_weights.extend_from_slice(item.row_weights.unwrap_or_default());
            reductions.push([
                index as u32,
                u32::from(item.reduce == Reduce::Max),
                rows,
                weights.len() as u32,
            ]);
            out.resize(item.attend.slots.len, 0.0);
            weights.extend_from_slice(out);
        }
        let mut work = self.work();
        let mut pack = Pack::new();
        let packed = all.pack(&mut pack, &self.device);
        let (reductions, rows) = (pack.push(&reductions), pack.push(&row_weights));
        let arg = pack.upload(&self.device, &mut work.stage)?;
        // Weights, then statistics, then logits.
        let (weight_bytes, statistic_bytes) = (weights.len() * 4, query_rows as usize * 8);
        let bytes = weight_bytes + statistic_bytes + logits as usize * 4;
        let base = work
            .scratch
            .address(&self.device, "observed attention", bytes)?;
        self.device
            .upload(bytemuck::cast_slice(&weights), work.scratch.memory()?, 0)?;
        let at = |bytes: usize| Arg::Pointer(base + bytes as u64);
        let (to_weights, statistics, to_logits) =
            (at(0), at(weight_bytes), at(weight_bytes + statistic_bytes));
        let [heads, kv_heads, dim] =
            [shape.heads, shape.kv_heads, shape.head_dim].map(|n| Arg::U32(n as u32));
        let most_rows = all.items.iter().map(|item| item.rows).max().unwrap_or(0) * group;
        let longest = all.items.iter().map(|item| item.len).max().unwrap_or(0);
        let (count, items) = (all.items.len() as u32, arg(packed.items));
        let (tables, first, states) = (
            arg(packed.tables),
            arg(packed.first_visible),
            arg(packed.states),
        );
        self.run(Launch {
            kernel: pages.kernel([
                "observe_logits_q8",
                "observe_logits_f16",
                "observe_logits_f32",
            ]),
            grid: [most_rows, count, 1],
            threads: 128,
            shared: 0,
            args: &[
                items,
                tables,
                first,
                states,
                pages.arg(),
                q.arg(),
                to_logits,
                statistics,
                heads,
                kv_heads,
                dim,
            ],
        })?;
        self.run(Launch {
            kernel: "observe_reduce",
            grid: [longest.div_ceil(128), count, 1],
            threads: 128,
            shared: 0,
            args: &[
                items,
                arg(reductions),
                to_logits,
                statistics,
                arg(rows),
                to_weights,
                Arg::U32(group),
            ],
        })?;
        self.device.download(
            work.scratch.memory()?,
            0,
            bytemuck::cast_slice_mut(&mut weights),
        )?;
        let mut from = 0;
        for out in out {
            let len = out.len();
            out.copy_from_slice(&weights[from..from + len]);
            from += len;
        }
        Ok(())
    }
}
