//! Cases of operations on rows.

use super::report::Failure;
use super::suite::{Check, Named, Suite, refused};
use crate::backend::{Buffers, RowOperation, Rows};
use crate::error;
use crate::reference::ReferenceBackend;

impl<B: Rows> Suite<'_, B> {
    /// Cases of [`Rows`].
    ///
    /// # Errors
    /// The [`Failure`] that ended the part; values that differ are told by [`Suite::finish`].
    pub fn rows(&mut self) -> Result<(), Failure> {
        norms(self)?;
        sums(self)?;
        gates(self)?;
        gathers(self)?;
        let more: [(_, _, &MoreGates<B>, &MoreGates<ReferenceBackend>); 2] = [
            (
                RowOperation::GeluMul,
                "gelu_mul",
                &B::gelu_mul,
                &Rows::gelu_mul,
            ),
            (
                RowOperation::ClampedMul,
                "clamped_mul",
                &B::clamped_mul,
                &Rows::clamped_mul,
            ),
        ];
        for (operation, name, gates, reference) in more {
            if self.backend.offers(operation) {
                more_gates(self, name, gates, reference)?;
            }
        }
        if self.backend.offers(RowOperation::ScaleRows) {
            scaled(self)?;
        }
        refusals(self)
    }
}

/// `rms_norm`.
fn norms<B: Rows>(suite: &mut Suite<'_, B>) -> Check {
    for (rows, width) in [
        (0, 8),
        (1, 1),
        (1, 8),
        (3, 13),
        (2, 64),
        (33, 576),
        (70, 960),
    ] {
        let case = format!("rms_norm {rows} x {width}");
        let (x, weight) = (
            suite.random.values(rows * width),
            suite.random.values(width),
        );
        let mut want = vec![0.0; rows * width];
        ReferenceBackend
            .rms_norm(&x, &weight, 1e-5, rows, &mut want)
            .named(&case)?;
        let (x, weight) = (suite.upload(&x)?, suite.upload(&weight)?);
        let mut out = suite.backend.alloc(rows * width).named(&case)?;
        suite
            .backend
            .rms_norm(&x, &weight, 1e-5, rows, &mut out)
            .named(&case)?;
        let got = suite.download(&out, rows * width)?;
        suite.compare(&case, &got, &want, suite.tolerance.elementwise)?;
    }
    Ok(())
}

/// `add`.
fn sums<B: Rows>(suite: &mut Suite<'_, B>) -> Check {
    for len in [0, 1, 7, 100, 20_001] {
        let case = format!("add {len}");
        let (mut want, y) = (suite.random.values(len + 2), suite.random.values(len + 1));
        let (mut x, device_y) = (suite.upload(&want)?, suite.upload(&y)?);
        ReferenceBackend.add(&mut want, &y, len).named(&case)?;
        suite.backend.add(&mut x, &device_y, len).named(&case)?;
        let got = suite.download(&x, len + 2)?;
        suite.compare(&case, &got, &want, 0.0)?;
    }
    Ok(())
}

/// `silu_mul`.
fn gates<B: Rows>(suite: &mut Suite<'_, B>) -> Check {
    for (rows, width) in [(0, 4), (1, 1), (3, 13), (5, 1536), (40, 256)] {
        let case = format!("silu_mul {rows} x {width}");
        // Buffers may be longer than the rows need.
        let mut gate_up = suite.random.values(rows * 2 * width + 10);
        // Beyond where the exponential overflows or vanishes.
        gate_up.iter_mut().step_by(3).for_each(|x| *x *= 60.0);
        let mut want = vec![0.0; rows * width];
        ReferenceBackend
            .silu_mul(&gate_up, rows, width, &mut want)
            .named(&case)?;
        let gate_up = suite.upload(&gate_up)?;
        let mut out = suite.backend.alloc(rows * width).named(&case)?;
        suite
            .backend
            .silu_mul(&gate_up, rows, width, &mut out)
            .named(&case)?;
        let got = suite.download(&out, rows * width)?;
        suite.compare(&case, &got, &want, suite.tolerance.elementwise)?;
    }
    Ok(())
}

/// A product with gates other than SiLU.
type MoreGates<B> = dyn Fn(
    &B,
    &<B as Buffers>::Buffer,
    usize,
    usize,
    &mut <B as Buffers>::Buffer,
) -> error::Result<()>;

/// `gelu_mul` and `clamped_mul`.
fn more_gates<B: Rows>(
    suite: &mut Suite<'_, B>,
    name: &str,
    gates: &MoreGates<B>,
    reference: &MoreGates<ReferenceBackend>,
) -> Check {
    for (rows, width) in [(0, 4), (1, 1), (3, 13), (5, 1536), (40, 256)] {
        let case = format!("{name} {rows} x {width}");
        let mut gate_up = suite.random.values(rows * 2 * width + 10);
        // Beyond where the exponential overflows or vanishes.
        gate_up.iter_mut().step_by(3).for_each(|x| *x *= 60.0);
        let mut want = vec![0.0; rows * width];
        reference(&ReferenceBackend, &gate_up, rows, width, &mut want).named(&case)?;
        let gate_up = suite.upload(&gate_up)?;
        let mut out = suite.backend.alloc(rows * width).named(&case)?;
        gates(suite.backend, &gate_up, rows, width, &mut out).named(&case)?;
        let got = suite.download(&out, rows * width)?;
        suite.compare(&case, &got, &want, suite.tolerance.elementwise)?;
    }
    let short = suite.upload(&[0.0; 4])?;
    let mut out = suite.upload(&[0.0; 10])?;
    refused(
        &format!("{name} of too few values"),
        gates(suite.backend, &short, 1, 5, &mut out),
    )
}

/// `scale_rows`.
fn scaled<B: Rows>(suite: &mut Suite<'_, B>) -> Check {
    for (rows, width) in [(0, 3), (1, 1), (3, 13), (70, 960)] {
        let case = format!("scale_rows {rows} x {width}");
        let (mut want, factors) = (
            suite.random.values(rows * width + 2),
            suite.random.values(rows),
        );
        let mut x = suite.upload(&want)?;
        ReferenceBackend
            .scale_rows(&mut want, width, &factors)
            .named(&case)?;
        suite
            .backend
            .scale_rows(&mut x, width, &factors)
            .named(&case)?;
        let got = suite.download(&x, rows * width + 2)?;
        suite.compare(&case, &got, &want, 0.0)?;
    }
    let mut short = suite.upload(&[0.0; 4])?;
    refused(
        "scale_rows of too few values",
        suite.backend.scale_rows(&mut short, 3, &[1.0, 2.0]),
    )
}

/// `gather_rows`.
fn gathers<B: Rows>(suite: &mut Suite<'_, B>) -> Check {
    let (x, rows) = (suite.random.values(5 * 7), [4, 0, 4, 2]);
    let device = suite.upload(&x)?;
    let (mut out, mut want) = (
        suite.backend.alloc(4 * 7).named("gather_rows")?,
        vec![0.0; 4 * 7],
    );
    suite
        .backend
        .gather_rows(&device, 7, &rows, &mut out)
        .named("gather_rows")?;
    ReferenceBackend
        .gather_rows(&x, 7, &rows, &mut want)
        .named("gather_rows")?;
    let got = suite.download(&out, 4 * 7)?;
    suite.compare("gather_rows", &got, &want, 0.0)
}

fn refusals<B: Rows>(suite: &mut Suite<'_, B>) -> Check {
    let backend = suite.backend;
    let (small, ten) = (suite.upload(&[0.0; 4])?, suite.upload(&[0.0; 10])?);
    let mut out = suite.upload(&[0.0; 10])?;
    refused(
        "rms_norm of too few values",
        backend.rms_norm(&small, &small, 1e-5, 2, &mut out),
    )?;
    refused("add of too few values", backend.add(&mut out, &small, 5))?;
    refused(
        "gather of a missing row",
        backend.gather_rows(&ten, 5, &[2], &mut out),
    )
}
