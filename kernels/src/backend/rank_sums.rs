//! Products whose sums over the ranks of a group stay on the device.

use std::sync::Arc;

use super::products::Products;
use crate::error::{Error, Result};
use crate::sums::DeviceSums;

/// A device that can put sums over ranks between its kernels. A device that cannot takes the
/// default methods; its sums go through the host ([`Products::matmul_share`]).
pub trait RankSums: Products {
    /// Takes sums over ranks from `sums` from now on, or from nobody (`None`). Returns whether the
    /// device can put them between its kernels. Where it cannot, nothing changes.
    fn join_sums(&self, sums: Option<Arc<dyn DeviceSums>>) -> bool {
        let _ = sums;
        false
    }

    /// [`Products::matmul_units`] of this rank's columns, summed over the ranks that joined. The
    /// bits are those that [`Products::matmul_share`] and a sum on the host give. `out`: `[T, N]`.
    /// Only after [`Self::join_sums`] returned `true`.
    fn matmul_sum(
        &self,
        matrix: &Self::Matrix,
        x: &Self::Buffer,
        rows: usize,
        ends: &[usize],
        out: &mut Self::Buffer,
    ) -> Result<()> {
        let _ = (matrix, x, rows, ends, out);
        Err(Error::Unavailable(format!(
            "{} has no sums over ranks",
            self.name()
        )))
    }

    /// [`Products::embed`] where each rank has some rows of the table. `ids` count from this rank's
    /// first row, and are `None` where another rank has the row; exactly one rank has each row.
    /// `out`: `[T, E]`. Only after [`Self::join_sums`] returned `true`.
    fn embed_sum(
        &self,
        table: &Self::Matrix,
        ids: &[Option<u32>],
        out: &mut Self::Buffer,
    ) -> Result<()> {
        let _ = (table, ids, out);
        Err(Error::Unavailable(format!(
            "{} has no sums over ranks",
            self.name()
        )))
    }
}
