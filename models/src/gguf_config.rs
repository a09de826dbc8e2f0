//! GGUF metadata as a model configuration.

use crate::config::{Architecture, ConfigError, ModelConfig, Rope, RopeScaling, multiple, within};
use crate::gguf::{Gguf, GgufError};

/// What can be wrong: the file, or the model in it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GgufConfigError {
    /// Metadata is missing or mistyped.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// The model is not one that can run.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    fn size(&self, suffix: &str) -> Result<Option<usize>, GgufError> {
        let number = self.gguf.unsigned(&self.key(suffix))?;
        Ok(number.map(|number| usize::try_from(number).unwrap_or(usize::MAX)))
    }

    fn needed(&self, suffix: &str) -> Result<usize, GgufError> {
        self.size(suffix)?
            .ok_or_else(|| GgufError::MissingKey(self.key(suffix)))
    }
}

impl ModelConfig {
    /// Reads the metadata of a GGUF file. `rope_factors`: content of its `rope_freqs.weight`, if it
    /// has one; `name`: the model's name when the metadata has none.
    pub fn from_gguf(
        gguf: &Gguf,
        rope_factors: Option<Vec<f32>>,
        name: &str,
    ) -> Result<Self, GgufConfigError> {
        let missing = |key: &str| GgufError::MissingKey(key.to_owned());
        let name_of_architecture = gguf
            .text("general.architecture")?
            .ok_or_else(|| missing("general.architecture"))?;
        let architecture = Architecture::from_name(name_of_architecture)?;
        let keys = Keys {
            gguf,
            architecture: name_of_architecture,
        };
        if let Some(experts) = keys.size("expert_count")?.filter(|&experts| experts > 0) {
            let found = format!("{experts} experts");
            return Err(ConfigError::Unsupported {
                what: "mixture",
                found,
                supported: "dense models",
            }
            .into());
        }
        let (hidden, heads) = (
            keys.needed("embedding_length")?,
            keys.needed("attention.head_count")?,
        );
        within("the number of query heads", heads, 1, 1 << 12)?;
        let head_dim = head_dim(&keys, hidden, heads)?;
        let kv_heads = keys.size("attention.head_count_kv")?.unwrap_or(heads);
        within("the number of KV heads", kv_heads, 1, 1 << 12)?;
        let epsilon = "attention.layer_norm_rms_epsilon";
        let has = |tensor: &str| gguf.tensors.iter().any(|stored| stored.name == tensor);
        let token = |key: &str| {
            Ok::<_, GgufError>(gguf.unsigned(key)?.and_then(|id| u32::try_from(id).ok()))
        };
        let mut eos_ids = Vec::new();
        for kind in ["eos", "eot", "eom"] {
            let id = token(&format!("tokenizer.ggml.{kind}_token_id"))?;
            eos_ids.extend(id.filter(|id| !eos_ids.contains(id)));
        }
        let config = Self {
            architecture,
            layers: keys.needed("block_count")?,
            hidden,
            ffn: keys.needed("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            vocabulary: vocabulary(&keys)?,
            context_length: keys.needed("context_length")?,
            rms_eps: gguf
                .float(&keys.key(epsilon))?
                .ok_or_else(|| missing(&keys.key(epsilon)))? as f32,
            rope: rope(&keys, rope_factors, head_dim)?,
            sliding_window: keys
                .size("attention.sliding_window")?
                .filter(|&window| window > 0),
            qkv_bias: architecture == Architecture::Qwen2 || has("blk.0.attn_q.bias"),
            qk_norm: architecture == Architecture::Qwen3,
            tied_embeddings: !has("output.weight"),
            eos_ids,
            bos_id: token("tokenizer.ggml.bos_token_id")?,
            name: gguf.text("general.name")?.unwrap_or(name).to_owned(),
            parameters: 0,
        };
        Ok(config.check()?)
    }
}

/// `D`, equal for keys, values and the rotated part.
fn head_dim(keys: &Keys<'_>, hidden: usize, heads: usize) -> Result<usize, GgufConfigError> {
    let head_dim = match keys.size("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => {
            multiple(
                "the hidden size",
                hidden,
                "the number of query heads",
                heads,
            )?;
            hidden / heads
        }
    };
    for (suffix, what) in [
        ("attention.value_length", "value_length"),
        ("rope.dimension_count", "rope.dimension_count"),
    ] {
        if let Some(other) = keys.size(suffix)?.filter(|&other| other != head_dim) {
            let found = format!("{other} with a head dimension of {head_dim}");
            return Err(ConfigError::Unsupported {
                what,
                found,
                supported: "the head dimension",
            }
            .into());
        }
    }
    Ok(head_dim)
}

/// Rows of the embedding tensor; the metadata key is optional and sometimes wrong.
fn vocabulary(keys: &Keys<'_>) -> Result<usize, GgufError> {
    let embedding = keys
        .gguf
        .tensors
        .iter()
        .find(|tensor| tensor.name == "token_embd.weight");
    match embedding.and_then(|tensor| tensor.shape.first()) {
        Some(&rows) => Ok(rows),
        None => keys.needed("vocab_size"),
    }
}

fn rope(
    keys: &Keys<'_>,
    factors: Option<Vec<f32>>,
    head_dim: usize,
) -> Result<Rope, GgufConfigError> {
    let theta = keys
        .gguf
        .float(&keys.key("rope.freq_base"))?
        .unwrap_or(10_000.0);
    let kind = keys
        .gguf
        .text(&keys.key("rope.scaling.type"))?
        .unwrap_or("none");
    let scaling = match (kind, factors) {
        ("none", Some(factors)) => RopeScaling::Factors(factors),
        ("none", None) => match keys.gguf.float(&keys.key("rope.scale_linear"))? {
            Some(factor) if factor != 1.0 => RopeScaling::Linear { factor },
            _ => RopeScaling::None,
        },
        ("linear", None) => {
            let key = keys.key("rope.scaling.factor");
            RopeScaling::Linear {
                factor: keys.gguf.float(&key)?.ok_or(GgufError::MissingKey(key))?,
            }
        }
        (other, factors) => {
            let found = if factors.is_some() {
                format!("{other} with rope_freqs.weight")
            } else {
                other.to_owned()
            };
            let supported = "none, linear, rope_freqs.weight";
            return Err(ConfigError::Unsupported {
                what: "rope scaling",
                found,
                supported,
            }
            .into());
        }
    };
    Ok(Rope {
        theta,
        scaling,
        head_dim,
    })
}
