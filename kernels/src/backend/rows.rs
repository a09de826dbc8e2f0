//! Operations on rows of activations: norms, sums, gates, gathers.

use super::buffers::Buffers;
use crate::error::Result;

/// A device that works on rows of activations between the products of a layer.
pub trait Rows: Buffers {
    /// `out[r] = x[r] / sqrt(mean(x[r]²) + eps) * weight`, rows of `weight`'s length.
    fn rms_norm(
        &self,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        eps: f32,
        rows: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `x += y` on the first `len` values.
    fn add(&self, x: &mut Self::Buffer, y: &Self::Buffer, len: usize) -> Result<()>;

    /// `out[t, f] = silu(gate_up[t, f]) * gate_up[t, F + f]`; `gate_up`: `[T, 2F]`, `out`: `[T,
    /// F]`, `width` is `F`.
    fn silu_mul(
        &self,
        gate_up: &Self::Buffer,
        rows: usize,
        width: usize,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// `out[i] = x[rows[i]]`, rows of `width` values.
    fn gather_rows(
        &self,
        x: &Self::Buffer,
        width: usize,
        rows: &[usize],
        out: &mut Self::Buffer,
    ) -> Result<()>;
}
