//! The models that the book lists (`docs/src/model-list.md`): of each a tiny file is made, of its
//! architecture, metadata and types, and opened. `tests/data/listed_models.json` says what these
//! are; sizes and numbers of experts are small ones.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use super::writer::{Writer, text};
use crate::Model;
use crate::config::{Architecture, ModelConfig};
use crate::tensor_names::{NamedShape, Naming};

const VOCABULARY: usize = 288;

/// A row of the list.
struct Row(Value);

impl Row {
    fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    /// Why files of that kind are refused, where they are.
    fn refused(&self, files: &str) -> Option<&str> {
        self.0["refused"][files].as_str()
    }

    /// `config.json` with sizes that are soon written.
    fn config(&self) -> Map<String, Value> {
        let small = json!({
            "model_type": self.text("family"), "hidden_size": 256, "intermediate_size": 256,
            "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5, "eos_token_id": 2,
        });
        let own = self.0["config"].as_object().expect("an object").clone();
        let all = small.as_object().expect("an object").clone();
        all.into_iter().chain(own).collect()
    }

    /// The line of the book's table.
    fn line(&self) -> String {
        let types = self.0["types"].as_array().expect("a list").iter();
        let types: Vec<&str> = types.filter_map(Value::as_str).collect();
        let said = |files: &str, loads: String| match self.refused(files) {
            Some(why) => format!("refused: {why}"),
            None => loads,
        };
        format!(
            "| {} | {} | {} | {} | {} |",
            self.text("name"),
            self.text("family"),
            self.text("rope"),
            said("gguf", types.join(", ")),
            said("directory", "BF16".to_owned()),
        )
    }
}

fn rows() -> Vec<Row> {
    let all: Vec<Value> =
        serde_json::from_str(include_str!("../../../../tests/data/listed_models.json")).unwrap();
    all.into_iter().map(Row).collect()
}

/// GGUF's number of a tensor's type in a file of `recipe`, as llama.cpp's quantisation mixes them.
fn kind(recipe: &str, tensor: &NamedShape) -> u32 {
    const F32: u32 = 0;
    let plain = tensor.shape.len() == 1
        || tensor.name.ends_with("bias")
        || tensor.name.contains("ffn_gate_inp");
    let better = ["attn_v.", "ffn_down", "output.weight", "token_embd."];
    match recipe {
        _ if plain => F32,
        "Q4_K_M" if better.iter().any(|part| tensor.name.contains(part)) => 14,
        "Q4_K_M" => 12,
        "Q8_0" => 8,
        other => panic!("no recipe {other}"),
    }
}

fn bytes_of(kind: u32, shape: &[usize]) -> usize {
    let kind = crate::gguf_types::TensorType::from_ggml(kind);
    kind.bytes(shape.iter().product()).expect("whole blocks")
}

/// Metadata as llama.cpp's converter writes it.
fn metadata(row: &Row) -> Writer {
    let (config, gguf) = (row.config(), row.text("gguf"));
    let key = |suffix: &str| format!("{gguf}.{suffix}");
    let mut file = Writer::new().raw("general.architecture", 8, &text(gguf));
    let sizes = [
        ("num_hidden_layers", "block_count"),
        ("max_position_embeddings", "context_length"),
        ("hidden_size", "embedding_length"),
        ("intermediate_size", "feed_forward_length"),
        ("num_attention_heads", "attention.head_count"),
        ("num_key_value_heads", "attention.head_count_kv"),
        ("head_dim", "attention.key_length"),
        ("head_dim", "attention.value_length"),
        ("num_local_experts", "expert_count"),
        ("num_experts", "expert_count"),
        ("num_experts_per_tok", "expert_used_count"),
        ("moe_intermediate_size", "expert_feed_forward_length"),
    ];
    for (from, to) in sizes {
        if let Some(size) = config.get(from).and_then(Value::as_u64) {
            file = file.size(&key(to), size as u32);
        }
    }
    let window = config.get("sliding_window").and_then(Value::as_u64);
    if gguf == "gemma3" {
        file = file.size(&key("attention.sliding_window"), window.unwrap_or(0) as u32);
    }
    let theta = config["rope_theta"].as_f64().expect("a number");
    file = file
        .float(&key("rope.freq_base"), theta as f32)
        .float(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    for (suffix, value) in row.0["keys"].as_object().into_iter().flatten() {
        file = match value {
            Value::String(value) => file.raw(&key(suffix), 8, &text(value)),
            value if value.is_f64() => {
                file.float(&key(suffix), value.as_f64().expect("a float") as f32)
            }
            value => file.size(&key(suffix), value.as_u64().expect("a size") as u32),
        };
    }
    tokens(file, row.text("pre"))
}

/// A tokenizer of single letters: byte-level where the model names a pre-tokenizer.
fn tokens(file: Writer, pre: &str) -> Writer {
    let array = |kind: u32, len: usize, values: Vec<u8>| {
        [
            &kind.to_le_bytes()[..],
            &(len as u64).to_le_bytes(),
            &values,
        ]
        .concat()
    };
    let letters = (0..VOCABULARY as u32).map(|i| char::from_u32(0x100 + i).expect("a letter"));
    let all: Vec<u8> = letters
        .flat_map(|letter| text(&letter.to_string()))
        .collect();
    let file = file.raw("tokenizer.ggml.tokens", 9, &array(8, VOCABULARY, all));
    if pre.is_empty() {
        let scores = (0..VOCABULARY).flat_map(|i| (-(i as f32)).to_le_bytes());
        return file.raw("tokenizer.ggml.model", 8, &text("llama")).raw(
            "tokenizer.ggml.scores",
            9,
            &array(6, VOCABULARY, scores.collect()),
        );
    }
    file.raw("tokenizer.ggml.model", 8, &text("gpt2"))
        .raw("tokenizer.ggml.pre", 8, &text(pre))
        .raw("tokenizer.ggml.merges", 9, &array(8, 0, Vec::new()))
}

/// The tensors of the model in a GGUF file, with those of its rotary scaling.
fn gguf_file(row: &Row, recipe: &str) -> Vec<u8> {
    let mut file = metadata(row);
    let config = row.config();
    let architecture = Architecture::ALL
        .into_iter()
        .find(|family| family.name() == row.text("family"))
        .unwrap_or(Architecture::Gemma3);
    // Sizes are those of the directory, which gpt-oss and Gemma 3 with pictures have none of.
    let stand_in = match architecture {
        Architecture::GptOss => "mixtral",
        other => other.name(),
    };
    let mut json = config.clone();
    json.insert("model_type".into(), stand_in.into());
    let json = Value::Object(json).to_string();
    let mut model = ModelConfig::from_json(json.as_bytes(), None, "tiny").expect("a configuration");
    if architecture == Architecture::GptOss {
        model.architecture = architecture;
        model.differences.all_biases = true;
        model.differences.sinks = true;
        model.differences.qkv_bias = true;
    }
    let head_dim = model.head_dim;
    if row.0["rope_freqs"] == true {
        file = file.ones("rope_freqs.weight", head_dim / 2);
    }
    if let Some(count) = row.0["rope_factors"].as_u64() {
        file = file
            .ones("rope_factors_long.weight", count as usize)
            .ones("rope_factors_short.weight", count as usize);
    }
    for tensor in model.tensors(Naming::Gguf) {
        let kind = kind(recipe, &tensor);
        let dims: Vec<u64> = tensor.shape.iter().rev().map(|&size| size as u64).collect();
        file = file.tensor(&tensor.name, &dims, kind, bytes_of(kind, &tensor.shape));
    }
    file.bytes()
}

fn write_directory(row: &Row, dir: &Path) {
    let json = Value::Object(row.config()).to_string();
    std::fs::write(dir.join("config.json"), &json).unwrap();
    let Ok(config) = ModelConfig::from_json(json.as_bytes(), None, "tiny") else {
        return;
    };
    let tensors = config.tensors(Naming::HuggingFace);
    let sizes = tensors.iter().map(|it| it.shape.iter().product::<usize>());
    let zeros = vec![0; 2 * sizes.max().unwrap_or(0)];
    let view = |tensor: &NamedShape| {
        let bytes = &zeros[..2 * tensor.shape.iter().product::<usize>()];
        TensorView::new(Dtype::BF16, tensor.shape.clone(), bytes).unwrap()
    };
    let views: HashMap<_, _> = tensors
        .iter()
        .map(|it| (it.name.clone(), view(it)))
        .collect();
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
}

/// Checks that `path` loads, or is refused for that reason.
fn check(row: &Row, files: &str, path: &Path) {
    let name = row.text("name");
    let opened = Model::open(path).map_err(|error| error.to_string());
    match (row.refused(files), opened) {
        (None, Ok(model)) => {
            assert_eq!(model.config().vocabulary, VOCABULARY, "{name}");
            if files == "gguf" {
                model
                    .tokenizer()
                    .unwrap_or_else(|why| panic!("{name}: {why}"));
            }
        }
        (Some(why), Err(error)) => assert!(error.contains(why), "{name}: {error}"),
        (Some(_), Ok(_)) => panic!("{name} loads from {files}, and the list says it does not"),
        (None, Err(error)) => panic!("{name} from {files}: {error}"),
    }
}

#[test]
fn listed_models_load_as_files_of_their_architecture_types_and_metadata() {
    let rows = rows();
    assert!(rows.len() >= 40, "{} rows", rows.len());
    for row in &rows {
        let dir = tempfile::tempdir().unwrap();
        for recipe in row.0["types"].as_array().expect("a list") {
            let recipe = recipe.as_str().expect("a name");
            let path = dir.path().join(format!("{recipe}.gguf"));
            std::fs::write(&path, gguf_file(row, recipe)).unwrap();
            check(row, "gguf", &path);
        }
        write_directory(row, dir.path());
        check(row, "directory", dir.path());
    }
}

#[test]
fn the_book_lists_them() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/model-list.md");
    let page = std::fs::read_to_string(page).expect("a page of the book");
    let missing: Vec<String> = rows().iter().map(Row::line).collect();
    let missing: Vec<_> = missing
        .iter()
        .filter(|line| !page.contains(*line))
        .collect();
    assert!(missing.is_empty(), "the table lacks {missing:#?}");
}
