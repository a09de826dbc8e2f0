//! Fixtures of the cross-crate tests: tiny random models, made here, and engines over them.
#![forbid(unsafe_code)]

pub mod certificates;
pub mod devices;
pub mod etcd;
pub mod golden;
pub mod mesh;
pub mod objects;
pub mod service;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use palimpsest_collective::Place;
use palimpsest_engine::decoder::Decoder;
use palimpsest_engine::device_memory::CacheBytes;
use palimpsest_engine::guides::Guides;
use palimpsest_engine::indexer::{Indexer, ModelShape};
use palimpsest_engine::kv::{Bounded, Contract, HeadBudget, LatentMemory, Positions};
use palimpsest_engine::memory::associative::{AssociativeLayerWeights, AssociativeWeights};
use palimpsest_engine::policy::pairwise::{PairwiseLayer, PairwiseWeights};
use palimpsest_engine::policy::retention::{LayerScorer, RecentScorer, RetentionWeights};
use palimpsest_engine::runner::Runner;
use palimpsest_engine::shard::Shard;
use palimpsest_kernels::cpu::{Activations, CpuBackend, CpuOptions};
use palimpsest_kernels::{Backend, KvType};
use palimpsest_models::Model;
use palimpsest_proto::contract::PolicyName;
use safetensors::tensor::{Dtype, TensorView, serialize};
use tempfile::TempDir;

/// Shape of the tiny model: small enough for thousands of steps, large enough that heads and layers
/// differ.
pub const LAYERS: usize = 3;
/// Hidden size.
pub const HIDDEN: usize = 64;
/// Query heads.
pub const HEADS: usize = 6;
/// KV heads: a number that two ranks cannot share evenly.
pub const KV_HEADS: usize = 3;
/// Head dimension.
pub const HEAD_DIM: usize = 16;
/// Feed-forward size: a block of columns for each of six ranks.
pub const FFN: usize = 192;
/// Vocabulary: the byte-level tokenizer of the coordinator's fake rank.
pub const VOCABULARY: usize = 268;
/// Stride of the tests: boundaries come often.
pub const STRIDE: u64 = 16;

/// Where the fixtures lie: beside the sources, or where `PALIMPSEST_TEST_FIXTURES` says, for a test
/// that was built elsewhere.
pub fn fixtures() -> PathBuf {
    std::env::var_os("PALIMPSEST_TEST_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures"),
        PathBuf::from,
    )
}

/// Fixtures of families with differences of their own, as directories or GGUF files. All can be
/// dealt to three ranks.
pub const FAMILIES: [&str; 9] = [
    "mixtral",
    "gguf-mixtral",
    "qwen3-moe-shares",
    "gguf-qwen3-moe",
    "gemma3",
    "phi3",
    "gguf-phi3",
    "smollm3",
    "gguf-gpt-oss",
];

/// Where a fixture's model is: a directory, or the GGUF file in it.
pub fn family(name: &str) -> PathBuf {
    let directory = fixtures().join("models").join(name);
    let file = directory.join("model.gguf");
    if file.is_file() { file } else { directory }
}

/// Uniform pseudo-random values in [-1, 1).
pub fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Writes a random Llama of the fixture's shape as a Hugging Face directory.
///
/// # Panics
/// When the temporary directory cannot be written.
pub fn tiny_model(seed: u64) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 266,
        "eos_token_id": 267,
    });
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.path().join(name), bytes).expect("a writable directory")
    };
    write("config.json", config.to_string().as_bytes());
    write("model.safetensors", &tensors(seed));
    write(
        "tokenizer.json",
        &palimpsest_coordinator::executor::fake::byte_level_tokenizer(),
    );
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content \
                    }}<|im_end|>\n{% endfor %}{% if add_generation_prompt \
                    %}<|im_start|>assistant\n{% endif %}";
    let tokens = serde_json::json!({
        "eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": template,
    });
    write("tokenizer_config.json", tokens.to_string().as_bytes());
    dir
}

fn tensors(seed: u64) -> Vec<u8> {
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    shapes.insert("model.embed_tokens.weight".into(), vec![VOCABULARY, HIDDEN]);
    shapes.insert("model.norm.weight".into(), vec![HIDDEN]);
    for l in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.insert(format!("model.layers.{l}.{name}.weight"), shape.into())
        };
        add("input_layernorm", &[HIDDEN]);
        add("post_attention_layernorm", &[HIDDEN]);
        add("self_attn.q_proj", &[HEADS * HEAD_DIM, HIDDEN]);
        add("self_attn.k_proj", &[KV_HEADS * HEAD_DIM, HIDDEN]);
        add("self_attn.v_proj", &[KV_HEADS * HEAD_DIM, HIDDEN]);
        add("self_attn.o_proj", &[HIDDEN, HEADS * HEAD_DIM]);
        add("mlp.gate_proj", &[FFN, HIDDEN]);
        add("mlp.up_proj", &[FFN, HIDDEN]);
        add("mlp.down_proj", &[HIDDEN, FFN]);
    }
    let stored: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let values = random(seed ^ (i as u64 + 1), shape.iter().product());
            let norm = shape.len() == 1;
            let bytes = values
                .iter()
                .flat_map(|v| if norm { 1.0 + 0.1 * v } else { 0.3 * v }.to_le_bytes());
            (name, shape, bytes.collect())
        })
        .collect();
    let views = stored.iter().map(|(name, shape, bytes)| {
        (
            name.as_str(),
            TensorView::new(Dtype::F32, shape.clone(), bytes).expect("shape and bytes agree"),
        )
    });
    serialize(views, None).expect("a valid file")
}

/// A random indexer for the tiny model, with rates, so that rankings change with age.
pub fn tiny_indexer(seed: u64) -> Indexer {
    let layer = |l: u64| LayerScorer {
        weight: random(seed ^ l, KV_HEADS * HIDDEN),
        bias: random(seed ^ l ^ 77, KV_HEADS),
        rate: random(seed ^ l ^ 99, KV_HEADS)
            .into_iter()
            .map(|r| -500.0 * r.abs())
            .collect(),
        recent: None,
    };
    let (heads, dim, features) = (2, 4, 8);
    let rows = KV_HEADS * PairwiseWeights::rows(heads, dim);
    let query = |l: u64| PairwiseLayer {
        weight: random(seed ^ l ^ 11, rows * HIDDEN),
        bias: random(seed ^ l ^ 13, rows),
        norm: random(seed ^ l ^ 17, KV_HEADS * 4 * dim)
            .into_iter()
            .map(|v| 1.0 + 0.5 * v)
            .collect(),
        offset: random(seed ^ l ^ 19, KV_HEADS),
    };
    let memory = |l: u64| AssociativeLayerWeights {
        features: random(seed ^ l ^ 23, features * HEAD_DIM),
        gates: random(seed ^ l ^ 29, KV_HEADS),
    };
    let layers = 0..LAYERS as u64;
    let mut indexer = Indexer::new(ModelShape {
        layers: LAYERS,
        kv_heads: KV_HEADS,
        hidden: HIDDEN,
    });
    indexer.set(&RetentionWeights {
        layers: layers.clone().map(layer).collect(),
    });
    indexer.set(&PairwiseWeights {
        heads,
        dim,
        layers: layers.clone().map(query).collect(),
    });
    indexer.set(&AssociativeWeights {
        features,
        head_dim: HEAD_DIM,
        layers: layers.map(memory).collect(),
    });
    indexer
}

/// The same with a second scorer, of what is in use now.
pub fn tiny_indexer_of_two(seed: u64) -> Indexer {
    let mut indexer = tiny_indexer(seed);
    let mut scorers = RetentionWeights::of(&indexer).expect("just written");
    for (l, layer) in (100..).zip(&mut scorers.layers) {
        let rate = std::mem::replace(&mut layer.rate, vec![0.0; KV_HEADS]);
        let (weight, bias) = (
            random(seed ^ l, KV_HEADS * HIDDEN),
            random(seed ^ l ^ 77, KV_HEADS),
        );
        layer.recent = Some(RecentScorer { weight, bias, rate });
    }
    indexer.set(&scorers);
    indexer
}

/// How an engine under test runs.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Kernel threads.
    pub threads: usize,
    /// Activations in quantised products.
    pub activations: Activations,
    /// Stored keys and values.
    pub kv: KvType,
    /// Tokens between boundaries.
    pub stride: u64,
    /// The engine's place in its group.
    pub place: Place,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads: 1,
            activations: Activations::Int8,
            kv: KvType::F16,
            stride: STRIDE,
            place: Place::ALONE,
        }
    }
}

/// A runner over the model at `path` with an arena of 64 MiB and, for the tiny model, the tiny
/// indexer.
///
/// # Panics
/// When the model cannot be opened.
pub fn engine(
    path: &Path,
    options: EngineOptions,
    indexer: Option<&Indexer>,
) -> Runner<CpuBackend> {
    let backend = CpuBackend::new(CpuOptions {
        threads: Some(options.threads),
        activations: options.activations,
        simd: None,
    });
    engine_on(backend, path, options, indexer)
}

/// The same over any backend.
///
/// # Panics
/// When the model cannot be opened.
pub fn engine_on<B: Backend>(
    backend: B,
    path: &Path,
    options: EngineOptions,
    indexer: Option<&Indexer>,
) -> Runner<B> {
    let model = Model::open(path).expect("a model");
    let shard = Shard::new(model.config(), options.place).expect("a model that can be split so");
    let decoder = Decoder::load(backend, model.weights(), shard, options.stride, &mut |_| {})
        .expect("weights that load");
    let mut runner =
        Runner::new(decoder, options.kv, CacheBytes::of(64 << 20, None)).expect("an arena");
    // Fixtures of some tests are weights alone.
    if let Ok(tokenizer) = model.tokenizer() {
        let vocabulary = model.config().vocabulary;
        runner.guide_by(Guides::new(tokenizer, vocabulary));
    }
    if let Some(indexer) = indexer {
        runner
            .set_indexer(indexer)
            .expect("a indexer of this shape");
    }
    runner
}

/// A bounded contract for the tiny model, with centroids where they get slots.
pub fn contract(policy: &str, head_budget: HeadBudget, memory_slots: u32) -> Contract {
    bounded(policy, head_budget, memory_slots).into()
}

/// What [`contract`] holds a sequence to.
///
/// # Panics
/// Where `policy` is no policy that evicts.
pub fn bounded(policy: &str, head_budget: HeadBudget, memory_slots: u32) -> Bounded {
    Bounded {
        policy: PolicyName::new(policy).expect("a policy that evicts"),
        budget: 40 + memory_slots,
        head_budget,
        sinks: 2,
        window: 8,
        positions: Positions::Absolute,
        memory: memory("centroid", memory_slots),
    }
}

/// The latent memory called `name`, if it gets slots.
///
/// # Panics
/// Where `name` is no memory.
pub fn memory(name: &str, slots: u32) -> Option<LatentMemory> {
    if slots == 0 {
        return None;
    }
    LatentMemory::parse(name, slots).expect("a memory")
}
