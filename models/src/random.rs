//! Models of real shapes with random weights, so that speed and memory can be measured without a
//! checkpoint: `--model random:llama-3.1-8b`, or `random:DIR` for the shape of any `config.json`.
//!
//! Weights are bf16. All matrices are cut from one buffer, as large as the largest of them: what is
//! packed for a device is as large as that of a real model, what stands in memory meanwhile is not.
//! The tokenizer knows single bytes, and no token ends a generation, so every request has the
//! length it asks for.

use std::path::Path;

use half::bf16;
use palimpsest_kernels::WeightType;
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::tensor_names::NamedShape;
use crate::tokenizer::TokenizerFiles;
use crate::weights_file::{FileMap, StoredTensor, TensorTable};

/// What paths of random models begin with.
pub const PREFIX: &str = "random:";

/// Published shapes.
const SHAPES: [(&str, &str); 5] = [
    (
        "llama-3.1-8b",
        include_str!("../../assets/shapes/llama-3.1-8b.json"),
    ),
    (
        "mistral-7b",
        include_str!("../../assets/shapes/mistral-7b.json"),
    ),
    (
        "qwen2.5-7b",
        include_str!("../../assets/shapes/qwen2.5-7b.json"),
    ),
    (
        "qwen3-8b",
        include_str!("../../assets/shapes/qwen3-8b.json"),
    ),
    (
        "smollm2-135m",
        include_str!("../../assets/shapes/smollm2-135m.json"),
    ),
];

/// Half the width of the uniform distribution of weights: a standard deviation of 0.02, as most
/// models start with.
const SCALE: f32 = 0.035;
/// Values that are drawn; the buffer repeats them. Not a multiple of any row, so that rows differ.
const DRAWN: usize = (1 << 22) + 17;
/// Values past the largest matrix: where a matrix begins depends on its name.
const SLACK: usize = 1 << 16;
/// Bytes that the tokenizer knows.
const BYTES: usize = 256;

/// Names of the known shapes.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|(name, _)| *name)
}

/// The shape's name, when `path` names a random model.
pub(crate) fn shape(path: &Path) -> Option<&str> {
    path.to_str()?.strip_prefix(PREFIX)
}

/// Configuration of a known shape, or that of the directory of that name.
pub(crate) fn config(name: &str) -> Result<ModelConfig> {
    let known = SHAPES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name));
    let path = Path::new(name).join("config.json");
    let json = match known {
        Some((_, json)) => json.as_bytes().to_vec(),
        None if path.is_file() => {
            std::fs::read(&path).map_err(|source| Error::io(&path, source))?
        }
        None => {
            return Err(Error::Shape {
                name: name.to_owned(),
                known: names().collect::<Vec<_>>().join(", "),
            });
        }
    };
    let config = ModelConfig::from_json(&json, None, &format!("{PREFIX}{name}"));
    let config = config.map_err(|source| Error::Config {
        path: path.clone(),
        source,
    })?;
    if config.vocabulary < BYTES {
        return Err(Error::SmallVocabulary {
            name: name.to_owned(),
            vocabulary: config.vocabulary,
            least: BYTES,
        });
    }
    Ok(ModelConfig {
        eos_ids: Vec::new(),
        bos_id: None,
        ..config
    })
}

/// Tensors of those names and shapes: norms are ones, all else is random.
pub(crate) fn table(tensors: Vec<NamedShape>) -> TensorTable {
    let largest = tensors
        .iter()
        .map(|tensor| tensor.shape.iter().product::<usize>())
        .max()
        .unwrap_or(0);
    let ones = bf16::ONE.to_le_bytes().repeat(largest_vector(&tensors));
    let mut table = TensorTable {
        files: vec![FileMap::Made(drawn(largest + SLACK)), FileMap::Made(ones)],
        ..TensorTable::default()
    };
    for NamedShape { name, shape } in tensors {
        let bytes = 2 * shape.iter().product::<usize>();
        let is_norm = name.ends_with("norm.weight");
        let start = if is_norm {
            0
        } else {
            2 * (xxh3_64(name.as_bytes()) as usize % SLACK)
        };
        let stored = StoredTensor {
            dtype: Some(WeightType::BF16),
            type_name: "BF16".into(),
            shape,
            file: usize::from(is_norm),
            range: start..start + bytes,
        };
        table.tensors.insert(name, stored);
    }
    table
}

fn largest_vector(tensors: &[NamedShape]) -> usize {
    tensors
        .iter()
        .filter(|tensor| tensor.shape.len() == 1)
        .map(|tensor| tensor.shape[0])
        .max()
        .unwrap_or(0)
}

/// `count` values, uniform in ±[`SCALE`], as bf16 bytes (xorshift64*).
fn drawn(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let signed = state.wrapping_mul(0x2545_f491_4f6c_dd1d) as i64 >> 40;
        bf16::from_f32(signed as f32 / (1u32 << 23) as f32 * SCALE).to_le_bytes()
    };
    let block: Vec<u8> = (0..count.min(DRAWN)).flat_map(|_| next()).collect();
    let mut bytes = Vec::with_capacity(2 * count);
    while bytes.len() < 2 * count {
        let left = 2 * count - bytes.len();
        bytes.extend_from_slice(&block[..block.len().min(left)]);
    }
    bytes
}

/// A tokenizer of single bytes.
pub(crate) fn tokenizer() -> TokenizerFiles {
    let vocabulary: Map<String, Value> = byte_symbols()
        .into_iter()
        .enumerate()
        .map(|(id, symbol)| (symbol.to_string(), id.into()))
        .collect();
    let level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let json = json!({
        "version": "1.0",
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    TokenizerFiles {
        tokenizer_json: json.to_string().into_bytes(),
        chat_template: Some(
            "{% for message in messages %}{{ message.content }}\n{% endfor %}".into(),
        ),
        bos_token: None,
        eos_token: None,
        eos_ids: Vec::new(),
    }
}

/// The characters that byte-level tokenizers (GPT-2's) write bytes as: printable ones as
/// themselves, others from U+0100 on.
fn byte_symbols() -> [char; BYTES] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = byte as u32;
        let symbol = if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            byte
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(symbol).expect("below the surrogates")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;
    use crate::weights::{FeedForwardWeights, GatedWeights};

    #[test]
    fn known_shapes_have_the_published_numbers_of_parameters() {
        let parameters = |name| config(name).expect("a known shape").parameters;
        assert_eq!(parameters("llama-3.1-8b"), 8_030_261_248);
        assert_eq!(parameters("Mistral-7B"), 7_248_023_552);
        assert_eq!(parameters("qwen2.5-7b"), 7_615_616_512);
        assert_eq!(parameters("qwen3-8b"), 8_190_735_360);
        assert_eq!(parameters("smollm2-135m"), 134_515_008);
    }

    #[test]
    fn a_random_model_is_whole_and_its_matrices_differ() {
        let model = Model::open(Path::new("random:smollm2-135m")).expect("made");
        let shard = crate::part::Part::whole(model.config());
        let layer = model.weights().layer(3, &shard).expect("a layer");
        assert!(layer.attn_norm.iter().all(|&v| v == 1.0));
        let FeedForwardWeights::Dense(GatedWeights { gate, up, .. }) = layer.feed_forward else {
            panic!("a dense model")
        };
        assert_ne!(gate.bytes, up.bytes);
        assert_ne!(gate.bytes[..1024], gate.bytes[1024..2048]);
        assert!(model.config().eos_ids.is_empty());
    }

    #[test]
    fn its_tokenizer_gives_text_back() {
        let files = tokenizer();
        let tokenizer =
            tokenizers::Tokenizer::from_bytes(&files.tokenizer_json).expect("a tokenizer");
        let text = "Größe: 5 €\n\t\u{1f600}";
        let ids = tokenizer
            .encode(text, false)
            .expect("bytes")
            .get_ids()
            .to_vec();
        assert_eq!(ids.len(), text.len());
        assert_eq!(tokenizer.decode(&ids, false).expect("ids of bytes"), text);
    }

    #[test]
    fn an_unknown_shape_is_answered_with_the_known_ones() {
        let error = Model::open(Path::new("random:llama-9"))
            .expect_err("no such shape")
            .to_string();
        assert!(
            error.contains("llama-9") && error.contains("qwen3-8b"),
            "{error}"
        );
    }
}
