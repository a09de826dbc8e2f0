//! Operations on rows, element by element.

use super::device::ReferenceBackend;
use crate::backend::{CLAMP, RowOperation, Rows};
use crate::error::{Error, Result, at_least};

/// `x / sqrt(mean(x²) + eps) * weight`.
pub(super) fn norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mean = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / x.len() as f64;
    let inverse = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter()
        .zip(weight)
        .map(|(&x, &w)| (f64::from(x) * inverse * f64::from(w)) as f32)
        .collect()
}

impl Rows for ReferenceBackend {
    fn rms_norm(
        &self,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        eps: f32,
        rows: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let (op, width) = ("rms_norm", weight.len());
        at_least(op, "x", x.len(), rows * width)?;
        at_least(op, "out", out.len(), rows * width)?;
        for r in 0..rows {
            let row = r * width..(r + 1) * width;
            out[row.clone()].copy_from_slice(&norm(&x[row], weight, eps));
        }
        Ok(())
    }

    fn add(&self, x: &mut Vec<f32>, y: &Vec<f32>, len: usize) -> Result<()> {
        at_least("add", "x", x.len(), len)?;
        at_least("add", "y", y.len(), len)?;
        for i in 0..len {
            x[i] += y[i];
        }
        Ok(())
    }

    fn silu_mul(
        &self,
        gate_up: &Vec<f32>,
        rows: usize,
        width: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let op = "silu_mul";
        at_least(op, "gate_up", gate_up.len(), rows * 2 * width)?;
        at_least(op, "out", out.len(), rows * width)?;
        for t in 0..rows {
            for f in 0..width {
                let gate = f64::from(gate_up[t * 2 * width + f]);
                let up = f64::from(gate_up[t * 2 * width + width + f]);
                out[t * width + f] = (gate / (1.0 + (-gate).exp()) * up) as f32;
            }
        }
        Ok(())
    }

    fn gather_rows(
        &self,
        x: &Vec<f32>,
        width: usize,
        rows: &[usize],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let op = "gather_rows";
        let len = x.len() / width.max(1);
        at_least(op, "out", out.len(), rows.len() * width)?;
        if let Some(&index) = rows.iter().find(|&&row| row >= len) {
            return Err(Error::Index {
                op,
                what: "row",
                index,
                len,
            });
        }
        for (i, &row) in rows.iter().enumerate() {
            out[i * width..(i + 1) * width].copy_from_slice(&x[row * width..(row + 1) * width]);
        }
        Ok(())
    }

    fn offers(&self, _: RowOperation) -> bool {
        true
    }

    fn gelu_mul(
        &self,
        gate_up: &Vec<f32>,
        rows: usize,
        width: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let op = "gelu_mul";
        at_least(op, "gate_up", gate_up.len(), rows * 2 * width)?;
        at_least(op, "out", out.len(), rows * width)?;
        for t in 0..rows {
            for f in 0..width {
                let gate = f64::from(gate_up[t * 2 * width + f]);
                let up = f64::from(gate_up[t * 2 * width + width + f]);
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
                out[t * width + f] = (0.5 * gate * (1.0 + inner.tanh()) * up) as f32;
            }
        }
        Ok(())
    }

    fn clamped_mul(
        &self,
        gate_up: &Vec<f32>,
        rows: usize,
        width: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let op = "clamped_mul";
        at_least(op, "gate_up", gate_up.len(), rows * 2 * width)?;
        at_least(op, "out", out.len(), rows * width)?;
        for t in 0..rows {
            for f in 0..width {
                let gate = f64::from(gate_up[t * 2 * width + f]).min(CLAMP.into());
                let up = f64::from(gate_up[t * 2 * width + width + f]);
                let up = up.clamp(-f64::from(CLAMP), CLAMP.into()) + 1.0;
                out[t * width + f] = (gate / (1.0 + (-1.702 * gate).exp()) * up) as f32;
            }
        }
        Ok(())
    }

    fn scale_rows(&self, x: &mut Vec<f32>, width: usize, factors: &[f32]) -> Result<()> {
        at_least("scale_rows", "x", x.len(), factors.len() * width)?;
        for (r, factor) in factors.iter().enumerate() {
            for value in &mut x[r * width..(r + 1) * width] {
                *value *= factor;
            }
        }
        Ok(())
    }
}
