//! Operations on rows of activations: norms, sums, gates, gathers.

use super::buffers::Buffers;
use crate::error::{Error, Result};

/// Operations on rows that only some model families need, so that a device may lack them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOperation {
    /// [`Rows::gelu_mul`].
    GeluMul,
    /// [`Rows::clamped_mul`].
    ClampedMul,
    /// [`Rows::scale_rows`].
    ScaleRows,
}

impl RowOperation {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::GeluMul, Self::ClampedMul, Self::ScaleRows];

    /// Name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GeluMul => "GELU",
            Self::ClampedMul => "clamped gates",
            Self::ScaleRows => "rows scaled by a number each",
        }
    }
}

/// Limit of [`Rows::clamped_mul`].
pub const CLAMP: f32 = 7.0;

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

    /// Whether the device has an operation that only some families need. A decoder asks before it
    /// loads a model of such a family.
    fn offers(&self, operation: RowOperation) -> bool {
        let _ = operation;
        false
    }

    /// [`Self::silu_mul`] with GELU in the place of SiLU: `g / (1 + exp(-2u)) * up` with `u =
    /// sqrt(2/pi) * (g + 0.044715 g³)`, which is GELU's approximation with a hyperbolic tangent
    /// (Hendrycks and Gimpel, arXiv 1606.08415). Only where it is offered.
    fn gelu_mul(
        &self,
        gate_up: &Self::Buffer,
        rows: usize,
        width: usize,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        let _ = (gate_up, rows, width, out);
        Err(lacks(&self.name(), RowOperation::GeluMul))
    }

    /// [`Self::silu_mul`] of gpt-oss: `g / (1 + exp(-1.702 g)) * (u + 1)`, with `g = min(gate,
    /// CLAMP)` and `u` the up projection within [`CLAMP`] on both sides. Only where it is offered.
    fn clamped_mul(
        &self,
        gate_up: &Self::Buffer,
        rows: usize,
        width: usize,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        let _ = (gate_up, rows, width, out);
        Err(lacks(&self.name(), RowOperation::ClampedMul))
    }

    /// `x[r] *= factors[r]`, for as many rows of `width` values as there are factors. Only where it
    /// is offered.
    fn scale_rows(&self, x: &mut Self::Buffer, width: usize, factors: &[f32]) -> Result<()> {
        let _ = (x, width, factors);
        Err(lacks(&self.name(), RowOperation::ScaleRows))
    }
}

fn lacks(device: &str, operation: RowOperation) -> Error {
    Error::Unavailable(format!("{device} does not offer {}", operation.name()))
}
