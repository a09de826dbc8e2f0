//! Norms, activations, sums and gathers.

use super::exec::Exec;
use super::exp::exp;
use super::lanes::{Kernel, Lanes, Shared, WIDTH, dispatch};
use crate::error::{Error, Result, at_least};

/// Rows of one task, so that a task is a few thousand values.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (4096 / width.max(1)).max(1)
}

/// `out = x / sqrt(mean(x²) + eps) * weight`: eight partial sums, then a fixed tree. `out` may not
/// alias `x`.
#[inline(always)]
pub(crate) fn norm_row<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
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
