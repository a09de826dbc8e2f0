//! Norms, activations, gathers, and the split of fused query/key/value rows.

use super::exec::Exec;
use super::exp::exp;
use super::lanes::{Kernel, Lanes, Shared, WIDTH, dispatch};
use super::page_layout::SLOTS;
use super::page_writer::{PageWriter, with_writer};
use super::pages::CpuPages;
use super::slots::disjoint;
use crate::backend::{QkNorm, QkvShape, SplitItem};
use crate::error::{Error, Result, at_least};

/// Rows of one task, so that a task is a few thousand values.
fn rows_per_task(width: usize) -> usize {
    (4096 / width.max(1)).max(1)
}

/// `out = x / sqrt(mean(x²) + eps) * weight`: eight partial sums, then a fixed tree. `out` may not
/// alias `x`.
#[inline(always)]
fn norm_row<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mut squares = L::splat(0.0);
    for x in x.chunks(WIDTH) {
        let x = L::from_slice(x, 0.0);
        squares = x.fma(x, squares);
    }
    let inverse = L::splat(1.0 / (squares.sum() / x.len() as f32 + eps).sqrt());
    for ((x, weight), out) in x
        .chunks(WIDTH)
        .zip(weight.chunks(WIDTH))
        .zip(out.chunks_mut(WIDTH))
    {
        L::from_slice(x, 0.0)
            .mul(inverse)
            .mul(L::from_slice(weight, 0.0))
            .write(out);
    }
}

/// Rows of `rms_norm`.
struct NormRows<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for NormRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let width = self.weight.len();
        for (x, out) in self
            .x
            .chunks_exact(width)
            .zip(self.out.chunks_exact_mut(width))
        {
            norm_row::<L>(x, self.weight, self.eps, out);
        }
    }
}

/// See [`Rows::rms_norm`](crate::backend::Rows::rms_norm).
pub(crate) fn rms_norm(
    exec: Exec<'_>,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    rows: usize,
    out: &mut [f32],
) -> Result<()> {
    let (op, width) = ("rms_norm", weight.len());
    let len = rows.saturating_mul(width);
    at_least(op, "x", x.len(), len)?;
    at_least(op, "out", out.len(), len)?;
    if len == 0 {
        return Ok(());
    }
    let step = rows_per_task(width);
    let out = Shared::new(&mut out[..len]);
    exec.run(rows.div_ceil(step), len, &|task| {
        let (start, rows) = (task * step, step.min(rows - task * step));
        // SAFETY: tasks write disjoint rows.
        let out = unsafe { out.part(start * width, rows * width) };
        dispatch(
            exec.level,
            NormRows {
                x: &x[start * width..(start + rows) * width],
                weight,
                eps,
                out,
            },
        );
    });
    Ok(())
}

/// `x += y`.
struct Add<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
}

impl Kernel for Add<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (x, y) in self.x.chunks_mut(WIDTH).zip(self.y.chunks(WIDTH)) {
            L::from_slice(x, 0.0).add(L::from_slice(y, 0.0)).write(x);
        }
    }
}

/// See [`Rows::add`](crate::backend::Rows::add).
pub(crate) fn add(exec: Exec<'_>, x: &mut [f32], y: &[f32], len: usize) -> Result<()> {
    const STEP: usize = 8192;
    at_least("add", "x", x.len(), len)?;
    at_least("add", "y", y.len(), len)?;
    let x = Shared::new(&mut x[..len]);
    exec.run(len.div_ceil(STEP), len, &|task| {
        let (start, len) = (task * STEP, STEP.min(len - task * STEP));
        // SAFETY: tasks write disjoint parts.
        let x = unsafe { x.part(start, len) };
        dispatch(
            exec.level,
            Add {
                x,
                y: &y[start..start + len],
            },
        );
    });
    Ok(())
}

/// Rows of `silu_mul`.
struct SiluRows<'a> {
    gate_up: &'a [f32],
    width: usize,
    out: &'a mut [f32],
}

impl Kernel for SiluRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let rows = self
            .gate_up
            .chunks_exact(2 * self.width)
            .zip(self.out.chunks_exact_mut(self.width));
        for (gate_up, out) in rows {
            let (gate, up) = gate_up.split_at(self.width);
            for ((gate, up), out) in gate
                .chunks(WIDTH)
                .zip(up.chunks(WIDTH))
                .zip(out.chunks_mut(WIDTH))
            {
                let (gate, up) = (L::from_slice(gate, 0.0), L::from_slice(up, 0.0));
                let denominator = L::splat(1.0).add(exp(L::splat(0.0).sub(gate)));
                gate.div(denominator).mul(up).write(out);
            }
        }
    }
}

/// See [`Rows::silu_mul`](crate::backend::Rows::silu_mul).
pub(crate) fn silu_mul(
    exec: Exec<'_>,
    gate_up: &[f32],
    rows: usize,
    width: usize,
    out: &mut [f32],
) -> Result<()> {
    let (op, len) = ("silu_mul", rows.saturating_mul(width));
    at_least(op, "gate_up", gate_up.len(), len.saturating_mul(2))?;
    at_least(op, "out", out.len(), len)?;
    if len == 0 {
        return Ok(());
    }
    let step = rows_per_task(2 * width);
    let out = Shared::new(&mut out[..len]);
    exec.run(rows.div_ceil(step), 4 * len, &|task| {
        let (start, rows) = (task * step, step.min(rows - task * step));
        // SAFETY: tasks write disjoint rows.
        let out = unsafe { out.part(start * width, rows * width) };
        let gate_up = &gate_up[2 * start * width..2 * (start + rows) * width];
        dispatch(
            exec.level,
            SiluRows {
                gate_up,
                width,
                out,
            },
        );
    });
    Ok(())
}

/// See [`Rows::gather_rows`](crate::backend::Rows::gather_rows).
pub(crate) fn gather_rows(x: &[f32], width: usize, rows: &[usize], out: &mut [f32]) -> Result<()> {
    let op = "gather_rows";
    at_least(op, "out", out.len(), rows.len().saturating_mul(width))?;
    if width == 0 {
        return Ok(());
    }
    let len = x.len() / width;
    if let Some(&index) = rows.iter().find(|&&row| row >= len) {
        return Err(Error::Index {
            op,
            what: "row",
            index,
            len,
        });
    }
    for (&row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
        out.copy_from_slice(&x[row * width..(row + 1) * width]);
    }
    Ok(())
}

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
    fn written(item: &SplitItem<'_>) -> std::ops::Range<usize> {
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

/// Checks rows and KV head of an item.
pub(crate) fn check_item(
    op: &'static str,
    item_rows: &std::ops::Range<usize>,
    rows: usize,
    kv_head: usize,
    kv_heads: usize,
) -> Result<()> {
    if item_rows.end > rows {
        return Err(Error::Index {
            op,
            what: "end of rows",
            index: item_rows.end,
            len: rows,
        });
    }
    if item_rows.start > item_rows.end {
        return Err(Error::Index {
            op,
            what: "start of rows",
            index: item_rows.start,
            len: item_rows.end,
        });
    }
    if kv_head >= kv_heads {
        return Err(Error::Index {
            op,
            what: "KV head",
            index: kv_head,
            len: kv_heads,
        });
    }
    Ok(())
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
