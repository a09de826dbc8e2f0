//! The learned scorer on the device: one small product per layer on the hidden state that enters attention.

use super::vector;
use crate::error::Result;
use crate::layers::attention::Span;
use crate::policy::retention::LayerScorer;
use palimpsest_kernels::{Backend, NoteItem, WeightType, WeightView};
use std::ops::Range;

/// The retention scorers' weights on the device.
pub struct DeviceScorer<B: Backend> {
    layers: Vec<(B::Matrix, B::Buffer)>,
    kv_heads: Range<usize>,
    out: B::Buffer,
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
        Ok(Self { layers, kv_heads, out: backend.alloc(0)?, rows: 0 })
    }

    /// Notes with the step's new slots of `layer` what they are worth, for the sequences whose policy wants it. `hidden`:
    /// `[T, E]`, normalised. It stays on the device.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn ingest(
        &mut self,
        backend: &B,
        layer: usize,
        (hidden, rows): (&B::Buffer, usize),
        spans: &[Span<'_>],
        pages: &mut B::Pages,
    ) -> Result<()> {
        let kv_heads = self.kv_heads.len();
        let mut items = Vec::new();
        for span in spans.iter().filter(|span| span.cache.policy.keeps_notes()) {
            let position = u32::try_from(span.first_position()).expect("grow refuses positions beyond 32 bits");
            items.extend((0..kv_heads).map(|kv_head| {
                let head = &span.cache.heads[layer * kv_heads + kv_head];
                let slots = head.view(head.len() - span.rows.len());
                NoteItem { rows: span.rows.clone(), kv_head, slots, position }
            }));
        }
        if items.is_empty() {
            return Ok(());
        }
        if rows > self.rows {
            self.out = backend.alloc(rows * kv_heads)?;
            self.rows = rows;
        }
        let (matrix, bias) = &self.layers[layer];
        backend.matmul(matrix, hidden, rows, Some(bias), &mut self.out)?;
        Ok(backend.note(pages, &self.out, kv_heads, &items)?)
    }
}
