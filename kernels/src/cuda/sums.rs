//! What ranks sum, on the device: products of row-parallel matrices in fixed point, and embeddings.

use super::weights::Matrix;
use super::{Arg, Buffer, CudaBackend, Device, Launch, Sum, at_least};
use crate::error::{Error, Result};
use crate::sums::SumElement;

/// What `embed` takes for a row that another rank has: `NONE` in `kernels/cu/common.cuh`.
const NONE: u32 = u32::MAX;

impl<D: Device> CudaBackend<D> {
    /// A product in `out`, from there in fixed point to memory of its own, summed there, and back
    /// to `out`.
    pub(super) fn multiply_sum(
        &self,
        matrix: &Matrix<D>,
        x: &Buffer<D>,
        rows: usize,
        ends: &[usize],
        out: &Buffer<D>,
    ) -> Result<()> {
        self.multiply_units(matrix, x, rows, ends, out)?;
        let count = rows.saturating_mul(matrix.rows);
        let bytes = count.checked_mul(8).ok_or(Error::OutOfMemory {
            what: "sums",
            bytes: usize::MAX,
        })?;
        let mut work = self.work();
        let address = work.fixed.address(&self.device, "sums over ranks", bytes)?;
        let (fixed, len) = (Arg::Pointer(address), Arg::U64(count as u64));
        let grid = [count.div_ceil(256) as u32, 1, 1];
        self.run(Launch {
            kernel: "to_fixed",
            grid,
            threads: 256,
            shared: 0,
            args: &[out.arg(), len, fixed],
        })?;
        self.sum(&Sum {
            address,
            count,
            element: SumElement::U64,
        })?;
        self.run(Launch {
            kernel: "from_fixed",
            grid,
            threads: 256,
            shared: 0,
            args: &[fixed, len, out.arg()],
        })
    }

    /// Rows of the table; where another rank has one, zeros that the sum leaves as its owner has
    /// it.
    pub(super) fn embed_sum_rows(
        &self,
        table: &Matrix<D>,
        ids: &[Option<u32>],
        out: &Buffer<D>,
    ) -> Result<()> {
        let op = "embed_sum";
        if let Some(&id) = ids.iter().flatten().find(|&&id| id as usize >= table.rows) {
            return Err(Error::Index {
                op,
                what: "token id",
                index: id as usize,
                len: table.rows,
            });
        }
        let count = ids.len().saturating_mul(table.cols);
        at_least(op, "out", out.len, count)?;
        let ids: Vec<u32> = ids.iter().map(|id| id.unwrap_or(NONE)).collect();
        self.launch_embed(table, &ids, out)?;
        self.sum(&Sum {
            address: out.address(),
            count,
            element: SumElement::F32,
        })
    }

    /// Sums an array over the ranks, unless it is empty.
    fn sum(&self, sum: &Sum) -> Result<()> {
        if sum.count == 0 {
            return Ok(());
        }
        // SAFETY: both callers have checked the array's length, and it is `Held`.
        unsafe { self.device.sum(sum) }
    }
}
