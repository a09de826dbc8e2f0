//! Matrix products and embedding rows over packed weights: checks, scratch memory, and the cut into
//! tasks.

use std::ops::{AddAssign, Range};
use std::sync::PoisonError;

use super::matmul_f32::{FloatTask, Tiled};
use super::matmul_int8::{IntTask, Rounded};
use super::pack::{Cell, CpuMatrix, Lines, PANEL, Panels, Part};
use super::pool::SendPtr;
use super::quant::GROUP;
use super::simd::{Kernel, Simd};
use super::totals::{Ends, Fixed, Form, Single, Sum};
use super::{Activations, CpuBackend};
use crate::error::{Error, Result};
use crate::fixed;

/// Multiply-adds that are worth a task: some microseconds.
const TASK_WORK: usize = 1 << 17;
/// Tasks per thread, so that a thread that is held up does not hold up the region.
const TASKS_PER_THREAD: usize = 8;

/// Memory for rearranged activations, kept between calls.
#[derive(Default)]
pub(crate) struct Scratch {
    words: Vec<u32>,
    values: Vec<f32>,
}

/// Where products go: the columns of one part in `out`.
#[derive(Clone, Copy)]
pub(crate) struct Sink<'a, T> {
    /// First element of the part's first column.
    out: &'a SendPtr<T>,
    first: usize,
    /// Columns of `out`, and of the part.
    stride: usize,
    cols: usize,
    bias: Option<&'a [T]>,
}

impl<T: Copy + AddAssign> Sink<'_, T> {
    /// Writes output rows `8 panel ..` of token row `row`, those that exist.
    #[inline(always)]
    pub fn write(&self, panel: usize, row: usize, mut values: [T; PANEL]) {
        let col = panel * PANEL;
        if let Some(bias) = self.bias {
            values
                .iter_mut()
                .zip(&bias[self.first + col..])
                .for_each(|(value, bias)| *value += *bias);
        }
        let count = PANEL.min(self.cols - col);
        // SAFETY: `product` checked that `out` holds `rows * stride` values; `row` is below `rows`,
        // and `first + col + count` is at most `stride`. Each panel belongs to one task, so no
        // other thread touches these values.
        unsafe {
            let out = self.out.get().add(row * self.stride + self.first + col);
            if count == PANEL {
                out.cast::<[T; PANEL]>().write_unaligned(values)
            } else {
                copy(&values[..count], out)
            }
        }
    }
}

/// Copies a few values.
///
/// # Safety
/// `out` is writable for the length of `values`.
#[cold]
unsafe fn copy<T>(values: &[T], out: *mut T) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), out, values.len()) }
}

fn check(op: &'static str, what: &'static str, got: usize, want: usize) -> Result<()> {
    if got < want {
        Err(Error::Shape {
            op,
            what,
            got,
            want,
        })
    } else {
        Ok(())
    }
}

/// Checked arguments of a product: `x` is `[rows, C]`, `out` `[rows, N]`.
struct Product<'a, T> {
    matrix: &'a CpuMatrix,
    x: &'a [f32],
    rows: usize,
    bias: Option<&'a [T]>,
    ends: Ends<'a>,
    out: &'a mut [T],
}

/// See [`Backend::matmul`](crate::Backend::matmul). Buffers may be longer than the shape needs.
pub(crate) fn matmul(
    backend: &CpuBackend,
    matrix: &CpuMatrix,
    x: &[f32],
    rows: usize,
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<()> {
    const OP: &str = "matmul";
    let (x, out) = operands(OP, matrix, (x, rows), out)?;
    check(
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
/// [`Backend::matmul_units`](crate::Backend::matmul_units) for f32 and
/// [`Backend::matmul_share`](crate::Backend::matmul_share) for i64.
pub(crate) fn matmul_fixed<T: Sum>(
    backend: &CpuBackend,
    matrix: &CpuMatrix,
    x: (&[f32], usize),
    ends: &[usize],
    out: &mut [T],
) -> Result<()> {
    let rows = x.1;
    let (x, out) = operands(T::OP, matrix, x, out)?;
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
    (x, rows): (&'a [f32], usize),
    out: &'a mut [T],
) -> Result<(&'a [f32], &'a mut [T])> {
    let (x_len, out_len) = (
        rows.saturating_mul(matrix.cols),
        rows.saturating_mul(matrix.rows),
    );
    check(op, "x", x.len(), x_len)?;
    check(op, "out", out.len(), out_len)?;
    Ok((&x[..x_len], &mut out[..out_len]))
}

impl Panels {
    /// Whether the weights meet rounded activations.
    fn is_int(&self, activations: Activations) -> bool {
        activations == Activations::Int8
            && !matches!(self, Self::F32(_) | Self::F16(_) | Self::BF16(_))
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
    let mut scratch = backend
        .scratch
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .pop()
        .unwrap_or_default();
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
    backend
        .scratch
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(scratch);
}

/// What of a part a task does, and where its units end.
#[derive(Clone)]
pub(crate) struct Cut<'a> {
    pub panels: Range<usize>,
    pub ends: &'a Ends<'a>,
}

fn int_panels<F: Form>(
    backend: &CpuBackend,
    part: &Part,
    cut: Cut<'_>,
    x: &Rounded<'_>,
    sink: Sink<'_, F::Out>,
) {
    match &part.panels {
        Panels::U4(cells) => backend.simd.dispatch(IntTask::<_, F> {
            cells,
            cut,
            x,
            sink,
        }),
        Panels::U4Wide(cells) => backend.simd.dispatch(IntTask::<_, F> {
            cells,
            cut,
            x,
            sink,
        }),
        Panels::I8(cells) => backend.simd.dispatch(IntTask::<_, F> {
            cells,
            cut,
            x,
            sink,
        }),
        Panels::U6(cells) => backend.simd.dispatch(IntTask::<_, F> {
            cells,
            cut,
            x,
            sink,
        }),
        Panels::F32(_) | Panels::F16(_) | Panels::BF16(_) => {
            unreachable!("float weights meet f32 activations")
        }
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
        Panels::F32(cells) => backend.simd.dispatch(FloatTask::<_, F> {
            cells,
            cut,
            x,
            sink,
        }),
        Panels::F16(cells) => backend.simd.dispatch(FloatTask::<_, F> {
            cells,
            cut,
            x,
            sink,
        }),
        Panels::BF16(cells) => backend.simd.dispatch(FloatTask::<_, F> {
            cells,
            cut,
            x,
            sink,
        }),
        Panels::U4(cells) => backend.simd.dispatch(FloatTask::<_, F> {
            cells,
            cut,
            x,
            sink,
        }),
        Panels::U4Wide(cells) => backend.simd.dispatch(FloatTask::<_, F> {
            cells,
            cut,
            x,
            sink,
        }),
        Panels::I8(cells) => backend.simd.dispatch(FloatTask::<_, F> {
            cells,
            cut,
            x,
            sink,
        }),
        Panels::U6(cells) => backend.simd.dispatch(FloatTask::<_, F> {
            cells,
            cut,
            x,
            sink,
        }),
    }
}

/// See [`Backend::embed`](crate::Backend::embed).
pub(crate) fn embed(
    backend: &CpuBackend,
    table: &CpuMatrix,
    ids: &[u32],
    out: &mut [f32],
) -> Result<()> {
    const OP: &str = "embed";
    let len = ids.len().saturating_mul(table.cols);
    check(OP, "out", out.len(), len)?;
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= table.rows) {
        return Err(Error::Index {
            op: OP,
            what: "token id",
            index: id as usize,
            len: table.rows,
        });
    }
    if len > 0 {
        backend.pool.chunks(&mut out[..len], table.cols, &|i, out| {
            let row = ids[i] as usize;
            if let Some(part) = table.parts.iter().find(|part| row < part.first + part.rows) {
                unpack_row(backend, part, row - part.first, out);
            }
        });
    }
    Ok(())
}

fn unpack_row(backend: &CpuBackend, part: &Part, row: usize, out: &mut [f32]) {
    match &part.panels {
        Panels::F32(cells) => backend.simd.dispatch(UnpackRow { cells, row, out }),
        Panels::F16(cells) => backend.simd.dispatch(UnpackRow { cells, row, out }),
        Panels::BF16(cells) => backend.simd.dispatch(UnpackRow { cells, row, out }),
        Panels::U4(cells) => backend.simd.dispatch(UnpackRow { cells, row, out }),
        Panels::U4Wide(cells) => backend.simd.dispatch(UnpackRow { cells, row, out }),
        Panels::I8(cells) => backend.simd.dispatch(UnpackRow { cells, row, out }),
        Panels::U6(cells) => backend.simd.dispatch(UnpackRow { cells, row, out }),
    }
}

/// One row of a part as f32.
struct UnpackRow<'a, C> {
    cells: &'a [C],
    row: usize,
    out: &'a mut [f32],
}

impl<C: Cell> Kernel for UnpackRow<'_, C> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let per_panel = self.out.len() / C::INPUTS;
        let cells = &self.cells[self.row / PANEL * per_panel..][..per_panel];
        for (cell, out) in cells.iter().zip(self.out.chunks_exact_mut(C::INPUTS)) {
            let mut weights: [Lines<1>; GROUP] = [[[0.0; PANEL]; 1]; GROUP];
            cell.unpack(s, 0, &mut weights[..C::INPUTS]);
            out.iter_mut()
                .zip(&weights)
                .for_each(|(out, weights)| *out = weights[0][self.row % PANEL]);
        }
    }
}

#[cfg(test)]
mod tests;
