//! `config.json` of a Hugging Face directory.

mod families;
mod json;
mod rope;

use serde_json::Value;

use self::families::Sizes;
use self::json::Json;
use self::rope::Positions;
use crate::config::{Architecture, ConfigError, ModelConfig, multiple, within};

impl ModelConfig {
    /// Reads `config.json`; `generation`, the content of `generation_config.json` if there is one,
    /// has the last word on the tokens that end a generation.
    pub fn from_json(
        config: &[u8],
        generation: Option<&[u8]>,
        name: &str,
    ) -> Result<Self, ConfigError> {
        let parse = |bytes| serde_json::from_slice::<serde_json::Map<String, Value>>(bytes);
        let config = parse(config).map_err(|error| ConfigError::Json(error.to_string()))?;
        let generation = generation.map(parse).transpose();
        let generation = generation
            .map_err(|error| ConfigError::Json(error.to_string()))?
            .unwrap_or_default();
        let (json, generation) = (Json(&config), Json(&generation));
        let model_type = json
            .text("model_type")?
            .ok_or_else(|| ConfigError::Missing("model_type".to_owned()))?;
        let architecture = Architecture::from_model_type(model_type)?;
        refuse_unsupported(&json, architecture)?;
        let hidden = json.needed("hidden_size")?;
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = Heads::read(&json, architecture, hidden)?;
        let Positions {
            rope,
            context_length,
        } = rope::read(&json, head_dim, rotary_dim(&json, head_dim)?)?;
        let layers = json.needed("num_hidden_layers")?;
        within("the number of layers", layers, 1, 1 << 12)?;
        let sizes = Sizes {
            layers,
            hidden,
            head_dim,
        };
        let differences = families::differences(&json, architecture, &sizes)?;
        let ffn = match architecture {
            Architecture::Qwen3Moe => "moe_intermediate_size",
            _ => "intermediate_size",
        };
        let tied = json.typed("tie_word_embeddings", "true or false", Value::as_bool)?;
        let eos_ids = generation
            .ids("eos_token_id")?
            .or(json.ids("eos_token_id")?)
            .unwrap_or_default();
        let bos_id = json
            .ids("bos_token_id")?
            .and_then(|ids| ids.first().copied());
        Self {
            architecture,
            layers,
            hidden,
            ffn: json.needed(ffn)?,
            heads,
            kv_heads,
            head_dim,
            vocabulary: json.needed("vocab_size")?,
            context_length,
            rms_eps: json.float("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope,
            differences,
            tied_embeddings: tied.unwrap_or(are_tied_unsaid(architecture)),
            eos_ids,
            bos_id,
            name: name.to_owned(),
            parameters: 0,
        }
        .check()
    }
}

/// Heads of a layer.
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Heads {
    /// Reads them; what is left out follows from the architecture and the hidden size.
    fn read(
        json: &Json<'_>,
        architecture: Architecture,
        hidden: usize,
    ) -> Result<Self, ConfigError> {
        let heads = json.needed("num_attention_heads")?;
        within("the number of query heads", heads, 1, 1 << 12)?;
        let head_dim = match json.size("head_dim")? {
            Some(head_dim) => head_dim,
            None if architecture == Architecture::Gemma3 => 256,
            None => {
                let heads_are = "the number of query heads";
                multiple("the hidden size", hidden, heads_are, heads)?;
                hidden / heads
            }
        };
        let kv_heads = match (json.size("num_key_value_heads")?, architecture) {
            (Some(kv_heads), _) => kv_heads,
            (None, Architecture::Llama) => heads,
            (None, _) => return Err(ConfigError::Missing("num_key_value_heads".to_owned())),
        };
        within("the number of KV heads", kv_heads, 1, 1 << 12)?;
        Ok(Self {
            heads,
            kv_heads,
            head_dim,
        })
    }
}

/// Whether embeddings are the output layer where a configuration does not say so.
fn are_tied_unsaid(architecture: Architecture) -> bool {
    matches!(architecture, Architecture::Gemma3 | Architecture::SmolLm3)
}

/// Values of a head that are rotated.
fn rotary_dim(json: &Json<'_>, head_dim: usize) -> Result<usize, ConfigError> {
    let part = json.float("partial_rotary_factor")?.unwrap_or(1.0);
    Ok((head_dim as f64 * part.clamp(0.0, 1.0)) as usize)
}

/// Refuses what the decoder does not compute.
fn refuse_unsupported(json: &Json<'_>, architecture: Architecture) -> Result<(), ConfigError> {
    let (usual, supported) = match architecture {
        Architecture::Gemma3 => ("gelu_pytorch_tanh", "gelu_pytorch_tanh"),
        _ => ("silu", "silu"),
    };
    let activation = match json.text("hidden_activation")? {
        Some(activation) => activation,
        None => json.text("hidden_act")?.unwrap_or(usual),
    };
    if activation != usual {
        return Err(ConfigError::Unsupported {
            what: "activation",
            found: activation.to_owned(),
            supported,
        });
    }
    if architecture != Architecture::Qwen2 {
        json.refuse("attention_bias")?;
    }
    json.refuse("mlp_bias")?;
    json.refuse("use_bidirectional_attention")?;
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = json.float(key)? {
            return Err(ConfigError::Unsupported {
                what: key,
                found: cap.to_string(),
                supported: "none",
            });
        }
    }
    let part = json.float("partial_rotary_factor")?.unwrap_or(1.0);
    if part != 1.0 && architecture != Architecture::Phi3 {
        return Err(ConfigError::Unsupported {
            what: "partial_rotary_factor",
            found: part.to_string(),
            supported: "1",
        });
    }
    if let Some(method) = json.get("quantization_config") {
        let method = method
            .get("quant_method")
            .and_then(Value::as_str)
            .unwrap_or("unknown")
            .to_owned();
        return Err(ConfigError::Unsupported {
            what: "quantization",
            found: method,
            supported: "GGUF files",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
