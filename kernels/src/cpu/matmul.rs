//! Matrix products over packed weights: checks, scratch memory, and the cut into tasks.

mod float;
mod int8;
mod task;
#[cfg(test)]
mod tests;
mod tile;

use float::{FloatTask, Tiled};
use int8::{IntTask, Rounded};
use task::{Cut, Sink};

use super::cell::PANEL;
use super::device::{Activations, CpuBackend};
use super::pack::{Codes, CpuMatrix, Floats, Panels, Part, with_codes, with_floats};
use super::pool::SendPtr;
use super::totals::{Ends, Fixed, Form, Single, Sum};
use crate::error::{Result, at_least};
use crate::fixed;

/// Multiply-adds that are worth a task: some microseconds.
const TASK_WORK: usize = 1 << 17;
/// Tasks per thread, so that a thread that is held up does not hold up the region.
const TASKS_PER_THREAD: usize = 8;

/// Checked arguments of a product: `x` is `[rows, C]`, `out` `[rows, N]`.
struct Product<'a, T> {
    matrix: &'a CpuMatrix,
    x: &'a [f32],
    rows: usize,
    bias: Option<&'a [T]>,
    ends: Ends<'a>,
    out: &'a mut [T],
}

/// See [`Products::matmul`](crate::backend::Products::matmul). Buffers may be longer than the shape
/// needs.
pub(crate) fn matmul(
    backend: &CpuBackend,
    matrix: &CpuMatrix,
    x: &[f32],
    rows: usize,
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<()> {
    const OP: &str = "matmul";
    let (x, out) = operands(OP, matrix, x, rows, out)?;
    at_least(
        OP,
        "bias",
        bias.map_or(matrix.rows, <[f32]>::len),
        matrix.rows,
    )?;
    product::<Single>(
        backend,
        Product {
            matrix,
            x,
            rows,
            bias,
            ends: Ends::new(&[matrix.cols]),
            out,
        },
    );
    Ok(())
}

/// A product whose units end at columns `ends`: see
/// [`Products::matmul_units`](crate::backend::Products::matmul_units) for f32 and
/// [`Products::matmul_share`](crate::backend::Products::matmul_share) for i64.
pub(crate) fn matmul_fixed<T: Sum>(
    backend: &CpuBackend,
    matrix: &CpuMatrix,
    x: &[f32],
    rows: usize,
    ends: &[usize],
    out: &mut [T],
) -> Result<()> {
    let (x, out) = operands(T::OP, matrix, x, rows, out)?;
    fixed::check_ends(T::OP, ends, matrix.cols)?;
    product::<Fixed<T>>(
        backend,
        Product {
            matrix,
            x,
            rows,
            bias: None,
            ends: Ends::new(ends),
            out,
        },
    );
    Ok(())
}

/// The parts of `x` and `out` that a product of `rows` rows reads and writes.
fn operands<'a, T>(
    op: &'static str,
    matrix: &CpuMatrix,
    x: &'a [f32],
    rows: usize,
    out: &'a mut [T],
) -> Result<(&'a [f32], &'a mut [T])> {
    let (x_len, out_len) = (
        rows.saturating_mul(matrix.cols),
        rows.saturating_mul(matrix.rows),
    );
    at_least(op, "x", x.len(), x_len)?;
    at_least(op, "out", out.len(), out_len)?;
    Ok((&x[..x_len], &mut out[..out_len]))
}

impl Panels {
    /// Whether the weights meet rounded activations.
    fn is_int(&self, activations: Activations) -> bool {
        activations == Activations::Int8 && matches!(self, Self::Codes(_))
    }
}

fn product<F: Form>(backend: &CpuBackend, product: Product<'_, F::Out>) {
    let Product {
        matrix,
        x,
        rows,
        bias,
        ends,
        out,
    } = product;
    let mut scratch = backend.scratch.take();
    let is_int = |part: &Part| part.panels.is_int(backend.activations);
    let rounded = matrix.parts.iter().any(is_int);
    let tiled = !matrix.parts.iter().all(is_int);
    let rounded =
        rounded.then(|| Rounded::new(&backend.pool, backend.simd, x, rows, &mut scratch.words));
    let tiled = tiled.then(|| Tiled::new(&backend.pool, x, rows, &mut scratch.values));
    let out = SendPtr(out.as_mut_ptr());
    let panels: usize = matrix
        .parts
        .iter()
        .map(|part| part.rows.div_ceil(PANEL))
        .sum();
    let work = rows.saturating_mul(matrix.rows).saturating_mul(matrix.cols);
    let tasks = (work / TASK_WORK).clamp(1, TASKS_PER_THREAD * backend.pool.threads());
    let per_task = panels.div_ceil(tasks).max(1);
    backend.pool.run(panels.div_ceil(per_task), &|task| {
        let wanted = task * per_task..(task + 1) * per_task;
        let mut first = 0;
        for part in &matrix.parts {
            let count = part.rows.div_ceil(PANEL);
            let panels = wanted.start.saturating_sub(first).min(count)
                ..wanted.end.saturating_sub(first).min(count);
            first += count;
            let sink = Sink {
                out: &out,
                first: part.first,
                stride: matrix.rows,
                cols: part.rows,
                bias,
            };
            let cut = Cut {
                panels,
                ends: &ends,
            };
            match (is_int(part), &rounded, &tiled) {
                (true, Some(x), _) => int_panels::<F>(backend, part, cut, x, sink),
                (false, _, Some(x)) => float_panels::<F>(backend, part, cut, x, sink),
                _ => unreachable!("activations are prepared for every part"),
            }
        }
    });
    backend.scratch.put(scratch);
}

fn int_panels<F: Form>(
    backend: &CpuBackend,
    part: &Part,
    cut: Cut<'_>,
    x: &Rounded<'_>,
    sink: Sink<'_, F::Out>,
) {
    match &part.panels {
        Panels::Codes(codes) => with_codes!(codes, cells => {
            backend.simd.dispatch(IntTask::<_, F> { cells, cut, x, sink });
        }),
        Panels::Float(_) => unreachable!("float weights meet f32 activations"),
    }
}

fn float_panels<F: Form>(
    backend: &CpuBackend,
    part: &Part,
    cut: Cut<'_>,
    x: &Tiled<'_>,
    sink: Sink<'_, F::Out>,
) {
    match &part.panels {
        Panels::Float(floats) => with_floats!(floats, cells => {
            backend.simd.dispatch(FloatTask::<_, F> { cells, cut, x, sink });
        }),
        Panels::Codes(codes) => with_codes!(codes, cells => {
            backend.simd.dispatch(FloatTask::<_, F> { cells, cut, x, sink });
        }),
    }
}
