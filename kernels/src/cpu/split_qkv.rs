//! The split of fused query/key/value rows: norms of heads, rotation, and writes to slots.

use std::ops::Range;

use super::checks::check_item;
use super::elementwise::{norm_row, rows_per_task};
use super::exec::Exec;
use super::lanes::{Kernel, Lanes, Shared, WIDTH, dispatch};
use super::page_layout::SLOTS;
use super::page_writer::{PageWriter, with_writer};
use super::pages::CpuPages;
use super::slots::disjoint;
use crate::backend::{QkNorm, QkvShape, SplitItem};
use crate::error::{Error, Result, at_least};

/// [`crate::SplitQkv`] with the backend's buffers as slices.
pub(crate) struct SplitArgs<'a> {
    pub(crate) shape: QkvShape,
    pub(crate) qkv: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cos: &'a [f32],
    pub(crate) sin: &'a [f32],
    pub(crate) qk_norm: Option<QkNorm<'a, [f32]>>,
    pub(crate) items: &'a [SplitItem<'a>],
}

impl SplitArgs<'_> {
    fn check(&self, pages: &CpuPages, q: usize) -> Result<()> {
        let (
            op,
            QkvShape {
                heads,
                kv_heads,
                head_dim,
            },
            rows,
        ) = ("split_qkv", self.shape, self.rows);
        if head_dim != pages.head_dim() {
            return Err(Error::Shape {
                op,
                what: "a slot of the pages",
                got: pages.head_dim(),
                want: head_dim,
            });
        }
        at_least(
            op,
            "qkv",
            self.qkv.len(),
            rows.saturating_mul(self.shape.width()),
        )?;
        at_least(op, "cos", self.cos.len(), rows.saturating_mul(head_dim / 2))?;
        at_least(op, "sin", self.sin.len(), rows.saturating_mul(head_dim / 2))?;
        at_least(op, "q", q, rows.saturating_mul(heads * head_dim))?;
        if let Some(norm) = self.qk_norm {
            at_least(op, "query norm", norm.query.len(), head_dim)?;
            at_least(op, "key norm", norm.key.len(), head_dim)?;
        }
        for item in self.items {
            check_item(op, &item.rows, rows, item.kv_head, kv_heads)?;
            pages.check(
                op,
                &item.slots,
                item.slots.len.saturating_add(item.rows.len()),
            )?;
        }
        Ok(())
    }

    /// Pages that an item writes to.
    fn written(item: &SplitItem<'_>) -> Range<usize> {
        item.slots.len / SLOTS..(item.slots.len + item.rows.len()).div_ceil(SLOTS)
    }

    /// Normalises and rotates one head of row `t` into `out`.
    #[inline(always)]
    fn head<L: Lanes>(&self, t: usize, x: &[f32], weight: Option<&[f32]>, out: &mut [f32]) {
        let half = x.len() / 2;
        match (weight, self.qk_norm) {
            (Some(weight), Some(norm)) => norm_row::<L>(x, &weight[..x.len()], norm.eps, out),
            _ => out.copy_from_slice(x),
        }
        let (cos, sin) = (
            &self.cos[t * half..(t + 1) * half],
            &self.sin[t * half..(t + 1) * half],
        );
        let (low, high) = out.split_at_mut(half);
        let halves = low.chunks_mut(WIDTH).zip(high.chunks_mut(WIDTH));
        for ((low, high), (cos, sin)) in halves.zip(cos.chunks(WIDTH).zip(sin.chunks(WIDTH))) {
            let (cos, sin) = (L::from_slice(cos, 0.0), L::from_slice(sin, 0.0));
            let (x, y) = (L::from_slice(low, 0.0), L::from_slice(high, 0.0));
            x.mul(cos).sub(y.mul(sin)).write(low);
            y.mul(cos).add(x.mul(sin)).write(high);
        }
    }
}

/// Query heads of some rows.
struct SplitQueries<'a> {
    args: &'a SplitArgs<'a>,
    start: usize,
    q: &'a mut [f32],
}

impl Kernel for SplitQueries<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let QkvShape {
            heads, head_dim, ..
        } = self.args.shape;
        let weight = self.args.qk_norm.map(|norm| norm.query);
        for (i, q) in self.q.chunks_exact_mut(heads * head_dim).enumerate() {
            let t = self.start + i;
            let row = &self.args.qkv[t * self.args.shape.width()..];
            for (x, out) in row.chunks_exact(head_dim).zip(q.chunks_exact_mut(head_dim)) {
                self.args.head::<L>(t, x, weight, out);
            }
        }
    }
}

/// Keys and values of one item.
struct SplitSlots<'a, 'b> {
    args: &'a SplitArgs<'a>,
    item: &'a SplitItem<'a>,
    writer: &'a PageWriter<'b>,
}

impl Kernel for SplitSlots<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let QkvShape {
            heads,
            kv_heads,
            head_dim,
        } = self.args.shape;
        let weight = self.args.qk_norm.map(|norm| norm.key);
        let mut rotated = vec![0.0; head_dim];
        for (i, t) in self.item.rows.clone().enumerate() {
            let row = &self.args.qkv[t * self.args.shape.width()..];
            let key = &row[(heads + self.item.kv_head) * head_dim..][..head_dim];
            let value = &row[(heads + kv_heads + self.item.kv_head) * head_dim..][..head_dim];
            self.args.head::<L>(t, key, weight, &mut rotated);
            let (table, slot) = (self.item.slots.pages, self.item.slots.len + i);
            // SAFETY: `split_qkv` checked the table and runs items at the same time only when they
            // share no page.
            with_writer!(self.writer, w => unsafe { w.write::<L>(table, slot, &rotated, value) });
        }
    }
}

/// See [`Cache::split_qkv`](crate::backend::Cache::split_qkv).
pub(crate) fn split_qkv(
    exec: Exec<'_>,
    args: &SplitArgs<'_>,
    pages: &mut CpuPages,
    q: &mut [f32],
) -> Result<()> {
    args.check(pages, q.len())?;
    let QkvShape {
        heads, head_dim, ..
    } = args.shape;
    let apart = disjoint(
        args.items
            .iter()
            .map(|item| &item.slots.pages[SplitArgs::written(item)]),
    );
    let writer = pages.writer();
    let slots = |i: usize| {
        dispatch(
            exec.level,
            SplitSlots {
                args,
                item: &args.items[i],
                writer: &writer,
            },
        )
    };
    let width = heads * head_dim;
    let step = rows_per_task(width);
    let q = Shared::new(&mut q[..args.rows * width]);
    let queries = |task: usize| {
        let (start, rows) = (task * step, step.min(args.rows - task * step));
        // SAFETY: tasks write disjoint rows.
        let q = unsafe { q.part(start * width, rows * width) };
        dispatch(exec.level, SplitQueries { args, start, q });
    };
    // Items first: they are the longer tasks. Items that share pages run in order, the later one
    // wins.
    let first = if apart { args.items.len() } else { 0 };
    if !apart {
        (0..args.items.len()).for_each(slots);
    }
    let query_tasks = if width == 0 {
        0
    } else {
        args.rows.div_ceil(step)
    };
    exec.run(
        first + query_tasks,
        args.rows * args.shape.width(),
        &|task| match task.checked_sub(first) {
            None => slots(task),
            Some(task) => queries(task),
        },
    );
    Ok(())
}
