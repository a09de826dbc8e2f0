//! Architectures by name, and what a configuration is checked for.

/// Model families that one decoder runs: pre-norm, RMS norm, rotary positions, grouped-query
/// attention, a gated feed-forward part. What else differs is declared in
/// [`Differences`](super::Differences).
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
    /// Mixtral: Mistral with routed experts.
    Mixtral,
    /// Qwen3-MoE: Qwen3 with routed experts.
    Qwen3Moe,
    /// Phi-3, 3.5 and Phi-4-mini: projections stored as one, a part of each head rotated.
    Phi3,
    /// SmolLM3: Llama with layers that do not rotate.
    SmolLm3,
    /// Gemma 3, text: windowed and full layers in turn, norms on both sides of each part.
    Gemma3,
    /// gpt-oss: experts, attention sinks, windowed and full layers in turn, biases everywhere.
    GptOss,
}

impl Architecture {
    /// Every family.
    pub const ALL: [Self; 10] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Mixtral,
        Self::Qwen3Moe,
        Self::Phi3,
        Self::SmolLm3,
        Self::Gemma3,
        Self::GptOss,
    ];

    /// Name as in `model_type` of config.json.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Mixtral => "mixtral",
            Self::Qwen3Moe => "qwen3_moe",
            Self::Phi3 => "phi3",
            Self::SmolLm3 => "smollm3",
            Self::Gemma3 => "gemma3_text",
            Self::GptOss => "gpt_oss",
        }
    }

    /// The family of a `model_type` in config.json. Directories of gpt-oss hold a type that is not
    /// read from there.
    pub fn from_model_type(name: &str) -> Result<Self, ConfigError> {
        Self::ALL
            .into_iter()
            .find(|family| family.name() == name && *family != Self::GptOss)
            .ok_or_else(|| ConfigError::Unsupported {
                what: "architecture",
                found: name.to_owned(),
                supported: "llama, mistral, qwen2, qwen3, mixtral, qwen3_moe, phi3, smollm3, \
                            gemma3_text",
            })
    }

    /// The family of a `general.architecture` in GGUF metadata, where Llama with experts is
    /// Mixtral.
    pub fn from_gguf(name: &str, has_experts: bool) -> Result<Self, ConfigError> {
        match (name, has_experts) {
            ("llama", true) => Ok(Self::Mixtral),
            ("llama", false) => Ok(Self::Llama),
            ("mistral", false) => Ok(Self::Mistral),
            ("qwen2", false) => Ok(Self::Qwen2),
            ("qwen3", false) => Ok(Self::Qwen3),
            ("qwen3moe", true) => Ok(Self::Qwen3Moe),
            ("phi3", false) => Ok(Self::Phi3),
            ("smollm3", false) => Ok(Self::SmolLm3),
            ("gemma3", false) => Ok(Self::Gemma3),
            ("gpt-oss", true) => Ok(Self::GptOss),
            _ => Err(ConfigError::Unsupported {
                what: "architecture",
                found: if has_experts {
                    format!("{name} with experts")
                } else {
                    name.to_owned()
                },
                supported: "llama, mistral, qwen2, qwen3, phi3, smollm3, gemma3; with experts \
                            llama, qwen3moe, gpt-oss",
            }),
        }
    }

    /// Whether llama.cpp's converter interleaves the rotary halves of this family's queries and
    /// keys.
    pub(crate) fn interleaves(self) -> bool {
        matches!(self, Self::Llama | Self::Mixtral | Self::SmolLm3)
    }
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

pub(crate) fn positive(what: &'static str, found: f64, most: f64) -> Result<(), ConfigError> {
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
