//! GGUF metadata as a model configuration.

mod families;
mod keys;
mod rope;

use self::families::Sizes;
pub use self::keys::GgufConfigError;
use self::keys::Keys;
use self::rope::Positions;
pub(crate) use self::rope::RopeTensors;
use crate::config::{Architecture, ConfigError, ModelConfig, multiple, within};
use crate::gguf::{Gguf, GgufError};

impl ModelConfig {
    /// Reads the metadata of a GGUF file. `tensors`: what the file's tensors say of rotary
    /// positions; `name`: the model's name when the metadata has none.
    pub(crate) fn from_gguf(
        gguf: &Gguf,
        tensors: RopeTensors,
        name: &str,
    ) -> Result<Self, GgufConfigError> {
        let missing = |key: &str| GgufError::MissingKey(key.to_owned());
        let name_of_architecture = gguf
            .text("general.architecture")?
            .ok_or_else(|| missing("general.architecture"))?;
        let keys = Keys {
            gguf,
            architecture: name_of_architecture,
        };
        let has_experts = keys.size("expert_count")?.is_some_and(|count| count > 0);
        let architecture = Architecture::from_gguf(name_of_architecture, has_experts)?;
        let (hidden, heads) = (
            keys.needed("embedding_length")?,
            keys.needed("attention.head_count")?,
        );
        within("the number of query heads", heads, 1, 1 << 12)?;
        let head_dim = head_dim(&keys, hidden, heads)?;
        let rotary_dim = rotary_dim(&keys, architecture, head_dim)?;
        let Positions {
            rope,
            context_length,
        } = rope::read(&keys, tensors, head_dim, rotary_dim)?;
        let layers = keys.needed("block_count")?;
        within("the number of layers", layers, 1, 1 << 12)?;
        let kv_heads = keys.size("attention.head_count_kv")?.unwrap_or(heads);
        within("the number of KV heads", kv_heads, 1, 1 << 12)?;
        let epsilon = "attention.layer_norm_rms_epsilon";
        let has = |tensor: &str| gguf.tensors.iter().any(|stored| stored.name == tensor);
        let sizes = Sizes {
            layers,
            hidden,
            heads,
            head_dim,
        };
        let has_bias = has("blk.0.attn_q.bias");
        let differences = families::differences(&keys, architecture, &sizes, has_bias)?;
        let ffn = match keys.size("expert_feed_forward_length")? {
            Some(ffn) if differences.experts.is_some() => ffn,
            _ => keys.needed("feed_forward_length")?,
        };
        let config = Self {
            architecture,
            layers,
            hidden,
            ffn,
            heads,
            kv_heads,
            head_dim,
            vocabulary: vocabulary(&keys)?,
            context_length,
            rms_eps: gguf
                .float(&keys.key(epsilon))?
                .ok_or_else(|| missing(&keys.key(epsilon)))? as f32,
            rope,
            differences,
            tied_embeddings: !has("output.weight"),
            eos_ids: ends(gguf)?,
            bos_id: token(gguf, "bos")?,
            name: gguf.text("general.name")?.unwrap_or(name).to_owned(),
            parameters: 0,
        };
        Ok(config.check()?)
    }
}

/// A special token of the tokenizer.
fn token(gguf: &Gguf, kind: &str) -> Result<Option<u32>, GgufError> {
    let id = gguf.unsigned(&format!("tokenizer.ggml.{kind}_token_id"))?;
    Ok(id.and_then(|id| u32::try_from(id).ok()))
}

/// Tokens that end a generation.
fn ends(gguf: &Gguf) -> Result<Vec<u32>, GgufError> {
    let mut ids = Vec::new();
    for kind in ["eos", "eot", "eom"] {
        ids.extend(token(gguf, kind)?.filter(|id| !ids.contains(id)));
    }
    Ok(ids)
}

/// `D`, equal for keys and values.
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
    match keys.size("attention.value_length")? {
        Some(other) if other != head_dim => {
            Err(unlike_the_head("value_length", other, head_dim).into())
        }
        _ => Ok(head_dim),
    }
}

/// `R`: values of a head that are rotated, all of them but in Phi.
fn rotary_dim(
    keys: &Keys<'_>,
    architecture: Architecture,
    head_dim: usize,
) -> Result<usize, GgufConfigError> {
    match keys.size("rope.dimension_count")? {
        Some(other) if other != head_dim && architecture != Architecture::Phi3 => {
            Err(unlike_the_head("rope.dimension_count", other, head_dim).into())
        }
        found => Ok(found.unwrap_or(head_dim)),
    }
}

fn unlike_the_head(what: &'static str, found: usize, head_dim: usize) -> ConfigError {
    ConfigError::Unsupported {
        what,
        found: format!("{found} with a head dimension of {head_dim}"),
        supported: "the head dimension",
    }
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
