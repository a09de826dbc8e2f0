//! What a family declares beyond the plain decoder.

use super::checks::{Architecture, ConfigError, positive, within};
use super::rope::Rope;

/// What a gate goes through in the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// GELU by its approximation with a hyperbolic tangent.
    GeluTanh,
    /// gpt-oss's: both sides within limits, and the up projection increased by 1.
    Clamped,
}

/// Routed experts of the feed-forward part. Each token goes to the `used` experts whose router
/// logits are largest; their outputs are weighted by the softmax of these logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that a token goes to.
    pub used: usize,
    /// Whether the weights of these add up to 1; else the softmax is over all experts.
    pub normalise: bool,
}

/// What a layer does otherwise than others of its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerKind {
    /// Whether its attention sees [`Differences::sliding_window`] tokens only.
    pub windowed: bool,
    /// Whether its queries and keys are rotated.
    pub rotates: bool,
}

/// The declared differences of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Differences {
    /// Rotary positions of windowed layers, where they have others than the rest (Gemma 3).
    pub windowed_rope: Option<Rope>,
    /// In windowed layers a token sees itself and the `sliding_window - 1` tokens before it;
    /// `None`: all before it.
    pub sliding_window: Option<usize>,
    /// What each layer does, as many entries as layers.
    pub layer_kinds: Vec<LayerKind>,
    /// Experts of the feed-forward part; `None`: it is dense.
    pub experts: Option<Experts>,
    /// What gates go through.
    pub activation: Activation,
    /// Whether the outputs of attention and of the feed-forward part are normalised, too, before
    /// they are added (Gemma 3).
    pub post_norms: bool,
    /// What embeddings are multiplied with.
    pub embedding_scale: f32,
    /// What attention logits are multiplied with instead of `1/sqrt(D)`; only with `qk_norm`.
    pub query_scale: Option<f32>,
    /// Whether query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the output projection, the router and the experts have biases, too.
    pub all_biases: bool,
    /// Whether query heads have an attention sink: a logit beside those of keys.
    pub sinks: bool,
    /// Whether query and key heads are normalised before rotation.
    pub qk_norm: bool,
}

impl Differences {
    /// What follows from the family alone. `layers` is in range.
    pub(crate) fn of(architecture: Architecture, layers: usize, hidden: usize) -> Self {
        let is_gemma = architecture == Architecture::Gemma3;
        let is_gpt_oss = architecture == Architecture::GptOss;
        let plain = LayerKind {
            windowed: false,
            rotates: true,
        };
        Self {
            windowed_rope: None,
            sliding_window: None,
            layer_kinds: vec![plain; layers],
            experts: None,
            activation: match architecture {
                Architecture::Gemma3 => Activation::GeluTanh,
                Architecture::GptOss => Activation::Clamped,
                _ => Activation::Silu,
            },
            post_norms: is_gemma,
            embedding_scale: if is_gemma {
                (hidden as f32).sqrt()
            } else {
                1.0
            },
            query_scale: None,
            qkv_bias: architecture == Architecture::Qwen2 || is_gpt_oss,
            all_biases: is_gpt_oss,
            sinks: is_gpt_oss,
            qk_norm: matches!(
                architecture,
                Architecture::Qwen3 | Architecture::Qwen3Moe | Architecture::Gemma3
            ),
        }
    }

    /// Says which layers have the sliding window. Where none has it, there is none.
    pub(crate) fn window(&mut self, window: Option<usize>, is_windowed: impl Fn(usize) -> bool) {
        self.sliding_window = window;
        if window.is_none() {
            return;
        }
        for (layer, kind) in self.layer_kinds.iter_mut().enumerate() {
            kind.windowed = is_windowed(layer);
        }
        if !self.layer_kinds.iter().any(|kind| kind.windowed) {
            self.sliding_window = None;
        }
    }

    /// The window of a layer, where it has one.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        let kind = self.layer_kinds.get(layer);
        self.sliding_window
            .filter(|_| kind.is_some_and(|kind| kind.windowed))
    }

    /// The window, where some layers have it and others see everything.
    pub fn mixed_window(&self) -> Option<usize> {
        let is_mixed = self.layer_kinds.iter().any(|kind| kind.windowed)
            && self.layer_kinds.iter().any(|kind| !kind.windowed);
        self.sliding_window.filter(|_| is_mixed)
    }

    /// Names what the plain decoder does not do, for code that knows no other; `None`: nothing.
    /// Rotary scaling, biases, head norms and a window in all layers are plain.
    pub fn beyond_plain(&self) -> Option<&'static str> {
        let lacks = [
            (self.experts.is_some(), "routed experts"),
            (
                self.mixed_window().is_some(),
                "a sliding window in some layers",
            ),
            (
                self.layer_kinds.iter().any(|kind| !kind.rotates),
                "layers without rotation",
            ),
            (self.activation != Activation::Silu, "gates other than SiLU"),
            (self.all_biases, "biases of the output projection"),
            (self.sinks, "attention sinks"),
            (
                self.post_norms,
                "norms behind attention and feed-forward parts",
            ),
            (self.embedding_scale != 1.0, "scaled embeddings"),
        ];
        lacks.into_iter().find(|lack| lack.0).map(|lack| lack.1)
    }

    /// Checks every number, for a model of `layers` layers.
    pub(super) fn check(&self, layers: usize) -> Result<(), ConfigError> {
        let window = self.sliding_window.unwrap_or(1);
        within("the sliding window", window, 1, 1 << 30)?;
        within(
            "the number of layer types",
            self.layer_kinds.len(),
            layers,
            layers,
        )?;
        if let Some(rope) = &self.windowed_rope {
            rope.check()?;
        }
        positive(
            "the scale of embeddings",
            f64::from(self.embedding_scale),
            1e6,
        )?;
        if let Some(scale) = self.query_scale {
            positive("the scale of attention", f64::from(scale), 1e3)?;
        }
        let Some(experts) = self.experts else {
            return Ok(());
        };
        within("the number of experts", experts.count, 1, 1 << 12)?;
        let most = experts.count.min(MOST_USED);
        within("the number of experts of a token", experts.used, 1, most)
    }
}

/// Most experts of a token: their sums are added in fixed point, of at most
/// [`MAX_UNITS`](palimpsest_kernels::fixed::MAX_UNITS) units.
const MOST_USED: usize = 16;
