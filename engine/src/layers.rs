//! The parts of a decoder layer, each a thin composition of backend operations.

pub mod attention;
pub mod experts;

use attention::AttentionWeights;
use palimpsest_kernels::Backend;
use palimpsest_models::config::Experts;
use palimpsest_models::weights::{FeedForwardWeights, GatedBiases, GatedWeights, LayerWeights};

use crate::error::Result;
use crate::upload::{stack, vector};

/// Weights of one decoder layer on the device.
pub struct Layer<B: Backend> {
    /// RMS norm before attention `[E]`.
    pub attention_norm: B::Buffer,
    /// Attention projections.
    pub attention: AttentionWeights<B>,
    /// RMS norm of what attention adds `[E]`.
    pub post_attention_norm: Option<B::Buffer>,
    /// RMS norm before the feed-forward part `[E]`.
    pub ffn_norm: B::Buffer,
    /// The feed-forward part.
    pub feed_forward: FeedForward<B>,
    /// RMS norm of what the feed-forward part adds `[E]`.
    pub post_ffn_norm: Option<B::Buffer>,
}

/// Weights of a feed-forward part on the device.
pub enum FeedForward<B: Backend> {
    /// One for all tokens.
    Dense(Gated<B>),
    /// Experts, of which a token goes to some.
    Routed {
        /// Their logits `[X, E]`.
        router: B::Matrix,
        /// Biases of these `[X]`.
        router_bias: Option<B::Buffer>,
        /// `X` of them.
        experts: Vec<Gated<B>>,
        /// How tokens are dealt to them.
        shape: Experts,
    },
}

/// Projections of a gated feed-forward network.
pub struct Gated<B: Backend> {
    /// Gate and up projections, stacked `[2F, E]`.
    pub gate_up: B::Matrix,
    /// Down projection `[E, F]`.
    pub down: B::Matrix,
    /// Their biases.
    pub biases: Option<Biases<B>>,
}

/// Biases of a gated feed-forward network.
pub struct Biases<B: Backend> {
    /// Of the gate and up projections `[2F]`.
    pub gate_up: B::Buffer,
    /// Of the down projection `[E]`, for the host.
    pub down: Vec<f32>,
}

impl<B: Backend> Gated<B> {
    fn load(backend: &B, weights: &GatedWeights<'_>) -> Result<Self> {
        Ok(Self {
            gate_up: stack(backend, &[&weights.gate, &weights.up])?,
            down: stack(backend, &[&weights.down])?,
            biases: match &weights.biases {
                Some(GatedBiases { gate, up, down }) => Some(Biases {
                    gate_up: vector(backend, &[&gate[..], up].concat())?,
                    down: down.clone(),
                }),
                None => None,
            },
        })
    }

    fn bytes(&self, backend: &B) -> usize {
        backend.matrix_bytes(&self.gate_up) + backend.matrix_bytes(&self.down)
    }
}

impl<B: Backend> FeedForward<B> {
    fn load(backend: &B, weights: &FeedForwardWeights<'_>) -> Result<Self> {
        match weights {
            FeedForwardWeights::Dense(gated) => Ok(Self::Dense(Gated::load(backend, gated)?)),
            FeedForwardWeights::Routed {
                router,
                router_bias,
                experts,
                shape,
            } => Ok(Self::Routed {
                router: stack(backend, &[router])?,
                router_bias: match router_bias {
                    Some(bias) => Some(vector(backend, bias)?),
                    None => None,
                },
                shape: *shape,
                experts: experts
                    .iter()
                    .map(|expert| Gated::load(backend, expert))
                    .collect::<Result<_>>()?,
            }),
        }
    }

    /// Device bytes of the matrices.
    fn bytes(&self, backend: &B) -> usize {
        match self {
            Self::Dense(gated) => gated.bytes(backend),
            Self::Routed {
                router, experts, ..
            } => {
                let experts = experts.iter().map(|expert| expert.bytes(backend));
                backend.matrix_bytes(router) + experts.sum::<usize>()
            }
        }
    }

    /// Device bytes of experts that a token does not go to.
    pub fn idle_bytes(&self, backend: &B) -> usize {
        match self {
            Self::Dense(_) => 0,
            Self::Routed { experts, shape, .. } => {
                let idle = &experts[shape.used..];
                idle.iter().map(|expert| expert.bytes(backend)).sum()
            }
        }
    }
}

impl<B: Backend> Layer<B> {
    /// Packs a layer's weights for the device.
    ///
    /// # Errors
    /// Those of [`palimpsest_kernels::Products::load_matrix`].
    pub fn load(backend: &B, weights: &LayerWeights<'_>) -> Result<Self> {
        let norm = |norm: &Option<Vec<f32>>| {
            let norm = norm.as_ref().map(|norm| vector(backend, norm));
            norm.transpose()
        };
        Ok(Self {
            attention_norm: vector(backend, &weights.attn_norm)?,
            attention: AttentionWeights::load(backend, weights)?,
            post_attention_norm: norm(&weights.post_attn_norm)?,
            ffn_norm: vector(backend, &weights.ffn_norm)?,
            feed_forward: FeedForward::load(backend, &weights.feed_forward)?,
            post_ffn_norm: norm(&weights.post_ffn_norm)?,
        })
    }

    /// Device bytes of the layer's matrices.
    pub fn bytes(&self, backend: &B) -> usize {
        let attention = [&self.attention.qkv, &self.attention.output];
        let attention: usize = attention.map(|m| backend.matrix_bytes(m)).iter().sum();
        attention + self.feed_forward.bytes(backend)
    }
}
