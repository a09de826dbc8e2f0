//! What GGUF metadata says of a family's differences. What it does not say, llama.cpp has as
//! constants of the family, and so has this.

use super::keys::{GgufConfigError, Keys};
use crate::config::{Architecture, Differences, Experts, Rope, RopeScaling};

/// Every so many layers a layer of Gemma 3 sees everything.
const GEMMA3_PATTERN: usize = 6;
/// Every so many layers a layer of gpt-oss sees everything.
const GPT_OSS_PATTERN: usize = 2;
/// Layers of Gemma 3 27B, whose logits are scaled by the hidden size's share of a head.
const GEMMA3_27B_LAYERS: usize = 62;
/// Every so many layers a layer of SmolLM3 does not rotate.
const SMOLLM3_STEP: usize = 4;

/// Numbers that differences depend on.
pub(super) struct Sizes {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

/// Reads them. `has_bias`: whether the file has biases of queries.
pub(super) fn differences(
    keys: &Keys<'_>,
    architecture: Architecture,
    sizes: &Sizes,
    has_bias: bool,
) -> Result<Differences, GgufConfigError> {
    let mut read = Differences::of(architecture, sizes.layers, sizes.hidden);
    read.qkv_bias |= has_bias;
    let window = keys.size("attention.sliding_window")?.filter(|&w| w > 0);
    let usual = match architecture {
        Architecture::Gemma3 => Some(GEMMA3_PATTERN),
        Architecture::GptOss => Some(GPT_OSS_PATTERN),
        _ => None,
    };
    let pattern = match usual {
        Some(usual) => Some(
            keys.size("attention.sliding_window_pattern")?
                .unwrap_or(usual),
        ),
        None => None,
    };
    read.window(window, |layer| {
        pattern.is_none_or(|pattern| !(layer + 1).is_multiple_of(pattern.max(1)))
    });
    match architecture {
        Architecture::Mixtral | Architecture::Qwen3Moe | Architecture::GptOss => {
            read.experts = Some(Experts {
                count: keys.needed("expert_count")?,
                used: keys.needed("expert_used_count")?,
                normalise: true,
            });
        }
        Architecture::SmolLm3 => {
            for (layer, kind) in read.layer_kinds.iter_mut().enumerate() {
                kind.rotates = !(layer + 1).is_multiple_of(SMOLLM3_STEP);
            }
        }
        Architecture::Gemma3 => {
            let scaled = if sizes.layers == GEMMA3_27B_LAYERS {
                sizes.hidden / sizes.heads
            } else {
                sizes.head_dim
            };
            read.query_scale = Some((1.0 / (scaled as f64).sqrt()) as f32);
            read.windowed_rope = Some(Rope {
                theta: keys.float("rope.freq_base_swa")?.unwrap_or(10_000.0),
                scaling: RopeScaling::None,
                head_dim: sizes.head_dim,
                rotary_dim: sizes.head_dim,
            });
        }
        _ => {}
    }
    Ok(read)
}
