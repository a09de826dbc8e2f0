//! Weights on their way to the device.

use palimpsest_kernels::{Backend, WeightType, WeightView};
use palimpsest_models::weight_data::WeightData;

use crate::error::Result;

/// Uploads a vector.
pub(crate) fn vector<B: Backend>(backend: &B, values: &[f32]) -> Result<B::Buffer> {
    let mut buffer = backend.alloc(values.len())?;
    backend.upload(values, &mut buffer, 0)?;
    Ok(buffer)
}

/// Packs matrices that share an input, one below the other.
pub(crate) fn stack<B: Backend>(backend: &B, parts: &[&WeightData<'_>]) -> Result<B::Matrix> {
    let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
    Ok(backend.load_matrix(&views)?)
}

/// A trained linear map on the device.
pub(crate) struct Linear<B: Backend> {
    /// `[N, E]`.
    matrix: B::Matrix,
    /// `[N]`.
    bias: B::Buffer,
}

impl<B: Backend> Linear<B> {
    /// Uploads `weight` `[N, E]` and `bias` `[N]`.
    ///
    /// # Errors
    /// Those of the kernels.
    pub(crate) fn load(backend: &B, weight: &[f32], bias: &[f32]) -> Result<Self> {
        let cols = weight.len().checked_div(bias.len()).unwrap_or(0);
        let bytes = bytemuck::cast_slice(weight);
        let view = WeightView::new(WeightType::F32, bias.len(), cols, bytes);
        Ok(Self {
            matrix: backend.load_matrix(&[view])?,
            bias: vector(backend, bias)?,
        })
    }

    /// `x W' + b` for `rows` rows `x` `[T, E]`, into `out` `[T, N]`.
    ///
    /// # Errors
    /// Those of the kernels.
    pub(crate) fn apply(
        &self,
        backend: &B,
        x: &B::Buffer,
        rows: usize,
        out: &mut B::Buffer,
    ) -> Result<()> {
        Ok(backend.matmul(&self.matrix, x, rows, Some(&self.bias), out)?)
    }
}
