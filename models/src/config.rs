//! The shape of a model, checked number by number: everything downstream may rely on it.

use std::f64::consts::PI;

use palimpsest_kernels::fixed::MAX_UNITS;

/// Model families whose decoder layers are implemented: pre-norm, RMS norm, rotary positions,
/// grouped-query attention, SwiGLU. They differ in biases, query/key norms and windows only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM2 and others of that shape.
    Llama,
    /// Mistral: Llama with an optional sliding window.
    Mistral,
    /// Qwen2 and 2.5: biases on query, key and value.
    Qwen2,
    /// Qwen3: RMS norm of query and key heads.
    Qwen3,
}

impl Architecture {
    /// Name as in `model_type` of config.json.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The family of a `model_type` (config.json) or `general.architecture` (GGUF).
    pub fn from_name(name: &str) -> Result<Self, ConfigError> {
        match name {
            "llama" => Ok(Self::Llama),
            "mistral" => Ok(Self::Mistral),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            _ => Err(ConfigError::Unsupported {
                what: "architecture",
                found: name.to_owned(),
                supported: "llama, mistral, qwen2, qwen3",
            }),
        }
    }
}

/// How rotary frequencies are stretched for contexts beyond the pre-trained one.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, the middle interpolated.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of pre-training, in tokens.
        original_context: f64,
    },
    /// A divisor per frequency, `[D/2]` (GGUF's `rope_freqs.weight`).
    Factors(Vec<f32>),
}

/// Rotary position embedding, GPT-NeoX halves: value `i` of a head pairs with `i + D/2`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Their stretching.
    pub scaling: RopeScaling,
    /// `D`.
    pub head_dim: usize,
}

impl Rope {
    /// Angle per token of each pair, `[D/2]`: `theta^(-2i/D)`, then scaled as transformers 4.57
    /// does (`modeling_rope_utils.py`). Computed in f64 and rounded once.
    pub fn inv_freq(&self) -> Vec<f32> {
        let frequencies =
            (0..self.head_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / self.head_dim as f64));
        frequencies
            .enumerate()
            .map(|(i, frequency)| self.scaled(i, frequency) as f32)
            .collect()
    }

    fn scaled(&self, index: usize, frequency: f64) -> f64 {
        match &self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Factors(factors) => frequency / f64::from(factors[index]),
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let wavelength = 2.0 * PI / frequency;
                if wavelength > original_context / low_freq_factor {
                    frequency / factor
                } else if wavelength < original_context / high_freq_factor {
                    frequency
                } else {
                    let smooth = (original_context / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// Shape of a decoder-only model. Built from a model file; every number is in range.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Decoder layers.
    pub layers: usize,
    /// `E`, width of the residual stream.
    pub hidden: usize,
    /// `F`, width of the feed-forward layer.
    pub ffn: usize,
    /// `H`, query heads.
    pub heads: usize,
    /// `K`, KV heads; divides `heads`.
    pub kv_heads: usize,
    /// `D`, even.
    pub head_dim: usize,
    /// `V`, rows of the embedding.
    pub vocabulary: usize,
    /// Trained context, in tokens.
    pub context_length: usize,
    /// Epsilon of RMS norms.
    pub rms_eps: f32,
    /// Rotary positions.
    pub rope: Rope,
    /// A token sees itself and the `sliding_window - 1` tokens before it; `None`: all before it.
    pub sliding_window: Option<usize>,
    /// Whether query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether query and key heads are normalised before rotation.
    pub qk_norm: bool,
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

/// Why a model's configuration cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not an object.
    #[error("the configuration is not a JSON object: {0}")]
    Json(String),
    /// A key that must be there.
    #[error("\"{0}\" is missing from the configuration")]
    Missing(String),
    /// A value of the wrong type.
    #[error("\"{key}\" is {found}, expected {expected}")]
    Type {
        /// Key.
        key: String,
        /// Value found, shortened.
        found: String,
        /// What was needed.
        expected: &'static str,
    },
    /// A number that no model of these families has.
    #[error("{what} is {found}, expected {least} to {most}")]
    Range {
        /// Quantity.
        what: &'static str,
        /// Value found.
        found: String,
        /// Least value accepted.
        least: u64,
        /// Largest value accepted.
        most: u64,
    },
    /// Two numbers that contradict each other.
    #[error("{what} is {found}, which must be a multiple of {of} ({multiple})")]
    Multiple {
        /// Quantity.
        what: &'static str,
        /// Its value.
        found: usize,
        /// What it must be a multiple of.
        of: &'static str,
        /// Value of that.
        multiple: usize,
    },
    /// A feature that is not implemented.
    #[error("{what} \"{found}\" is not supported; supported: {supported}")]
    Unsupported {
        /// Kind of feature.
        what: &'static str,
        /// What the file asks for.
        found: String,
        /// What is implemented.
        supported: &'static str,
    },
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
        within(
            "the sliding window",
            self.sliding_window.unwrap_or(1),
            1,
            1 << 30,
        )?;
        multiple(
            "the number of query heads",
            self.heads,
            "the number of KV heads",
            self.kv_heads,
        )?;
        multiple("the head dimension", self.head_dim, "two", 2)?;
        positive("the norm epsilon", f64::from(self.rms_eps), 1.0)?;
        positive("the rope base", self.rope.theta, 1e12)?;
        match &self.rope.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => positive("the rope scaling factor", *factor, 1e6)?,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                positive("the rope scaling factor", *factor, 1e6)?;
                positive("low_freq_factor", *low_freq_factor, 1e6)?;
                positive(
                    "high_freq_factor - low_freq_factor",
                    high_freq_factor - low_freq_factor,
                    1e6,
                )?;
                positive("original_max_position_embeddings", *original_context, 1e9)?;
            }
            RopeScaling::Factors(factors) => {
                if factors.len() != self.head_dim / 2 {
                    let (found, most) = (factors.len().to_string(), self.head_dim as u64 / 2);
                    return Err(ConfigError::Range {
                        what: "the number of rope factors",
                        found,
                        least: most,
                        most,
                    });
                }
                for &factor in factors {
                    positive("a rope factor", f64::from(factor), 1e9)?;
                }
            }
        }
        let most = self.vocabulary - 1;
        for id in self.eos_ids.iter().chain(&self.bos_id) {
            within("a special token id", *id as usize, 0, most)?;
        }
        self.parameters = self.count_parameters();
        Ok(self)
    }

    /// Sizes are bounded by `check`, so the products fit in 64 bits.
    fn count_parameters(&self) -> u64 {
        let [hidden, ffn, head_dim] =
            [self.hidden, self.ffn, self.head_dim].map(|size| size as u64);
        let queries = self.heads as u64 * head_dim;
        let keys = self.kv_heads as u64 * head_dim;
        let attention = hidden * (2 * queries + 2 * keys);
        let biases = if self.qkv_bias { queries + 2 * keys } else { 0 };
        let head_norms = if self.qk_norm { 2 * head_dim } else { 0 };
        let layer = attention + biases + head_norms + 3 * hidden * ffn + 2 * hidden;
        let embeddings = self.vocabulary as u64 * hidden * if self.tied_embeddings { 1 } else { 2 };
        self.layers as u64 * layer + embeddings + hidden
    }
}

pub(crate) fn within(
    what: &'static str,
    found: usize,
    least: usize,
    most: usize,
) -> Result<(), ConfigError> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(ConfigError::Range {
        what,
        found: found.to_string(),
        least: least as u64,
        most: most as u64,
    })
}

pub(crate) fn multiple(
    what: &'static str,
    found: usize,
    of: &'static str,
    multiple: usize,
) -> Result<(), ConfigError> {
    if found.is_multiple_of(multiple) {
        return Ok(());
    }
    Err(ConfigError::Multiple {
        what,
        found,
        of,
        multiple,
    })
}

fn positive(what: &'static str, found: f64, most: f64) -> Result<(), ConfigError> {
    if found > 0.0 && found <= most {
        return Ok(());
    }
    Err(ConfigError::Range {
        what,
        found: format!("{found} (not above 0)"),
        least: 0,
        most: most as u64,
    })
}
