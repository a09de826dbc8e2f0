//! The parts of a decoder layer, each a thin composition of backend operations.

pub mod attention;

use attention::AttentionWeights;
use palimpsest_kernels::Backend;
use palimpsest_models::weights::LayerWeights;

use crate::error::Result;
use crate::upload::{stack, vector};

/// Weights of one decoder layer on the device.
pub struct Layer<B: Backend> {
    /// RMS norm before attention `[E]`.
    pub attention_norm: B::Buffer,
    /// Attention projections.
    pub attention: AttentionWeights<B>,
    /// RMS norm before the feed-forward part `[E]`.
    pub ffn_norm: B::Buffer,
    /// Gate and up projections, stacked `[2F, E]`.
    pub gate_up: B::Matrix,
    /// Down projection `[E, F]`.
    pub down: B::Matrix,
}

impl<B: Backend> Layer<B> {
    /// Packs a layer's weights for the device.
    ///
    /// # Errors
    /// Those of [`palimpsest_kernels::Products::load_matrix`].
    pub fn load(backend: &B, weights: &LayerWeights<'_>) -> Result<Self> {
        Ok(Self {
            attention_norm: vector(backend, &weights.attn_norm)?,
            attention: AttentionWeights::load(backend, weights)?,
            ffn_norm: vector(backend, &weights.ffn_norm)?,
            gate_up: stack(backend, &[&weights.gate, &weights.up])?,
            down: stack(backend, &[&weights.down])?,
        })
    }

    /// Device bytes of the layer's matrices.
    pub fn bytes(&self, backend: &B) -> usize {
        let matrices = [
            &self.attention.qkv,
            &self.attention.output,
            &self.gate_up,
            &self.down,
        ];
        matrices.into_iter().map(|m| backend.matrix_bytes(m)).sum()
    }
}
