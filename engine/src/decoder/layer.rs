//! From token ids through the decoder's layers.

use palimpsest_kernels::{Backend, QkNorm, QkvShape};

use super::Decoder;
use super::arena::Arena;
use super::step::Captured;
use crate::error::Result;
use crate::layers::attention::{AttentionArgs, Span, attend};
use crate::peers::RowParallel;
use crate::policy::LayerStep;
use crate::shard::Shard;

impl<B: Backend> Decoder<B> {
    /// Embeds the step's tokens. Each rank knows the rows of its own part of the vocabulary; the
    /// sum has them all.
    pub(super) fn embed(&mut self, ids: &[u32]) -> Result<()> {
        let x = &mut self.scratch.x;
        if self.shard.is_whole() {
            return Ok(self.backend.embed(&self.embedding, ids, x)?);
        }
        let own = &self.shard.part.vocabulary;
        let is_own = |id: u32| own.contains(&(id as usize));
        let local: Vec<Option<u32>> = ids
            .iter()
            .map(|&id| is_own(id).then(|| (id as usize - own.start) as u32))
            .collect();
        let hidden = self.config.hidden;
        self.peers
            .embed(&self.backend, &self.embedding, &local, hidden, x)
    }

    /// Scales the embeddings of a family that does so.
    pub(super) fn scale_embeddings(&mut self, rows: usize) -> Result<()> {
        let scale = self.config.differences.embedding_scale;
        if scale == 1.0 {
            return Ok(());
        }
        let x = &mut self.scratch.x;
        Ok(self
            .backend
            .scale_rows(x, self.config.hidden, &vec![scale; rows])?)
    }

    /// Uploads the rotary angles of the step's rows.
    pub(super) fn rotary(&mut self, spans: &[Span<'_>], rows: usize) -> Result<()> {
        let positions = spans
            .iter()
            .flat_map(|s| s.cache.next_rotary - s.rows.len() as u64..s.cache.next_rotary);
        let positions = positions.chain(std::iter::repeat(0)).take(rows);
        let turns = &mut self.scratch.turns;
        for (turns, rotary) in turns.iter_mut().zip(self.rotary.tables()) {
            turns.angles.fill(positions.clone(), rotary);
            self.backend.upload(&turns.angles.cos, &mut turns.cos, 0)?;
            self.backend.upload(&turns.angles.sin, &mut turns.sin, 0)?;
        }
        Ok(())
    }

    /// One layer over all rows of a step.
    pub(super) fn layer(
        &mut self,
        index: usize,
        rows: usize,
        spans: &mut [Span<'_>],
        arena: &mut Arena<B>,
    ) -> Result<()> {
        self.attention(index, rows, spans, arena)?;
        self.feed_forward(index, rows)
    }

    /// Attention of a layer, with what policies compute beside it, added to the residual stream.
    fn attention(
        &mut self,
        index: usize,
        rows: usize,
        spans: &mut [Span<'_>],
        arena: &mut Arena<B>,
    ) -> Result<()> {
        let (b, layer, s) = (&self.backend, &self.layers[index], &mut self.scratch);
        let (eps, hidden) = (self.config.rms_eps, self.config.hidden);
        let step = LayerStep {
            backend: b,
            layer: index,
            rows,
            shape: qkv_shape(&self.shard),
        };
        b.rms_norm(&s.x, &layer.attention_norm, eps, rows, &mut s.h)?;
        self.hooks
            .before_attention(&step, &s.h, &mut arena.pages, spans)?;
        let mut captured = Vec::new();
        if self.capture.is_some() {
            captured.resize(rows * hidden, 0.0);
            b.download(&s.h, 0, &mut captured)?;
        }
        let attention = &layer.attention;
        let bias = attention.qkv_bias.as_ref();
        b.matmul(&attention.qkv, &s.h, rows, bias, &mut s.qkv)?;
        let turns = &s.turns[self.rotary.index(index)];
        let args = AttentionArgs {
            layer: index,
            shape: step.shape,
            rows,
            qkv: &s.qkv,
            cos: &turns.cos,
            sin: &turns.sin,
            qk_norm: attention.qk_norm.as_ref().map(|norm| QkNorm {
                query: &norm.q,
                key: &norm.k,
                eps,
            }),
            sinks: attention.sinks.as_deref(),
            sliding_window: self.config.differences.window_of(index),
            stride: self.stride,
            associative: self.memories.readout(index, step.shape),
        };
        attend(b, &args, spans, &mut arena.pages, &mut s.q, &mut s.attended)?;
        self.hooks
            .after_attention(&step, &s.q, &turns.angles, spans)?;
        if let Some(capture) = &mut self.capture {
            let mut queries = vec![0.0; rows * self.shard.part.heads() * self.config.head_dim];
            b.download(&s.q, 0, &mut queries)?;
            capture(Captured {
                layer: index,
                hidden: &captured,
                queries: &queries,
            });
        }
        let product = RowParallel {
            matrix: &attention.output,
            x: &s.attended,
            rows,
            width: hidden,
            units: &self.shard.query_units,
        };
        self.peers.row_parallel(b, &product, &mut s.h)?;
        if let Some(bias) = &attention.output_bias {
            s.add_bias(b, bias, rows)?;
        }
        s.add(b, layer.post_attention_norm.as_ref(), eps, rows)
    }
}

/// Heads of a rank.
fn qkv_shape(shard: &Shard) -> QkvShape {
    QkvShape {
        heads: shard.part.heads(),
        kv_heads: shard.part.kv_heads.len(),
        head_dim: shard.part.head_dim,
    }
}
