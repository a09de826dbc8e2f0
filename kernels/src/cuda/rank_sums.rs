//! What ranks sum, on the device: products of row-parallel matrices in fixed point, and embeddings.

use std::sync::Arc;

use super::backend::{Buffer, CudaBackend};
use super::checks::{at_least, within};
use super::device::Device;
use super::launch::kernels::{FromFixed, ToFixed};
use super::launch::{Kernel, NONE, PtrMut, Sum};
use super::products::Matrix;
use crate::backend::{Products, RankSums};
use crate::error::{Error, Result};
use crate::sums::{DeviceSums, SumElement};

impl<D: Device> RankSums for CudaBackend<D> {
    fn join_sums(&self, sums: Option<Arc<dyn DeviceSums>>) -> bool {
        self.stream.join_sums(sums);
        true
    }

    /// A product in `out`, from there in fixed point to memory of its own, summed there, and back
    /// to `out`.
    fn matmul_sum(
        &self,
        matrix: &Matrix<D>,
        x: &Buffer<D>,
        rows: usize,
        ends: &[usize],
        out: &mut Buffer<D>,
    ) -> Result<()> {
        self.matmul_units(matrix, x, rows, ends, out)?;
        let count = rows.saturating_mul(matrix.rows);
        let bytes = count.checked_mul(8).ok_or(Error::OutOfMemory {
            what: "sums",
            bytes: usize::MAX,
        })?;

        let mut work = self.workspaces();
        let address = self
            .stream
            .reserve(&mut work.fixed, "sums over ranks", bytes)?;
        let (sums, len) = (PtrMut::at(address), count as u64);
        let blocks = count.div_ceil(256);
        let to_fixed = ToFixed {
            x: out.ptr(),
            len,
            out: sums,
        };
        self.launch(to_fixed.blocks(blocks))?;
        self.sum(&Sum {
            address,
            count,
            element: SumElement::U64,
        })?;
        let from_fixed = FromFixed {
            sums: sums.read(),
            len,
            out: out.ptr_mut(),
        };
        self.launch(from_fixed.blocks(blocks))
    }

    /// Rows of the table; where another rank has one, zeros that the sum leaves as its owner has
    /// it.
    fn embed_sum(&self, table: &Matrix<D>, ids: &[Option<u32>], out: &mut Buffer<D>) -> Result<()> {
        let op = "embed_sum";
        for &id in ids.iter().flatten() {
            within(op, "token id", id as usize, table.rows)?;
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
}

impl<D: Device> CudaBackend<D> {
    /// Sums an array over the ranks, unless it is empty.
    fn sum(&self, sum: &Sum) -> Result<()> {
        if sum.count == 0 {
            return Ok(());
        }
        // SAFETY: both callers have checked the array's length, and it is `StreamMemory`.
        unsafe { self.stream.sum(sum) }
    }
}
