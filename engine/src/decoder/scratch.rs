//! Device memory for what a step computes on its way.

use palimpsest_kernels::Backend;
use palimpsest_models::config::ModelConfig;

use crate::device_memory::StepSize;
use crate::error::Result;
use crate::rope::Angles;
use crate::shard::Shard;

/// Activations of a step; they grow to the largest step seen, which the plan bounds.
pub(super) struct Scratch<B: Backend> {
    pub(super) size: StepSize,
    pub(super) x: B::Buffer,
    pub(super) h: B::Buffer,
    pub(super) qkv: B::Buffer,
    pub(super) q: B::Buffer,
    pub(super) attended: B::Buffer,
    pub(super) gate_up: B::Buffer,
    pub(super) act: B::Buffer,
    pub(super) cos: B::Buffer,
    pub(super) sin: B::Buffer,
    /// What `cos` and `sin` hold.
    pub(super) angles: Angles,
    pub(super) last: B::Buffer,
    pub(super) logits: B::Buffer,
}

impl<B: Backend> Scratch<B> {
    pub(super) fn new(
        backend: &B,
        config: &ModelConfig,
        shard: &Shard,
        size: StepSize,
    ) -> Result<Self> {
        let (heads, dim, ffn) = (
            shard.part.heads() * config.head_dim,
            config.head_dim,
            shard.part.ffn.len(),
        );
        let alloc = |width: usize| backend.alloc(size.rows * width);
        Ok(Self {
            size,
            x: alloc(config.hidden)?,
            h: alloc(config.hidden)?,
            qkv: alloc(heads + 2 * shard.part.kv_heads.len() * dim)?,
            q: alloc(heads)?,
            attended: alloc(heads)?,
            gate_up: alloc(2 * ffn)?,
            act: alloc(ffn)?,
            cos: alloc(dim / 2)?,
            sin: alloc(dim / 2)?,
            angles: Angles::default(),
            last: backend.alloc(size.logit_rows * config.hidden)?,
            logits: backend.alloc(size.logit_rows * shard.part.vocabulary.len())?,
        })
    }
}
