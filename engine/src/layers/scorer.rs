//! The learned scorer on the device: one small product per layer on the hidden state that enters
//! attention.

use std::ops::Range;

use palimpsest_kernels::{Backend, NoteItem, WeightType, WeightView};

use super::vector;
use crate::error::Result;
use crate::layers::attention::Span;
use crate::policy::retention::LayerScorer;

/// The retention scorers' weights on the device.
pub struct DeviceScorer<B: Backend> {
    /// Weights `[K, E]` and biases, or `[2K, E]`: those of the second scorer behind the first's.
    layers: Vec<(B::Matrix, B::Buffer)>,
    kv_heads: Range<usize>,
    /// Scorers of a KV head.
    scorers: usize,
    out: B::Buffer,
    rows: usize,
}

impl<B: Backend> DeviceScorer<B> {
    /// Packs the rows of `kv_heads`, the KV heads of this rank.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn load(
        backend: &B,
        layers: &[LayerScorer],
        hidden: usize,
        kv_heads: Range<usize>,
    ) -> Result<Self> {
        let cols = hidden;
        let pack = |layer: &LayerScorer| -> Result<_> {
            let second = layer
                .recent
                .as_ref()
                .map(|recent| (&recent.weight, &recent.bias));
            let (mut bytes, mut biases) = (Vec::new(), Vec::new());
            for (weight, bias) in [Some((&layer.weight, &layer.bias)), second]
                .into_iter()
                .flatten()
            {
                bytes.extend_from_slice(bytemuck::cast_slice(
                    &weight[kv_heads.start * cols..kv_heads.end * cols],
                ));
                biases.extend_from_slice(&bias[kv_heads.clone()]);
            }
            let view = WeightView {
                dtype: WeightType::F32,
                rows: biases.len(),
                cols,
                bytes: &bytes,
            };
            Ok((backend.load_matrix(&[view])?, vector(backend, &biases)?))
        };
        let scorers = if layers.iter().any(|layer| layer.recent.is_some()) {
            2
        } else {
            1
        };
        let layers = layers.iter().map(pack).collect::<Result<_>>()?;
        Ok(Self {
            layers,
            kv_heads,
            scorers,
            out: backend.alloc(0)?,
            rows: 0,
        })
    }

    /// Notes with the step's new slots of `layer` what they are worth, for the sequences whose
    /// policy wants it. `hidden`: `[T, E]`, normalised. It stays on the device.
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
        let (kv_heads, width) = (self.kv_heads.len(), self.scorers * self.kv_heads.len());
        let mut items = Vec::new();
        for span in spans.iter().filter(|span| span.cache.policy.keeps_notes()) {
            let position = u32::try_from(span.first_position())
                .expect("grow refuses positions beyond 32 bits");
            items.extend((0..kv_heads).map(|kv_head| {
                let head = &span.cache.heads[layer * kv_heads + kv_head];
                let slots = head.view(head.len() - span.rows.len());
                let second = (self.scorers == 2).then_some(kv_heads + kv_head);
                NoteItem {
                    rows: span.rows.clone(),
                    kv_head,
                    second,
                    slots,
                    position,
                }
            }));
        }
        if items.is_empty() {
            return Ok(());
        }
        if rows > self.rows {
            self.out = backend.alloc(rows * width)?;
            self.rows = rows;
        }
        let (matrix, bias) = &self.layers[layer];
        backend.matmul(matrix, hidden, rows, Some(bias), &mut self.out)?;
        Ok(backend.note(pages, &self.out, width, &items)?)
    }
}
