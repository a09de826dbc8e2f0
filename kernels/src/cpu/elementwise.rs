//! Norms, activations, sums and gathers.

use std::marker::PhantomData;

use super::exec::Exec;
use super::exp::exp;
use super::lanes::{Kernel, Lanes, Shared, WIDTH, dispatch};
use crate::backend::CLAMP;
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

/// A smooth gate, and what goes through it.
trait Gate {
    /// The gated value.
    fn through<L: Lanes>(gate: L, up: L) -> L;
}

/// `g / (1 + exp(exponent)) * up`.
#[inline(always)]
fn logistic<L: Lanes>(gate: L, exponent: L, up: L) -> L {
    let denominator = L::splat(1.0).add(exp(exponent));
    gate.div(denominator).mul(up)
}

/// The exponent is `-g`.
struct Silu;

impl Gate for Silu {
    #[inline(always)]
    fn through<L: Lanes>(gate: L, up: L) -> L {
        logistic(gate, L::splat(0.0).sub(gate), up)
    }
}

/// The exponent is `-2 sqrt(2/pi) (g + 0.044715 g³)`.
struct Gelu;

impl Gate for Gelu {
    #[inline(always)]
    fn through<L: Lanes>(gate: L, up: L) -> L {
        const LINEAR: f32 = -1.595_769;
        const CUBIC: f32 = LINEAR * 0.044_715;
        let slope = gate.mul(gate).fma(L::splat(CUBIC), L::splat(LINEAR));
        logistic(gate, slope.mul(gate), up)
    }
}

/// The exponent is `-1.702 g`, and both sides have limits.
struct Clamped;

impl Gate for Clamped {
    #[inline(always)]
    fn through<L: Lanes>(gate: L, up: L) -> L {
        let limit = L::splat(CLAMP);
        // NaN comes through where it is the second operand.
        let gate = limit.min(gate);
        let up = L::splat(-CLAMP).max(limit.min(up));
        logistic(gate, L::splat(-1.702).mul(gate), up.add(L::splat(1.0)))
    }
}

/// Rows of products with gates.
struct GateRows<'a, G> {
    gate_up: &'a [f32],
    width: usize,
    out: &'a mut [f32],
    gate: PhantomData<G>,
}

impl<G: Gate> Kernel for GateRows<'_, G> {
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
                G::through(gate, up).write(out);
            }
        }
    }
}

/// Where the gates of some rows come from and where they go.
pub(crate) struct Gated<'a> {
    pub(crate) gate_up: &'a [f32],
    pub(crate) rows: usize,
    /// `F`.
    pub(crate) width: usize,
    pub(crate) out: &'a mut [f32],
}

/// See [`Rows::silu_mul`](crate::backend::Rows::silu_mul).
pub(crate) fn silu_mul(exec: Exec<'_>, gated: Gated<'_>) -> Result<()> {
    gate_mul::<Silu>(exec, "silu_mul", gated)
}

/// See [`Rows::gelu_mul`](crate::backend::Rows::gelu_mul).
pub(crate) fn gelu_mul(exec: Exec<'_>, gated: Gated<'_>) -> Result<()> {
    gate_mul::<Gelu>(exec, "gelu_mul", gated)
}

/// See [`Rows::clamped_mul`](crate::backend::Rows::clamped_mul).
pub(crate) fn clamped_mul(exec: Exec<'_>, gated: Gated<'_>) -> Result<()> {
    gate_mul::<Clamped>(exec, "clamped_mul", gated)
}

fn gate_mul<G: Gate>(exec: Exec<'_>, op: &'static str, gated: Gated<'_>) -> Result<()> {
    let Gated {
        gate_up,
        rows,
        width,
        out,
    } = gated;
    let len = rows.saturating_mul(width);
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
            GateRows {
                gate_up,
                width,
                out,
                gate: PhantomData::<G>,
            },
        );
    });
    Ok(())
}

/// Rows of `scale_rows`.
struct ScaleRows<'a> {
    x: &'a mut [f32],
    width: usize,
    factors: &'a [f32],
}

impl Kernel for ScaleRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (x, factor) in self.x.chunks_exact_mut(self.width).zip(self.factors) {
            let factor = L::splat(*factor);
            for x in x.chunks_mut(WIDTH) {
                L::from_slice(x, 0.0).mul(factor).write(x);
            }
        }
    }
}

/// See [`Rows::scale_rows`](crate::backend::Rows::scale_rows).
pub(crate) fn scale_rows(
    exec: Exec<'_>,
    x: &mut [f32],
    width: usize,
    factors: &[f32],
) -> Result<()> {
    let len = factors.len().saturating_mul(width);
    at_least("scale_rows", "x", x.len(), len)?;
    if len == 0 {
        return Ok(());
    }
    let (step, rows) = (rows_per_task(width), factors.len());
    let x = Shared::new(&mut x[..len]);
    exec.run(rows.div_ceil(step), len, &|task| {
        let (start, rows) = (task * step, step.min(rows - task * step));
        // SAFETY: tasks write disjoint rows.
        let x = unsafe { x.part(start * width, rows * width) };
        let factors = &factors[start..start + rows];
        dispatch(exec.level, ScaleRows { x, width, factors });
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
