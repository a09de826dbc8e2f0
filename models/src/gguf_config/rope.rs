//! Rotary positions in GGUF metadata, and in the tensors that some files have of them.

use super::keys::{GgufConfigError, Keys};
use crate::config::{ConfigError, LongRope, Rope, RopeScaling, Yarn};
use crate::gguf::GgufError;

/// Divisors of rotary frequencies that a file holds as tensors.
#[derive(Debug, Clone, Default)]
pub(crate) struct RopeTensors {
    /// `rope_freqs.weight`: those of Llama 3.1 and later.
    pub(crate) frequencies: Option<Vec<f32>>,
    /// `rope_factors_short.weight`: LongRoPE's, up to the pre-trained context.
    pub(crate) short: Option<Vec<f32>>,
    /// `rope_factors_long.weight`: LongRoPE's beyond it.
    pub(crate) long: Option<Vec<f32>>,
}

/// Rotary positions and how far they reach.
pub(super) struct Positions {
    pub(super) rope: Rope,
    /// Tokens that the model is made for, with its scaling.
    pub(super) context_length: usize,
}

/// Reads them, for heads of which `rotary_dim` of `head_dim` values are rotated.
pub(super) fn read(
    keys: &Keys<'_>,
    tensors: RopeTensors,
    head_dim: usize,
    rotary_dim: usize,
) -> Result<Positions, GgufConfigError> {
    let theta = keys.float("rope.freq_base")?.unwrap_or(10_000.0);
    let declared = keys.needed("context_length")?;
    let mut context_length = declared;
    let RopeTensors {
        frequencies,
        short,
        long,
    } = tensors;
    let kind = keys.text("rope.scaling.type")?.unwrap_or("none");
    let has_factors = short.is_some() || long.is_some();
    let scaling = match (kind, frequencies) {
        ("none" | "longrope", None) if has_factors => {
            RopeScaling::LongRope(longrope(keys, short, long, declared)?)
        }
        ("none", Some(factors)) if !has_factors => RopeScaling::Factors(factors),
        ("none", None) => match keys.float("rope.scale_linear")? {
            Some(factor) if factor != 1.0 => RopeScaling::Linear { factor },
            _ => RopeScaling::None,
        },
        ("linear", None) if !has_factors => RopeScaling::Linear {
            factor: keys.needed_float("rope.scaling.factor")?,
        },
        ("yarn", None) if !has_factors => {
            let yarn = yarn(keys, declared)?;
            let stretched = (yarn.factor * yarn.original_context).min(1e9) as usize;
            context_length = declared.max(stretched);
            RopeScaling::Yarn(yarn)
        }
        (other, frequencies) => {
            let found = match (frequencies, has_factors) {
                (Some(_), _) => format!("{other} with rope_freqs.weight"),
                (None, true) => format!("{other} with rope_factors_long.weight"),
                (None, false) => other.to_owned(),
            };
            return Err(ConfigError::Unsupported {
                what: "rope scaling",
                found,
                supported: "none, linear, yarn, longrope, rope_freqs.weight",
            }
            .into());
        }
    };
    let rope = Rope {
        theta,
        scaling,
        head_dim,
        rotary_dim,
    };
    Ok(Positions {
        rope,
        context_length,
    })
}

fn original_context(keys: &Keys<'_>, declared: usize) -> Result<f64, GgufConfigError> {
    let original = keys.size("rope.scaling.original_context_length")?;
    Ok(original.unwrap_or(declared) as f64)
}

/// YaRN as llama.cpp computes it.
fn yarn(keys: &Keys<'_>, declared: usize) -> Result<Yarn, GgufConfigError> {
    let factor = keys.needed_float("rope.scaling.factor")?;
    let given = keys
        .float("rope.scaling.attn_factor")?
        .or(keys.float("rope.scaling.yarn_attn_factor")?)
        .unwrap_or(1.0);
    // Files with a multiplier are of models whose two mscales are equal, so that nothing is left
    // of them here.
    let multiplier = keys.float("rope.scaling.yarn_log_multiplier")?;
    let of_paper = match multiplier {
        Some(multiplier) if multiplier != 0.0 => 1.0,
        _ => Yarn::paper_attention(factor),
    };
    Ok(Yarn {
        factor,
        original_context: original_context(keys, declared)?,
        beta_fast: keys.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        // gpt-oss was trained with a ramp between whole pairs, which its files do not say.
        truncate: keys.architecture != "gpt-oss",
        attention_factor: given * of_paper,
    })
}

fn longrope(
    keys: &Keys<'_>,
    short: Option<Vec<f32>>,
    long: Option<Vec<f32>>,
    declared: usize,
) -> Result<LongRope, GgufConfigError> {
    let original = original_context(keys, declared)?;
    let declared = declared as f64;
    let (name, factors) = if declared > original {
        ("rope_factors_long.weight", long)
    } else {
        ("rope_factors_short.weight", short)
    };
    let factors = factors.ok_or_else(|| ConfigError::Missing(name.to_owned()))?;
    let attention_factor = match keys.float("rope.scaling.attn_factor")? {
        Some(given) => given,
        None => LongRope::paper_attention(declared, original),
    };
    Ok(LongRope {
        factors,
        attention_factor,
    })
}

impl Keys<'_> {
    pub(super) fn float(&self, suffix: &str) -> Result<Option<f64>, GgufError> {
        self.gguf.float(&self.key(suffix))
    }

    pub(super) fn needed_float(&self, suffix: &str) -> Result<f64, GgufError> {
        self.float(suffix)?
            .ok_or_else(|| GgufError::MissingKey(self.key(suffix)))
    }

    pub(super) fn text(&self, suffix: &str) -> Result<Option<&str>, GgufError> {
        self.gguf.text(&self.key(suffix))
    }
}
