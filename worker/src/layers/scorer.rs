//! The learned scorer on the device: one small product per layer on the hidden state that enters attention.

use super::vector;
use crate::error::Result;
use crate::layers::attention::Span;
use crate::policy::Ingest;
use crate::policy::retention::{LayerScorer, TERMS};
use palimpsest_kernels::{Backend, WeightType, WeightView};
use std::ops::Range;

/// The retention scorers' weights on the device.
pub struct DeviceScorer<B: Backend> {
    layers: Vec<(B::Matrix, B::Buffer)>,
    kv_heads: Range<usize>,
    out: B::Buffer,
    host: Vec<f32>,
    rows: usize,
}

impl<B: Backend> DeviceScorer<B> {
    /// Packs the rows of `kv_heads`, the KV heads of this rank.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn load(backend: &B, layers: &[LayerScorer], hidden: usize, kv_heads: Range<usize>) -> Result<Self> {
        let pack = |layer: &LayerScorer| -> Result<_> {
            let cols = hidden;
            let weight = &layer.weight[kv_heads.start * cols..kv_heads.end * cols];
            let bytes: Vec<u8> = weight.iter().flat_map(|v| v.to_le_bytes()).collect();
            let rows = kv_heads.len();
            let view = WeightView { dtype: WeightType::F32, rows, cols, bytes: &bytes };
            Ok((backend.load_matrix(&[view])?, vector(backend, &layer.bias[kv_heads.clone()])?))
        };
        let layers = layers.iter().map(pack).collect::<Result<_>>()?;
        Ok(Self { layers, kv_heads, out: backend.alloc(0)?, host: Vec::new(), rows: 0 })
    }

    /// Stores the terms of the step's new slots of `layer`, for the sequences whose policy wants them. `hidden`:
    /// `[T, E]`, normalised.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn ingest(
        &mut self,
        backend: &B,
        layer: usize,
        hidden: &B::Buffer,
        rows: usize,
        spans: &mut [Span<'_>],
    ) -> Result<()> {
        if !spans.iter().any(|s| matches!(s.cache.policy.ingest(), Ingest::Retention)) {
            return Ok(());
        }
        let kv_heads = self.kv_heads.len();
        if rows > self.rows {
            self.out = backend.alloc(rows * kv_heads)?;
            self.rows = rows;
        }
        let (matrix, bias) = &self.layers[layer];
        backend.matmul(matrix, hidden, rows, Some(bias), &mut self.out)?;
        self.host.resize(rows * kv_heads, 0.0);
        backend.download(&self.out, 0, &mut self.host)?;
        for span in spans {
            if !matches!(span.cache.policy.ingest(), Ingest::Retention) {
                continue;
            }
            let count = span.rows.len();
            for local in 0..kv_heads {
                let head = &mut span.cache.heads[layer * kv_heads + local];
                let old = head.len() - count;
                for (i, terms) in head.terms[old * TERMS..].iter_mut().enumerate() {
                    *terms = self.host[(span.rows.start + i) * kv_heads + local];
                }
            }
        }
        Ok(())
    }
}
