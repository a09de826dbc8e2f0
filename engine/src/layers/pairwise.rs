//! The pairwise indexer on the device: one small product per layer, then every new query against
//! every slot.

use std::ops::Range;
use std::sync::Arc;

use palimpsest_kernels::{Backend, IndexItem, IndexShape, WeightType, WeightView};

use super::vector;
use crate::error::Result;
use crate::layers::attention::Span;
use crate::policy::Ingest;
use crate::policy::pairwise::PairwiseWeights;

/// A [`PairwiseWeights`]' matrices on the device.
pub struct DevicePairwise<B: Backend> {
    weights: Arc<PairwiseWeights>,
    layers: Vec<(B::Matrix, B::Buffer)>,
    kv_heads: Range<usize>,
    out: B::Buffer,
    host: Vec<f32>,
    rows: usize,
}

/// New queries of one sequence and KV head.
struct Queries {
    queries: Vec<f32>,
    weights: Vec<f32>,
}

impl<B: Backend> DevicePairwise<B> {
    /// Packs the rows of `kv_heads`, the KV heads of this rank.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn load(
        backend: &B,
        weights: Arc<PairwiseWeights>,
        hidden: usize,
        kv_heads: Range<usize>,
    ) -> Result<Self> {
        let rows = PairwiseWeights::rows(weights.heads, weights.dim);
        let own = kv_heads.start * rows..kv_heads.end * rows;
        let mut layers = Vec::with_capacity(weights.layers.len());
        for layer in &weights.layers {
            let values = &layer.weight[own.start * hidden..own.end * hidden];
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let view = WeightView {
                dtype: WeightType::F32,
                rows: own.len(),
                cols: hidden,
                bytes: &bytes,
            };
            layers.push((
                backend.load_matrix(&[view])?,
                vector(backend, &layer.bias[own.clone()])?,
            ));
        }
        Ok(Self {
            weights,
            layers,
            kv_heads,
            out: backend.alloc(0)?,
            host: Vec::new(),
            rows: 0,
        })
    }

    /// Stores the indexer keys of the step's new slots of `layer` and raises the scores of all
    /// slots that their queries see, for the sequences whose policy wants it. `hidden`: `[T, E]`,
    /// normalised.
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
        let wanted = |span: &Span<'_>| matches!(span.cache.policy.ingest(), Ingest::Query(_));
        if !spans.iter().any(wanted) {
            return Ok(());
        }
        let (heads, dim) = (self.weights.heads, self.weights.dim);
        let per_head = PairwiseWeights::rows(heads, dim);
        let width = self.kv_heads.len() * per_head;
        if rows > self.rows {
            self.out = backend.alloc(rows * width)?;
            self.rows = rows;
        }
        let (matrix, bias) = &self.layers[layer];
        backend.matmul(matrix, hidden, rows, Some(bias), &mut self.out)?;
        self.host.resize(rows * width, 0.0);
        backend.download(&self.out, 0, &mut self.host)?;
        for span in spans.iter_mut().filter(|span| wanted(span)) {
            let first = layer * self.kv_heads.len();
            let mut new = Vec::with_capacity(self.kv_heads.len());
            for (local, kv_head) in self.kv_heads.clone().enumerate() {
                let mut queries = Queries {
                    queries: Vec::new(),
                    weights: Vec::new(),
                };
                let head = &mut span.cache.heads[first + local];
                let first_slot = head.len() - span.rows.len();
                for (row, slot) in span.rows.clone().zip(first_slot..) {
                    let values = &mut self.host[row * width + local * per_head..][..per_head];
                    self.weights.finish(layer, kv_head, values);
                    queries.queries.extend_from_slice(&values[..heads * dim]);
                    head.terms[slot * dim..][..dim].copy_from_slice(&values[heads * dim..][..dim]);
                    queries
                        .weights
                        .extend_from_slice(&values[(heads + 1) * dim..]);
                    head.mass[0][slot] = f32::NEG_INFINITY;
                }
                new.push(queries);
            }
            let own = &mut span.cache.heads[first..first + self.kv_heads.len()];
            let mut items: Vec<_> = own
                .iter_mut()
                .zip(&new)
                .map(|(head, new)| IndexItem {
                    rows: span.rows.len(),
                    queries: &new.queries,
                    weights: &new.weights,
                    keys: &head.terms,
                    scores: &mut head.mass[0],
                })
                .collect();
            backend.index(IndexShape { heads, dim }, &mut items)?;
        }
        Ok(())
    }
}
