//! Trained part of the paper's latent memory: linear features of keys and queries, and a gate per
//! KV head.
//!
//! Source: the latent memory of IndexMem (arXiv 2605.25475), with four changes. The write rate is
//! left out, because the normalised readout does not depend on it. So is the decay, because what
//! makes up for the entries that are missing must count all of them alike. Gates are per KV head.
//! And it is causal, because it is written at boundaries only. `A += phi(k) v^T`, `b += phi(k)^2`,
//! `phi(z) = W z`: [`palimpsest_kernels::LatentMemory::memorise`]; the readout is
//! [`palimpsest_kernels::LatentMemory::readout`].
//!
//! Its tensors in an indexer file, with `features` `F` and `head_dim` `D` in the metadata:
//! ```text
//! associative.{l}.features [F, D]  .gates [K]
//! ```

use std::ops::Range;

use palimpsest_kernels::{AssociativeLayer, Backend, Features, QkvShape};

use crate::error::Result;
use crate::indexer::{Indexer, Precision, Reader, Trained};
use crate::upload::vector;

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

impl Trained for AssociativeWeights {
    fn read(reader: &mut Reader<'_>) -> Result<Option<Self>> {
        if !reader.has("features") {
            return Ok(None);
        }
        let (features, head_dim) = (reader.number("features")?, reader.number("head_dim")?);
        let shape = reader.shape();
        let mut layer = |l: usize| {
            Ok(AssociativeLayerWeights {
                features: reader
                    .tensor(&format!("associative.{l}.features"), &[features, head_dim])?,
                gates: reader.tensor(&format!("associative.{l}.gates"), &[shape.kv_heads])?,
            })
        };
        let layers = (0..shape.layers).map(&mut layer).collect::<Result<_>>()?;
        Ok(Some(Self {
            features,
            head_dim,
            layers,
        }))
    }

    fn write(&self, indexer: &mut Indexer) {
        indexer.put_number("features", self.features);
        indexer.put_number("head_dim", self.head_dim);
        let kv_heads = indexer.shape.kv_heads;
        let mut put = |name: String, shape: &[usize], values: &[f32]| {
            indexer.put(name, shape, values, Precision::Single);
        };
        for (l, layer) in self.layers.iter().enumerate() {
            let shape = [self.features, self.head_dim];
            put(format!("associative.{l}.features"), &shape, &layer.features);
            put(format!("associative.{l}.gates"), &[kv_heads], &layer.gates);
        }
    }
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
    pub fn load(backend: &B, weights: &AssociativeWeights, kv_heads: Range<usize>) -> Result<Self> {
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

    /// What memories are written with.
    pub fn features(&self) -> Features<'_, B::Buffer> {
        Features {
            values: &self.features,
            count: self.count,
        }
    }
}
