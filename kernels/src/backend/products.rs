//! Weight matrices and products with them.

use super::buffers::Buffers;
use crate::error::Result;

/// Element type of a weight as stored in a model file. Quantised types come in blocks along the
/// input axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// GGML Q8_0: 32 weights, f16 scale, 8-bit signed.
    Q8_0,
    /// GGML Q4_0: 32 weights, f16 scale, 4-bit minus 8.
    Q4_0,
    /// GGML Q4_1: 32 weights, f16 scale and minimum, 4-bit.
    Q4_1,
    /// GGML Q4_K: 256 weights in 8 groups of 32 with 6-bit scales and minima.
    Q4K,
    /// GGML Q6_K: 256 weights in 16 groups of 16 with 8-bit scales, 6-bit minus 32.
    Q6K,
}

/// Size of one block of a [`WeightType`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize {
    /// Weights along the input axis.
    pub weights: usize,
    /// Bytes in a file.
    pub bytes: usize,
}

impl WeightType {
    /// Size of one block, as laid out in a file.
    pub const fn block(self) -> BlockSize {
        const fn block(weights: usize, bytes: usize) -> BlockSize {
            BlockSize { weights, bytes }
        }
        match self {
            Self::F32 => block(1, 4),
            Self::F16 | Self::BF16 => block(1, 2),
            Self::Q8_0 => block(32, 34),
            Self::Q4_0 => block(32, 18),
            Self::Q4_1 => block(32, 20),
            Self::Q4K => block(256, 144),
            Self::Q6K => block(256, 210),
        }
    }

    /// Bytes of `len` consecutive weights; `None` when `len` does not fill whole blocks or the size
    /// overflows.
    pub const fn bytes(self, len: usize) -> Option<usize> {
        let BlockSize { weights, bytes } = self.block();
        if len.is_multiple_of(weights) {
            (len / weights).checked_mul(bytes)
        } else {
            None
        }
    }
}

/// A weight matrix as a model file holds it: `rows` outputs by `cols` inputs, row-major blocks,
/// little-endian.
#[derive(Debug, Clone, Copy)]
pub struct WeightView<'a> {
    /// Stored element type.
    pub dtype: WeightType,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// `dtype.bytes(rows * cols)` bytes.
    pub bytes: &'a [u8],
}

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
