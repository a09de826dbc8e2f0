//! The learned scorer on the device: one small product per layer on the hidden state that enters attention.

use super::vector;
use crate::error::Result;
use crate::layers::attention::Span;
use crate::policy::Ingest;
use crate::policy::retention::{LayerScorer, RetentionScorer, TERMS};
use palimpsest_kernels::{Backend, WeightType, WeightView};

/// A [`RetentionScorer`]'s weights on the device.
pub struct DeviceScorer<B: Backend> {
    layers: Vec<(B::Matrix, B::Buffer)>,
    kv_heads: usize,
    out: B::Buffer,
    host: Vec<f32>,
    rows: usize,
}

impl<B: Backend> DeviceScorer<B> {
    /// Packs the scorer.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn load(backend: &B, scorer: &RetentionScorer) -> Result<Self> {
        let pack = |layer: &LayerScorer| -> Result<_> {
            let bytes: Vec<u8> = layer.weight.iter().flat_map(|v| v.to_le_bytes()).collect();
            let (rows, cols) = (scorer.kv_heads, scorer.hidden);
            let view = WeightView { dtype: WeightType::F32, rows, cols, bytes: &bytes };
            Ok((backend.load_matrix(&[view])?, vector(backend, &layer.bias)?))
        };
        let layers = scorer.layers.iter().map(pack).collect::<Result<_>>()?;
        Ok(Self { layers, kv_heads: scorer.kv_heads, out: backend.alloc(0)?, host: Vec::new(), rows: 0 })
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
        if !spans.iter().any(|s| matches!(s.cache.policy.ingest(), Ingest::Retention(_))) {
            return Ok(());
        }
        if rows > self.rows {
            self.out = backend.alloc(rows * self.kv_heads)?;
            self.rows = rows;
        }
        let (matrix, bias) = &self.layers[layer];
        backend.matmul(matrix, hidden, rows, Some(bias), &mut self.out)?;
        self.host.resize(rows * self.kv_heads, 0.0);
        backend.download(&self.out, 0, &mut self.host)?;
        for span in spans {
            let policy = span.cache.policy.clone();
            let Ingest::Retention(retention) = policy.ingest() else { continue };
            let first = span.first_position();
            let count = span.rows.len();
            for kv_head in 0..self.kv_heads {
                let head = &mut span.cache.heads[layer * self.kv_heads + kv_head];
                let old = head.len() - count;
                for (i, terms) in head.terms[old * TERMS..].chunks_exact_mut(TERMS).enumerate() {
                    let m = self.host[(span.rows.start + i) * self.kv_heads + kv_head];
                    terms.copy_from_slice(&retention.terms_of(layer, kv_head, first + i as u64, m));
                }
            }
        }
        Ok(())
    }
}
