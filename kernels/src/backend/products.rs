//! Weight matrices and products with them.

use super::buffers::Buffers;
use super::weights::WeightView;
use crate::error::Result;

/// A device that multiplies with the weight matrices of a model file.
pub trait Products: Buffers {
    /// Weight matrix in the device's own layout.
    type Matrix: Send + Sync;

    /// Packs weights for this device. Several views are stacked along the output axis (fused
    /// projections); their `cols` must agree, their types may differ.
    fn load_matrix(&self, parts: &[WeightView<'_>]) -> Result<Self::Matrix>;

    /// Bytes that a packed matrix occupies on the device.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize;

    /// `out[t] = table[ids[t]]`, dequantised. `out`: `[T, E]`.
    fn embed(&self, table: &Self::Matrix, ids: &[u32], out: &mut Self::Buffer) -> Result<()>;

    /// `out[T, N] = x[T, C] · matrixᵀ (+ bias[N])`, f32 accumulation in a fixed order per element.
    fn matmul(
        &self,
        matrix: &Self::Matrix,
        x: &Self::Buffer,
        rows: usize,
        bias: Option<&Self::Buffer>,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// [`Self::matmul`] of a row-parallel matrix, whose columns come in units that end at columns
    /// `ends` (increasing, the last one `C`; at most [`MAX_UNITS`](crate::fixed::MAX_UNITS)): each
    /// unit is summed as by `matmul`, the units are added in fixed point ([`crate::fixed`]) and
    /// rounded to f32 once. `out`: `[T, N]`. An end within a block of 32 quantised weights does not
    /// count, since no shard ends there.
    ///
    /// A backend may take all its columns for one unit, as CUDA does: then the sum over ranks
    /// depends on how many there are, by rounding.
    fn matmul_units(
        &self,
        matrix: &Self::Matrix,
        x: &Self::Buffer,
        rows: usize,
        ends: &[usize],
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// A rank's share of [`Self::matmul_units`], in fixed point, on the host: the wrapping sum over
    /// all ranks, through [`fixed::to_f32`](crate::fixed::to_f32), is what a rank with all units
    /// computes, in the same bits on the CPU. `ends` are those of the rank's own units, from its
    /// own first column. `out`: `[T, N]`.
    fn matmul_share(
        &self,
        matrix: &Self::Matrix,
        x: &Self::Buffer,
        rows: usize,
        ends: &[usize],
        out: &mut [i64],
    ) -> Result<()>;
}
