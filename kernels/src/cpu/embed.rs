//! Embedding: rows of a packed matrix as f32.

use super::cell::{Cell, Lines, PANEL};
use super::device::CpuBackend;
use super::pack::{Codes, CpuMatrix, Floats, Panels, Part, with_codes, with_floats};
use super::simd::{Kernel, Simd};
use crate::error::{Error, Result, at_least};
use crate::quant::GROUP;

/// See [`Products::embed`](crate::backend::Products::embed).
pub(crate) fn embed(
    backend: &CpuBackend,
    table: &CpuMatrix,
    ids: &[u32],
    out: &mut [f32],
) -> Result<()> {
    const OP: &str = "embed";
    let len = ids.len().saturating_mul(table.cols);
    at_least(OP, "out", out.len(), len)?;
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
        Panels::Float(floats) => with_floats!(floats, cells => {
            backend.simd.dispatch(UnpackRow { cells, row, out });
        }),
        Panels::Codes(codes) => with_codes!(codes, cells => {
            backend.simd.dispatch(UnpackRow { cells, row, out });
        }),
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
