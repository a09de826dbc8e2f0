//! Trained part of the paper's latent memory: linear features of keys and queries, and a gate per
//! KV head.
//!
//! Source: IndexMem (arXiv 2605.25475), latent memory (method section 2.5), with the defects of
//! method section 6.8 mended: the write rate is left out, because the normalised readout does not
//! depend on it; so is the decay, because what makes up for the entries that are missing must count
//! all of them alike; gates are per KV head; and it is causal, because it is written at boundaries
//! only. `A += phi(k) v^T`, `b += phi(k)^2`, `phi(z) = W z`:
//! [`palimpsest_kernels::Backend::memorise`]; the readout is
//! [`palimpsest_kernels::Backend::readout`].

use std::ops::Range;
use std::sync::Arc;

use palimpsest_kernels::{AssociativeLayer, Backend, QkvShape};

use crate::error::Result;
use crate::layers::vector;

/// Trained weights of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct AssociativeLayerWeights {
    /// `[F, D]`.
    pub features: Vec<f32>,
    /// `[K]`.
    pub gates: Vec<f32>,
}

/// Trained weights, every layer.
#[derive(Debug, Clone, PartialEq)]
pub struct AssociativeWeights {
    /// `F`.
    pub features: usize,
    /// `D`.
    pub head_dim: usize,
    /// One per decoder layer.
    pub layers: Vec<AssociativeLayerWeights>,
}

/// [`AssociativeWeights`] on the device.
pub struct DeviceAssociative<B: Backend> {
    count: usize,
    /// `[layers, F, D]`.
    features: B::Buffer,
    /// Gates of this rank's KV heads `[layers, K]`.
    gates: B::Buffer,
}

impl<B: Backend> DeviceAssociative<B> {
    /// Uploads the features, and the gates of `kv_heads`, the KV heads of this rank.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn load(
        backend: &B,
        weights: &Arc<AssociativeWeights>,
        kv_heads: Range<usize>,
    ) -> Result<Self> {
        let layers = || weights.layers.iter();
        let features: Vec<f32> = layers()
            .flat_map(|layer| &layer.features)
            .copied()
            .collect();
        let gates: Vec<f32> = layers()
            .flat_map(|layer| &layer.gates[kv_heads.clone()])
            .copied()
            .collect();
        let (features, gates) = (vector(backend, &features)?, vector(backend, &gates)?);
        Ok(Self {
            count: weights.features,
            features,
            gates,
        })
    }

    /// `F`.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What a readout of a layer with these heads reads.
    pub fn layer(&self, layer: usize, shape: QkvShape) -> AssociativeLayer<'_, B> {
        AssociativeLayer {
            shape,
            features: &self.features,
            count: self.count,
            gates: &self.gates,
            layer,
        }
    }

    /// What memories are written with: all features, and `F`.
    pub fn features(&self) -> (&B::Buffer, usize) {
        (&self.features, self.count)
    }
}
