//! What a `config.json` says of its family's differences.

use serde_json::Value;

use super::json::Json;
use super::rope::windowed_theta;
use crate::config::{Architecture, ConfigError, Differences, Experts, Rope, RopeScaling, within};

/// Numbers that differences depend on.
pub(super) struct Sizes {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) head_dim: usize,
}

/// Reads them.
pub(super) fn differences(
    json: &Json<'_>,
    architecture: Architecture,
    sizes: &Sizes,
) -> Result<Differences, ConfigError> {
    let mut read = Differences::of(architecture, sizes.layers, sizes.hidden);
    if architecture == Architecture::SmolLm3 {
        layers_without_rotation(json, &mut read)?;
    }
    window(json, architecture, &mut read)?;
    match architecture {
        Architecture::Mixtral => {
            read.experts = Some(Experts {
                count: json.needed("num_local_experts")?,
                used: json.needed("num_experts_per_tok")?,
                normalise: true,
            });
        }
        Architecture::Qwen3Moe => {
            only_experts(json)?;
            read.experts = Some(Experts {
                count: json.needed("num_experts")?,
                used: json.needed("num_experts_per_tok")?,
                normalise: json.flag("norm_topk_prob")?,
            });
        }
        Architecture::Gemma3 => {
            let scalar = json.float("query_pre_attn_scalar")?.unwrap_or(256.0);
            read.query_scale = Some((1.0 / scalar.sqrt()) as f32);
            read.windowed_rope = Some(Rope {
                theta: windowed_theta(json)?.unwrap_or(10_000.0),
                scaling: RopeScaling::None,
                head_dim: sizes.head_dim,
                rotary_dim: sizes.head_dim,
            });
        }
        _ => {}
    }
    Ok(read)
}

/// Qwen3-MoE may have dense layers between the others; no published model has.
fn only_experts(json: &Json<'_>) -> Result<(), ConfigError> {
    let step = json.size("decoder_sparse_step")?.unwrap_or(1);
    let dense = json.typed("mlp_only_layers", "a list of layers", Value::as_array)?;
    if step == 1 && dense.is_none_or(Vec::is_empty) {
        return Ok(());
    }
    Err(ConfigError::Unsupported {
        what: "mixture",
        found: "dense layers beside layers of experts".to_owned(),
        supported: "experts in all layers",
    })
}

/// SmolLM3: `no_rope_layers` has a 1 for each layer that rotates. Where it is left out, every
/// fourth one does not.
fn layers_without_rotation(json: &Json<'_>, read: &mut Differences) -> Result<(), ConfigError> {
    let flags = |value: &Value| value.as_array()?.iter().map(Value::as_u64).collect();
    let listed: Option<Vec<u64>> = json.typed("no_rope_layers", "a list of 0 and 1", flags)?;
    let interval = json.size("no_rope_layer_interval")?.unwrap_or(4).max(1);
    for (layer, kind) in read.layer_kinds.iter_mut().enumerate() {
        kind.rotates = match &listed {
            Some(flags) => flags.get(layer).is_none_or(|&flag| flag != 0),
            None => (layer + 1) % interval != 0,
        };
    }
    Ok(())
}

/// Which layers see a window only: by `layer_types`, else by the family's rule.
fn window(
    json: &Json<'_>,
    architecture: Architecture,
    read: &mut Differences,
) -> Result<(), ConfigError> {
    let window = json.size("sliding_window")?;
    if window == Some(0) {
        return within("the sliding window", 0, 1, 1 << 30);
    }
    let types = |value: &Value| {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        value.as_array()?.iter().map(text).collect()
    };
    let types: Option<Vec<String>> = json.typed("layer_types", "a list of names", types)?;
    let types = types.unwrap_or_default();
    let known = ["full_attention", "sliding_attention"];
    if let Some(other) = types.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(ConfigError::Unsupported {
            what: "layer type",
            found: other.clone(),
            supported: "full_attention, sliding_attention",
        });
    }
    let from_names = |layer: usize| types.get(layer).map(|name| name == "sliding_attention");
    let asked = json.flag("use_sliding_window")?;
    let first = json.size("max_window_layers")?.unwrap_or(28);
    let pattern = json.size("sliding_window_pattern")?.unwrap_or(6).max(1);
    let rotates: Vec<bool> = read.layer_kinds.iter().map(|kind| kind.rotates).collect();
    read.window(window, |layer| match architecture {
        Architecture::Llama | Architecture::GptOss => false,
        Architecture::Mistral | Architecture::Mixtral | Architecture::Phi3 => true,
        Architecture::Qwen3Moe => asked,
        Architecture::Qwen2 | Architecture::Qwen3 => {
            asked && from_names(layer).unwrap_or(layer >= first)
        }
        Architecture::SmolLm3 => asked && from_names(layer).unwrap_or(!rotates[layer]),
        Architecture::Gemma3 => from_names(layer).unwrap_or((layer + 1) % pattern != 0),
    });
    Ok(())
}
