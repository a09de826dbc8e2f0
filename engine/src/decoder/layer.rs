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

    /// Uploads the rotary angles of the step's rows.
    pub(super) fn rotary(&mut self, spans: &[Span<'_>], rows: usize) -> Result<()> {
        let positions = spans
            .iter()
            .flat_map(|s| s.cache.next_rotary - s.rows.len() as u64..s.cache.next_rotary);
        let positions = positions.chain(std::iter::repeat(0)).take(rows);
        let s = &mut self.scratch;
        s.angles.fill(positions, &self.inv_freq);
        self.backend.upload(&s.angles.cos, &mut s.cos, 0)?;
        self.backend.upload(&s.angles.sin, &mut s.sin, 0)?;
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
        let args = AttentionArgs {
            layer: index,
            shape: step.shape,
            rows,
            qkv: &s.qkv,
            cos: &s.cos,
            sin: &s.sin,
            qk_norm: attention.qk_norm.as_ref().map(|norm| QkNorm {
                query: &norm.q,
                key: &norm.k,
                eps,
            }),
            sliding_window: self.config.sliding_window,
            stride: self.stride,
            associative: self.memories.readout(index, step.shape),
        };
        attend(b, &args, spans, &mut arena.pages, &mut s.q, &mut s.attended)?;
        self.hooks.after_attention(&step, &s.q, &s.angles, spans)?;
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
        Ok(b.add(&mut s.x, &s.h, rows * hidden)?)
    }

    /// The feed-forward part of a layer, added to the residual stream.
    fn feed_forward(&mut self, index: usize, rows: usize) -> Result<()> {
        let (b, layer, s) = (&self.backend, &self.layers[index], &mut self.scratch);
        let hidden = self.config.hidden;
        b.rms_norm(&s.x, &layer.ffn_norm, self.config.rms_eps, rows, &mut s.h)?;
        b.matmul(&layer.gate_up, &s.h, rows, None, &mut s.gate_up)?;
        b.silu_mul(&s.gate_up, rows, self.shard.part.ffn.len(), &mut s.act)?;
        let product = RowParallel {
            matrix: &layer.down,
            x: &s.act,
            rows,
            width: hidden,
            units: &self.shard.ffn_units,
        };
        self.peers.row_parallel(b, &product, &mut s.h)?;
        Ok(b.add(&mut s.x, &s.h, rows * hidden)?)
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
