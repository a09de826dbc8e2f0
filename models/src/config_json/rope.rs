//! Rotary positions of a `config.json`: `rope_theta` and `rope_scaling`, or `rope_parameters` of
//! transformers 5.

use serde_json::{Map, Value};

use super::json::Json;
use crate::config::{ConfigError, LongRope, Rope, RopeScaling, Yarn};

/// Rope types that are read.
const SUPPORTED: &str = "default, linear, dynamic, llama3, yarn, longrope";

/// Rotary positions and how far they reach.
pub(super) struct Positions {
    pub(super) rope: Rope,
    /// Tokens that the model is made for, with its scaling.
    pub(super) context_length: usize,
}

/// Reads them, for heads of which `rotary_dim` of `head_dim` values are rotated.
pub(super) fn read(
    json: &Json<'_>,
    head_dim: usize,
    rotary_dim: usize,
) -> Result<Positions, ConfigError> {
    let object = |key| json.typed(key, "an object", Value::as_object);
    let empty = Map::new();
    let parameters = object("rope_parameters")?.map(|all| of_kind(all, "full_attention"));
    let declared = json.needed("max_position_embeddings")?;
    let scaling = Scaling {
        json: Json(parameters.or(object("rope_scaling")?).unwrap_or(&empty)),
        declared,
        outer: json,
    };
    let theta = scaling
        .json
        .float("rope_theta")?
        .or(json.float("rope_theta")?)
        .unwrap_or(10_000.0);
    let mut context_length = declared;
    let kind = scaling
        .json
        .text("rope_type")?
        .or(scaling.json.text("type")?)
        .unwrap_or("default");
    let scaling = match kind {
        // Dynamic NTK leaves frequencies as they are within the trained length: `config::rope`.
        "default" | "dynamic" => RopeScaling::None,
        "linear" => RopeScaling::Linear {
            factor: scaling.json.needed_float("factor")?,
        },
        "llama3" => scaling.llama3()?,
        // "su" and "yarn" are what the first files of Phi-3 call it.
        "longrope" | "su" => RopeScaling::LongRope(scaling.longrope()?),
        "yarn" if scaling.json.get("long_factor").is_some() => {
            RopeScaling::LongRope(scaling.longrope()?)
        }
        "yarn" => {
            let yarn = scaling.yarn()?;
            // `max_position_embeddings` often stays what it was before YaRN.
            let stretched = (yarn.factor * yarn.original_context).min(1e9) as usize;
            context_length = declared.max(stretched);
            RopeScaling::Yarn(yarn)
        }
        other => {
            return Err(ConfigError::Unsupported {
                what: "rope type",
                found: other.to_owned(),
                supported: SUPPORTED,
            });
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

/// The rotary parameters of layers of a kind. Where layers differ, there is an object for each.
fn of_kind<'a>(all: &'a Map<String, Value>, kind: &str) -> &'a Map<String, Value> {
    all.get(kind).and_then(Value::as_object).unwrap_or(all)
}

/// Base of the frequencies of windowed layers, where they have one of their own.
pub(super) fn windowed_theta(json: &Json<'_>) -> Result<Option<f64>, ConfigError> {
    let parameters = json.typed("rope_parameters", "an object", Value::as_object)?;
    let windowed = parameters.and_then(|all| all.get("sliding_attention")?.as_object());
    match windowed {
        Some(windowed) => Json(windowed).float("rope_theta"),
        None => json.float("rope_local_base_freq"),
    }
}

/// `rope_scaling`, with the configuration around it.
struct Scaling<'a> {
    json: Json<'a>,
    outer: &'a Json<'a>,
    /// `max_position_embeddings`.
    declared: usize,
}

impl Scaling<'_> {
    fn llama3(&self) -> Result<RopeScaling, ConfigError> {
        Ok(RopeScaling::Llama3 {
            factor: self.json.needed_float("factor")?,
            low_freq_factor: self.json.needed_float("low_freq_factor")?,
            high_freq_factor: self.json.needed_float("high_freq_factor")?,
            original_context: self.json.needed_float("original_max_position_embeddings")?,
        })
    }

    /// Length of pre-training: beside the factors, or where Phi has it.
    fn original_context(&self) -> Result<f64, ConfigError> {
        let key = "original_max_position_embeddings";
        let original = self.json.float(key)?.or(self.outer.float(key)?);
        Ok(original.unwrap_or(self.declared as f64))
    }

    fn yarn(&self) -> Result<Yarn, ConfigError> {
        let factor = self.json.needed_float("factor")?;
        let mscale = self.json.float("mscale")?.filter(|&m| m != 0.0);
        let all = self.json.float("mscale_all_dim")?.filter(|&m| m != 0.0);
        let attention_factor = match (self.json.float("attention_factor")?, mscale, all) {
            (Some(given), _, _) => given,
            (None, Some(mscale), Some(all)) => {
                Yarn::attention(factor, mscale) / Yarn::attention(factor, all)
            }
            _ => Yarn::paper_attention(factor),
        };
        Ok(Yarn {
            factor,
            original_context: self.original_context()?,
            beta_fast: self.json.float("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.json.float("beta_slow")?.unwrap_or(1.0),
            truncate: self
                .json
                .typed("truncate", "true or false", Value::as_bool)?
                .unwrap_or(true),
            attention_factor,
        })
    }

    fn longrope(&self) -> Result<LongRope, ConfigError> {
        let key = "original_max_position_embeddings";
        let given = self.outer.float(key)?.or(self.json.float(key)?);
        let declared = self.declared as f64;
        // Without the length of pre-training the declared one is it, and the factor says how far
        // attention is stretched.
        let original = given.unwrap_or(declared);
        let stretched = match given {
            Some(_) => declared,
            None => declared * self.json.float("factor")?.unwrap_or(1.0),
        };
        let key = if declared > original {
            "long_factor"
        } else {
            "short_factor"
        };
        let factor = |value: &Value| value.as_f64().map(|factor| factor as f32);
        let list = |value: &Value| value.as_array()?.iter().map(factor).collect();
        let factors = self
            .json
            .typed(key, "a list of numbers", list)?
            .ok_or_else(|| ConfigError::Missing(key.to_owned()))?;
        let given = self.json.float("attention_factor")?;
        Ok(LongRope {
            factors,
            attention_factor: given
                .unwrap_or_else(|| LongRope::paper_attention(stretched, original)),
        })
    }
}
