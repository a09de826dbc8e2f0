//! `config.json` of a Hugging Face directory.

use serde_json::Value;

use crate::config::{Architecture, ConfigError, ModelConfig, Rope, RopeScaling, multiple, within};

/// Object of a JSON configuration, with checked access.
struct Json<'a>(&'a serde_json::Map<String, Value>);

impl<'a> Json<'a> {
    /// Value of `key`; JSON `null` counts as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let found = || value.to_string().chars().take(80).collect();
        read(value).map(Some).ok_or_else(|| ConfigError::Type {
            key: key.to_owned(),
            found: found(),
            expected,
        })
    }

    fn size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let read = |value: &Value| {
            value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
        };
        self.typed(key, "a non-negative integer", read)
    }

    fn needed(&self, key: &str) -> Result<usize, ConfigError> {
        self.size(key)?
            .ok_or_else(|| ConfigError::Missing(key.to_owned()))
    }

    fn float(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.typed(key, "a number", Value::as_f64)
    }

    fn needed_float(&self, key: &str) -> Result<f64, ConfigError> {
        self.float(key)?
            .ok_or_else(|| ConfigError::Missing(key.to_owned()))
    }

    fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        Ok(self
            .typed(key, "true or false", Value::as_bool)?
            .unwrap_or(false))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.typed(key, "text", Value::as_str)
    }

    /// One token id, or a list of them.
    fn ids(&self, key: &str) -> Result<Option<Vec<u32>>, ConfigError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let read = |value: &'a Value| match value {
            Value::Array(values) => values.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        self.typed(key, "a token id or a list of them", read)
    }

    fn refuse(&self, key: &'static str) -> Result<(), ConfigError> {
        if !self.flag(key)? {
            return Ok(());
        }
        Err(ConfigError::Unsupported {
            what: key,
            found: "true".to_owned(),
            supported: "false",
        })
    }
}

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
        let architecture = Architecture::from_name(model_type)?;
        refuse_unsupported(&json, architecture)?;
        let hidden = json.needed("hidden_size")?;
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = Heads::read(&json, architecture, hidden)?;
        let layers = json.needed("num_hidden_layers")?;
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
            ffn: json.needed("intermediate_size")?,
            heads,
            kv_heads,
            head_dim,
            vocabulary: json.needed("vocab_size")?,
            context_length: json.needed("max_position_embeddings")?,
            rms_eps: json.float("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope: rope(&json, head_dim)?,
            sliding_window: sliding_window(&json, architecture, layers)?,
            qkv_bias: architecture == Architecture::Qwen2,
            qk_norm: architecture == Architecture::Qwen3,
            tied_embeddings: json.flag("tie_word_embeddings")?,
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

fn refuse_unsupported(json: &Json<'_>, architecture: Architecture) -> Result<(), ConfigError> {
    let activation = json.text("hidden_act")?.unwrap_or("silu");
    if activation != "silu" {
        let found = activation.to_owned();
        return Err(ConfigError::Unsupported {
            what: "activation",
            found,
            supported: "silu",
        });
    }
    if architecture != Architecture::Qwen2 {
        json.refuse("attention_bias")?;
    }
    json.refuse("mlp_bias")?;
    if let Some(part) = json
        .float("partial_rotary_factor")?
        .filter(|&part| part != 1.0)
    {
        let found = part.to_string();
        return Err(ConfigError::Unsupported {
            what: "partial_rotary_factor",
            found,
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

/// Rotary positions of a `config.json`: `rope_theta` and `rope_scaling`, or `rope_parameters` of
/// transformers 5.
fn rope(json: &Json<'_>, head_dim: usize) -> Result<Rope, ConfigError> {
    let object = |key| json.typed(key, "an object", Value::as_object);
    let empty = serde_json::Map::new();
    let parameters = object("rope_parameters")?;
    let scaling = Json(parameters.or(object("rope_scaling")?).unwrap_or(&empty));
    let theta = scaling
        .float("rope_theta")?
        .or(json.float("rope_theta")?)
        .unwrap_or(10_000.0);
    let kind = scaling
        .text("rope_type")?
        .or(scaling.text("type")?)
        .unwrap_or("default");
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear {
            factor: scaling.needed_float("factor")?,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: scaling.needed_float("factor")?,
            low_freq_factor: scaling.needed_float("low_freq_factor")?,
            high_freq_factor: scaling.needed_float("high_freq_factor")?,
            original_context: scaling.needed_float("original_max_position_embeddings")?,
        },
        other => {
            let found = other.to_owned();
            return Err(ConfigError::Unsupported {
                what: "rope type",
                found,
                supported: "default, linear, llama3",
            });
        }
    };
    Ok(Rope {
        theta,
        scaling,
        head_dim,
    })
}

/// The window of all layers. Models that mix windowed and full layers are refused.
fn sliding_window(
    json: &Json<'_>,
    architecture: Architecture,
    layers: usize,
) -> Result<Option<usize>, ConfigError> {
    let window = json.size("sliding_window")?;
    let windowed_layers = match architecture {
        Architecture::Llama => 0,
        Architecture::Mistral => layers,
        Architecture::Qwen2 | Architecture::Qwen3 if !json.flag("use_sliding_window")? => 0,
        Architecture::Qwen2 | Architecture::Qwen3 => {
            layers.saturating_sub(json.size("max_window_layers")?.unwrap_or(28))
        }
    };
    match windowed_layers {
        0 => Ok(None),
        _ if windowed_layers == layers => Ok(window),
        some => {
            let found = format!("in {some} of {layers} layers");
            Err(ConfigError::Unsupported {
                what: "sliding window",
                found,
                supported: "all layers or none",
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(changes: Value) -> Result<ModelConfig, ConfigError> {
        let mut config = serde_json::json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 2, "bos_token_id": 1,
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        ModelConfig::from_json(config.to_string().as_bytes(), None, "test")
    }

    #[test]
    fn plain_configuration() {
        let config = config(serde_json::json!({})).unwrap();
        assert_eq!(
            (config.head_dim, config.kv_heads, config.context_length),
            (16, 2, 512)
        );
        // Per layer 2*64*64 + 2*64*32 + 3*64*128 + 2*64; twice; two embeddings of 100*64; the last
        // norm.
        assert_eq!(
            config.parameters,
            2 * (8192 + 4096 + 24576 + 128) + 2 * 6400 + 64
        );
        assert_eq!(config.eos_ids, [2]);
    }

    #[test]
    fn generation_config_names_the_last_tokens() {
        let json = br#"{"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512,
            "eos_token_id": 7}"#;
        let config =
            ModelConfig::from_json(json, Some(br#"{"eos_token_id": [3, 4]}"#), "test").unwrap();
        assert_eq!(config.eos_ids, [3, 4]);
        assert!(config.qkv_bias);
        assert_eq!(config.rms_eps, 1e-6);
    }

    /// A configuration with these changes is refused, and the message says so.
    fn refuses(changes: serde_json::Value, expected: &str) {
        let found = config(changes.clone()).unwrap_err().to_string();
        assert!(found.contains(expected), "{changes}: {found}");
    }

    #[test]
    fn each_bad_value_is_named() {
        for (changes, expected) in [
            (
                json!({"rope_scaling": {"type": "linear"}}),
                "\"factor\" is missing",
            ),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 0}}),
                "the rope scaling factor is 0",
            ),
            (
                json!({"num_key_value_heads": 3}),
                "must be a multiple of the number of KV heads (3)",
            ),
            (
                json!({"num_key_value_heads": 0}),
                "the number of KV heads is 0",
            ),
            (
                json!({"num_attention_heads": 0}),
                "the number of query heads is 0",
            ),
            (
                json!({"num_attention_heads": 6}),
                "the hidden size is 64, which must be a multiple",
            ),
            (json!({"head_dim": 15}), "the head dimension is 15"),
            (
                json!({"num_hidden_layers": u64::MAX}),
                "the number of layers is",
            ),
            (json!({"vocab_size": 1u64 << 40}), "the vocabulary size is"),
            (json!({"vocab_size": null}), "\"vocab_size\" is missing"),
            (
                json!({"vocab_size": "many"}),
                "\"vocab_size\" is \"many\", expected",
            ),
            (json!({"vocab_size": 2}), "a special token id is 2"),
            (json!({"rms_norm_eps": -1.0}), "the norm epsilon is -1"),
            (json!({"rope_theta": 0.0}), "the rope base is 0"),
            (
                json!({"model_type": "mistral", "sliding_window": 0}),
                "the sliding window is 0",
            ),
        ] {
            refuses(changes, expected);
        }
    }

    #[test]
    fn what_cannot_run_is_named() {
        for (changes, expected) in [
            (
                json!({"model_type": "gpt_neox"}),
                "architecture \"gpt_neox\" is not supported",
            ),
            (json!({"hidden_act": "gelu"}), "activation \"gelu\""),
            (
                json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
                "rope type \"yarn\"",
            ),
            (json!({"attention_bias": true}), "attention_bias"),
            (
                json!({"partial_rotary_factor": 0.5}),
                "partial_rotary_factor",
            ),
            (
                json!({"quantization_config": {"quant_method": "gptq"}}),
                "quantization \"gptq\"",
            ),
            (
                json!({"model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 1}),
                "in 1 of 2 layers",
            ),
        ] {
            refuses(changes, expected);
        }
    }

    #[test]
    fn rope_parameters_of_transformers_5_are_read() {
        let old = config(serde_json::json!({
            "rope_theta": 500_000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        }));
        let new = config(serde_json::json!({
            "rope_theta": null,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500_000.0},
        }));
        assert_eq!(old, new);
        assert_eq!(old.unwrap().rope.inv_freq()[0], 0.5);
    }

    /// Reference: transformers 4.57.6, `ROPE_INIT_FUNCTIONS["llama3"]` with a head dimension of 16.
    #[test]
    fn llama3_frequencies_equal_transformers() {
        let scaling = serde_json::json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
        let rope = config(serde_json::json!({"rope_scaling": scaling}))
            .unwrap()
            .rope;
        let expected = [
            1.0,
            0.12732396,
            0.025,
            0.007905695,
            0.0025,
            0.00079056947,
            0.00025,
            0.00007905695,
        ];
        for (found, expected) in rope.inv_freq().into_iter().zip(expected) {
            assert!(
                (found - expected).abs() <= 2e-7 * expected,
                "{found} {expected}"
            );
        }
    }
}
