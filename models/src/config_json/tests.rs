//! Configurations as Hugging Face writes them, good and bad.

use serde_json::json;

use super::*;

fn config(changes: Value) -> Result<ModelConfig, ConfigError> {
    let mut config = serde_json::json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "eos_token_id": 2, "bos_token_id": 1,
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
    assert!(config.differences.qkv_bias);
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
fn each_bad_value_of_experts_and_rotary_scaling_is_named() {
    for (changes, expected) in [
        (
            json!({"model_type": "mixtral", "num_local_experts": 4}),
            "\"num_experts_per_tok\" is missing",
        ),
        (
            json!({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 5}),
            "the number of experts of a token is 5, expected 1 to 4",
        ),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": 1e-300}}),
            "the angle of a token is inf",
        ),
        (
            json!({"rope_scaling": {"rope_type": "yarn"}}),
            "\"factor\" is missing",
        ),
        (
            json!({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}),
            "the number of rope factors is 1, expected 8 to 8",
        ),
        (
            json!({"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0],
                "original_max_position_embeddings": 512}}),
            "\"short_factor\" is missing",
        ),
        (
            json!({"model_type": "phi3", "partial_rotary_factor": 0.2}),
            "the rotated part of a head is 3, which must be a multiple of two",
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
            json!({"rope_scaling": {"rope_type": "mrope", "mrope_section": [2, 3, 3]}}),
            "rope type \"mrope\" is not supported; supported: default, linear",
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
            json!({"model_type": "qwen2", "layer_types": ["full_attention", "chunked"]}),
            "layer type \"chunked\"",
        ),
        (
            json!({"model_type": "gemma3_text", "final_logit_softcapping": 30.0}),
            "final_logit_softcapping",
        ),
        (
            json!({"model_type": "qwen3_moe", "moe_intermediate_size": 32, "num_experts": 4,
                "num_experts_per_tok": 2, "mlp_only_layers": [0]}),
            "dense layers beside layers of experts",
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

#[test]
fn layers_have_the_windows_that_their_family_gives_them() {
    let windowed = |changes| {
        let config = config(changes).unwrap();
        let layers = 0..config.layers;
        layers
            .map(|layer| config.differences.window_of(layer))
            .collect::<Vec<_>>()
    };
    let qwen2 = json!({"model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 1,
        "sliding_window": 8});
    assert_eq!(windowed(qwen2), [None, Some(8)]);
    let mistral = json!({"model_type": "mistral", "sliding_window": 8});
    assert_eq!(windowed(mistral), [Some(8), Some(8)]);
    let gemma = json!({"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 8});
    let (near, far) = (Some(8), None);
    assert_eq!(windowed(gemma), [near, near, near, near, near, far, near]);
    let named = json!({"model_type": "gemma3_text", "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention"]});
    assert_eq!(windowed(named), [None, Some(8)]);
    assert_eq!(windowed(json!({"sliding_window": 8})), [None, None]);
}

#[test]
fn layers_without_rotation_stand_still() {
    let smollm3 = json!({"model_type": "smollm3", "num_hidden_layers": 5});
    let config_of = |changes| config(changes).unwrap();
    let turns = |config: &ModelConfig| {
        let turns = |layer| config.rotary_of(layer).inv_freq.iter().any(|&f| f != 0.0);
        (0..config.layers).map(turns).collect::<Vec<_>>()
    };
    assert_eq!(turns(&config_of(smollm3)), [true, true, true, false, true]);
    let listed = json!({"model_type": "smollm3", "no_rope_layers": [0, 1]});
    assert_eq!(turns(&config_of(listed)), [false, true]);
}

/// A part of each head is rotated: its pairs come first, and the others stand still.
#[test]
fn partial_rotation_leaves_pairs_still() {
    let config = config(json!({"model_type": "phi3", "partial_rotary_factor": 0.75})).unwrap();
    let found = config.rope.inv_freq();
    assert_eq!(found.len(), 8);
    for (i, found) in found.into_iter().enumerate() {
        let want = if i < 6 {
            10_000f64.powf(-(i as f64) / 6.0)
        } else {
            0.0
        };
        assert!((f64::from(found) - want).abs() < 1e-7, "{i}: {found}");
    }
}

#[test]
fn a_stretched_context_is_as_long_as_its_scaling_makes_it() {
    let length = |scaling: Value| {
        config(json!({"rope_scaling": scaling}))
            .unwrap()
            .context_length
    };
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256});
    assert_eq!(length(yarn), 1024);
    let declared = json!({"type": "yarn", "factor": 4.0});
    assert_eq!(length(declared), 2048);
    // As declared: within it nothing is stretched.
    let dynamic = json!({"type": "dynamic", "factor": 4.0});
    assert_eq!(length(dynamic), 512);
}

#[test]
fn longrope_takes_the_list_of_the_declared_context() {
    let lists = |original: usize| {
        json!({"rope_type": "longrope", "short_factor": vec![2.0; 8], "long_factor": vec![4.0; 8],
            "original_max_position_embeddings": original})
    };
    let first = |original| {
        let rope = config(json!({"rope_scaling": lists(original)}))
            .unwrap()
            .rope;
        let rotary = rope.rotary();
        (rotary.inv_freq[0], rotary.scale[0])
    };
    assert_eq!(first(512), (0.5, 1.0));
    let stretched = (1.0 + 4f64.ln() / 128f64.ln()).sqrt() as f32;
    assert_eq!(first(128), (0.25, stretched));
}
