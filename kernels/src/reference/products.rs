//! Products by their definitions, in f64, over weights that were made f32.

use super::dequant;
use super::device::ReferenceBackend;
use crate::backend::{Products, RankSums, WeightView};
use crate::error::{Error, Result, at_least};
use crate::fixed;

/// Weights as f32.
pub struct ReferenceMatrix {
    cols: usize,
    /// `[rows, cols]`.
    weights: Vec<f32>,
}

/// Products `[T, N]` in fixed point, unit by unit.
fn units(
    op: &'static str,
    matrix: &ReferenceMatrix,
    x: &[f32],
    rows: usize,
    ends: &[usize],
) -> Result<Vec<i64>> {
    let cols = matrix.cols;
    at_least(op, "x", x.len(), rows * cols)?;
    fixed::check_ends(op, ends, cols)?;
    let mut sums = Vec::new();
    for x in x[..rows * cols].chunks_exact(cols.max(1)) {
        for weights in matrix.weights.chunks_exact(cols.max(1)) {
            let (mut sum, mut start) = (0i64, 0);
            for &end in ends {
                let unit: f64 = x[start..end]
                    .iter()
                    .zip(&weights[start..end])
                    .map(|(x, w)| f64::from(*x) * f64::from(*w))
                    .sum();
                sum = sum.wrapping_add(fixed::from_f32(unit as f32));
                start = end;
            }
            sums.push(sum);
        }
    }
    Ok(sums)
}

impl Products for ReferenceBackend {
    type Matrix = ReferenceMatrix;

    fn load_matrix(&self, parts: &[WeightView<'_>]) -> Result<ReferenceMatrix> {
        let op = "load_matrix";
        let cols = parts.first().map_or(0, |part| part.cols);
        let mut weights = Vec::new();
        for part in parts {
            if part.cols != cols {
                return Err(Error::Shape {
                    op,
                    what: "a row of a stacked part",
                    got: part.cols,
                    want: cols,
                });
            }
            weights.extend(dequant::weights(part, part.row_bytes(op)?)?);
        }
        Ok(ReferenceMatrix { cols, weights })
    }

    fn matrix_bytes(&self, matrix: &ReferenceMatrix) -> usize {
        matrix.weights.len() * size_of::<f32>()
    }

    fn embed(&self, table: &ReferenceMatrix, ids: &[u32], out: &mut Vec<f32>) -> Result<()> {
        let op = "embed";
        let (cols, len) = (table.cols, table.weights.len() / table.cols.max(1));
        at_least(op, "out", out.len(), ids.len() * cols)?;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= len) {
            return Err(Error::Index {
                op,
                what: "token id",
                index: id as usize,
                len,
            });
        }
        for (t, &id) in ids.iter().enumerate() {
            out[t * cols..(t + 1) * cols]
                .copy_from_slice(&table.weights[id as usize * cols..][..cols]);
        }
        Ok(())
    }

    fn matmul(
        &self,
        matrix: &ReferenceMatrix,
        x: &Vec<f32>,
        rows: usize,
        bias: Option<&Vec<f32>>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let (op, cols) = ("matmul", matrix.cols);
        let outputs = matrix.weights.len() / cols.max(1);
        at_least(op, "x", x.len(), rows * cols)?;
        at_least(op, "out", out.len(), rows * outputs)?;
        at_least(op, "bias", bias.map_or(outputs, Vec::len), outputs)?;
        for t in 0..rows {
            for n in 0..outputs {
                let mut sum = bias.map_or(0.0, |bias| f64::from(bias[n]));
                for c in 0..cols {
                    sum += f64::from(x[t * cols + c]) * f64::from(matrix.weights[n * cols + c]);
                }
                out[t * outputs + n] = sum as f32;
            }
        }
        Ok(())
    }

    fn matmul_units(
        &self,
        matrix: &ReferenceMatrix,
        x: &Vec<f32>,
        rows: usize,
        ends: &[usize],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        at_least(
            "matmul_units",
            "out",
            out.len(),
            rows * (matrix.weights.len() / matrix.cols.max(1)),
        )?;
        let sums = units("matmul_units", matrix, x, rows, ends)?;
        out.iter_mut()
            .zip(sums)
            .for_each(|(out, sum)| *out = fixed::to_f32(sum));
        Ok(())
    }

    fn matmul_share(
        &self,
        matrix: &ReferenceMatrix,
        x: &Vec<f32>,
        rows: usize,
        ends: &[usize],
        out: &mut [i64],
    ) -> Result<()> {
        at_least(
            "matmul_share",
            "out",
            out.len(),
            rows * (matrix.weights.len() / matrix.cols.max(1)),
        )?;
        let sums = units("matmul_share", matrix, x, rows, ends)?;
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum);
        Ok(())
    }
}

impl RankSums for ReferenceBackend {}
