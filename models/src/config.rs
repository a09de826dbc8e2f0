//! The shape of a model, checked number by number: everything downstream may rely on it.

mod checks;
mod differences;
mod rope;

use palimpsest_kernels::fixed::MAX_UNITS;

pub use self::checks::{Architecture, ConfigError};
pub(crate) use self::checks::{multiple, positive, within};
pub use self::differences::{Activation, Differences, Experts, LayerKind};
pub use self::rope::{LongRope, Rope, RopeScaling, Rotary, Yarn};

/// Shape of a decoder-only model. Built from a model file; every number is in range.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Decoder layers.
    pub layers: usize,
    /// `E`, width of the residual stream.
    pub hidden: usize,
    /// `F`, width of the feed-forward layer, of each expert where there are experts.
    pub ffn: usize,
    /// `H`, query heads.
    pub heads: usize,
    /// `K`, KV heads; divides `heads`.
    pub kv_heads: usize,
    /// `D`, even.
    pub head_dim: usize,
    /// `V`, rows of the embedding.
    pub vocabulary: usize,
    /// Trained context, in tokens, as far as rotary scaling stretches it.
    pub context_length: usize,
    /// Epsilon of RMS norms.
    pub rms_eps: f32,
    /// Rotary positions.
    pub rope: Rope,
    /// What its family declares.
    pub differences: Differences,
    /// Whether the output projection is the embedding.
    pub tied_embeddings: bool,
    /// Tokens that end a generation.
    pub eos_ids: Vec<u32>,
    /// Token that begins a text, if the model has one.
    pub bos_id: Option<u32>,
    /// Name for people.
    pub name: String,
    /// Weights, tied ones counted once.
    pub parameters: u64,
}

impl ModelConfig {
    /// Checks every number and fills in `parameters`.
    pub(crate) fn check(mut self) -> Result<Self, ConfigError> {
        within("the number of layers", self.layers, 1, 1 << 12)?;
        within("the hidden size", self.hidden, 1, 1 << 18)?;
        within("the feed-forward size", self.ffn, 1, 1 << 20)?;
        within("the number of query heads", self.heads, 1, MAX_UNITS)?;
        within("the number of KV heads", self.kv_heads, 1, MAX_UNITS)?;
        within("the head dimension", self.head_dim, 2, 1 << 12)?;
        within("the vocabulary size", self.vocabulary, 1, 1 << 24)?;
        within("the context length", self.context_length, 1, 1 << 30)?;
        multiple(
            "the number of query heads",
            self.heads,
            "the number of KV heads",
            self.kv_heads,
        )?;
        multiple("the head dimension", self.head_dim, "two", 2)?;
        positive("the norm epsilon", f64::from(self.rms_eps), 1.0)?;
        self.rope.check()?;
        self.differences.check(self.layers)?;
        let most = self.vocabulary - 1;
        for id in self.eos_ids.iter().chain(&self.bos_id) {
            within("a special token id", *id as usize, 0, most)?;
        }
        self.parameters = self.count_parameters();
        Ok(self)
    }

    /// What a layer's queries and keys are turned by.
    pub fn rotary_of(&self, layer: usize) -> Rotary {
        let kind = self.differences.layer_kinds.get(layer);
        match (kind, &self.differences.windowed_rope) {
            (Some(kind), _) if !kind.rotates => Rotary::still(self.head_dim),
            (Some(kind), Some(rope)) if kind.windowed => rope.rotary(),
            _ => self.rope.rotary(),
        }
    }

    /// Sizes are bounded by `check`, so the products fit in 64 bits.
    fn count_parameters(&self) -> u64 {
        let [hidden, ffn, head_dim] =
            [self.hidden, self.ffn, self.head_dim].map(|size| size as u64);
        let queries = self.heads as u64 * head_dim;
        let keys = self.kv_heads as u64 * head_dim;
        let attention = hidden * (2 * queries + 2 * keys);
        let biases = if self.differences.qkv_bias {
            queries + 2 * keys
        } else {
            0
        };
        let head_norms = if self.differences.qk_norm {
            2 * head_dim
        } else {
            0
        };
        let norms = hidden * if self.differences.post_norms { 4 } else { 2 };
        let feed_forward = match self.differences.experts {
            Some(experts) => experts.count as u64 * (3 * hidden * ffn + hidden),
            None => 3 * hidden * ffn,
        };
        let more = match (self.differences.all_biases, self.differences.experts) {
            (true, Some(experts)) => hidden + experts.count as u64 * (1 + 2 * ffn + hidden),
            (true, None) => hidden,
            (false, _) => 0,
        };
        let sinks = if self.differences.sinks {
            self.heads as u64
        } else {
            0
        };
        let layer = attention + biases + head_norms + feed_forward + norms + more + sinks;
        let embeddings = self.vocabulary as u64 * hidden * if self.tied_embeddings { 1 } else { 2 };
        self.layers as u64 * layer + embeddings + hidden
    }
}
