//! Device memory for what a step computes on its way.

use palimpsest_kernels::Backend;
use palimpsest_models::config::{Activation, ModelConfig};

use crate::device_memory::StepSize;
use crate::error::{Error, Result};
use crate::layers::Gated;
use crate::rope::Angles;
use crate::shard::Shard;

/// Activations of a step; they grow to the largest step seen, which the plan bounds.
pub(super) struct Scratch<B: Backend> {
    pub(super) size: StepSize,
    /// `E`.
    hidden: usize,
    pub(super) x: B::Buffer,
    pub(super) h: B::Buffer,
    pub(super) qkv: B::Buffer,
    pub(super) q: B::Buffer,
    pub(super) attended: B::Buffer,
    pub(super) gates: Gates<B>,
    /// What rows are turned by, for each rotary table of the model.
    pub(super) turns: Vec<Turns<B>>,
    /// What layers with norms behind their parts add, normalised; or a bias, once for each row.
    pub(super) normed: B::Buffer,
    pub(super) routing: Routing<B>,
    pub(super) last: B::Buffer,
    pub(super) logits: B::Buffer,
}

/// Rotary angles of a step's rows.
pub(super) struct Turns<B: Backend> {
    pub(super) cos: B::Buffer,
    pub(super) sin: B::Buffer,
    /// What `cos` and `sin` hold.
    pub(super) angles: Angles,
}

/// The inner activations of a feed-forward network.
pub(super) struct Gates<B: Backend> {
    activation: Activation,
    /// `F`, of this rank.
    width: usize,
    /// `[T, 2F]`.
    gate_up: B::Buffer,
    /// `[T, F]`.
    pub(super) act: B::Buffer,
}

impl<B: Backend> Gates<B> {
    /// Computes them for `rows` rows of `x` `[T, E]`.
    pub(super) fn fill(
        &mut self,
        backend: &B,
        gated: &Gated<B>,
        x: &B::Buffer,
        rows: usize,
    ) -> Result<()> {
        let bias = gated.biases.as_ref().map(|biases| &biases.gate_up);
        backend.matmul(&gated.gate_up, x, rows, bias, &mut self.gate_up)?;
        let (gate_up, width, act) = (&self.gate_up, self.width, &mut self.act);
        match self.activation {
            Activation::Silu => Ok(backend.silu_mul(gate_up, rows, width, act)?),
            Activation::GeluTanh => Ok(backend.gelu_mul(gate_up, rows, width, act)?),
            Activation::Clamped => Ok(backend.clamped_mul(gate_up, rows, width, act)?),
        }
    }

    /// Multiplies each of the first rows with a factor.
    pub(super) fn scale(&mut self, backend: &B, factors: &[f32]) -> Result<()> {
        Ok(backend.scale_rows(&mut self.act, self.width, factors)?)
    }
}

/// What routed experts need; empty in dense models.
pub(super) struct Routing<B: Backend> {
    /// Router logits `[T, X]`.
    pub(super) logits: B::Buffer,
    /// Rows of one expert `[T, E]`.
    pub(super) rows: B::Buffer,
    /// What one expert adds, in fixed point `[T, E]`.
    pub(super) share: Vec<i64>,
    /// The sum of that over experts `[T, E]`.
    pub(super) sums: Vec<i64>,
}

impl<B: Backend> Scratch<B> {
    /// `tables`: rotary tables of the model.
    pub(super) fn new(
        backend: &B,
        config: &ModelConfig,
        shard: &Shard,
        size: StepSize,
        tables: usize,
    ) -> Result<Self> {
        let (heads, dim, ffn) = (
            shard.part.heads() * config.head_dim,
            config.head_dim,
            shard.part.ffn.len(),
        );
        let alloc = |width: usize| backend.alloc(size.rows * width);
        let own = &config.differences;
        let turns = || {
            Ok::<_, Error>(Turns {
                cos: alloc(dim / 2)?,
                sin: alloc(dim / 2)?,
                angles: Angles::default(),
            })
        };
        let routing = Routing {
            logits: alloc(own.experts.map_or(0, |experts| experts.count))?,
            rows: alloc(own.experts.map_or(0, |_| config.hidden))?,
            share: Vec::new(),
            sums: Vec::new(),
        };
        Ok(Self {
            size,
            hidden: config.hidden,
            x: alloc(config.hidden)?,
            h: alloc(config.hidden)?,
            qkv: alloc(heads + 2 * shard.part.kv_heads.len() * dim)?,
            q: alloc(heads)?,
            attended: alloc(heads)?,
            gates: Gates {
                activation: own.activation,
                width: ffn,
                gate_up: alloc(2 * ffn)?,
                act: alloc(ffn)?,
            },
            turns: (0..tables).map(|_| turns()).collect::<Result<_>>()?,
            normed: alloc(if own.post_norms || own.all_biases {
                config.hidden
            } else {
                0
            })?,
            routing,
            last: backend.alloc(size.logit_rows * config.hidden)?,
            logits: backend.alloc(size.logit_rows * shard.part.vocabulary.len())?,
        })
    }

    /// Adds a bias `[E]` to every row of `h`.
    pub(super) fn add_bias(&mut self, backend: &B, bias: &B::Buffer, rows: usize) -> Result<()> {
        backend.gather_rows(bias, self.hidden, &vec![0; rows], &mut self.normed)?;
        Ok(backend.add(&mut self.h, &self.normed, rows * self.hidden)?)
    }

    /// Adds `h` to the residual stream, normalised first where the layer has a `norm` for that.
    pub(super) fn add(
        &mut self,
        backend: &B,
        norm: Option<&B::Buffer>,
        eps: f32,
        rows: usize,
    ) -> Result<()> {
        let len = rows * self.hidden;
        let Some(norm) = norm else {
            return Ok(backend.add(&mut self.x, &self.h, len)?);
        };
        backend.rms_norm(&self.h, norm, eps, rows, &mut self.normed)?;
        Ok(backend.add(&mut self.x, &self.normed, len)?)
    }
}
