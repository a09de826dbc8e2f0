//! Model files whole and damaged. Values are compared with what the fixtures' makers computed in
//! Python; whether the decoder gets the golden logits out of them is the parity tests' matter.

mod damaged;
mod families;
mod listed;
mod split;
mod types;
mod writer;

use std::path::{Path, PathBuf};

use palimpsest_kernels::WeightType;
use proptest::prelude::*;
use writer::{Writer, llama, text, with_tensors};

use super::{FeedForwardWeights, GatedWeights, WeightsError};
use crate::config::{Architecture, RopeScaling};
use crate::gguf::{Gguf, GgufError, GgufValue};
use crate::part::Part;
use crate::weight_data::WeightData;
use crate::{DigestCache, Error, Model, TypeTotal, inspect, safetensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/models")
        .join(name)
}

fn open(name: &str) -> Model {
    let path = fixture(name);
    let path = if path.join("model.gguf").is_file() {
        path.join("model.gguf")
    } else {
        path
    };
    Model::open(&path).unwrap()
}

fn open_bytes(bytes: &[u8]) -> Result<Model, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Model::open(&path)
}

fn message(result: Result<Model, Error>) -> String {
    result
        .err()
        .map(|error| error.to_string())
        .expect("the model should be refused")
}

/// A copy that a disk or a transfer left incomplete has every header and every beginning right: on
/// one rank of a group nothing else would tell it from a whole one.
#[test]
fn a_digest_tells_files_that_differ_in_any_byte() {
    let bytes = std::fs::read(fixture("gguf-llama").join("model.gguf")).unwrap();
    let digest = |bytes: &[u8]| {
        let model = open_bytes(bytes).unwrap();
        model.weights().digest(&DigestCache::nowhere())
    };
    let whole = digest(&bytes);
    assert_eq!(digest(&bytes), whole, "the same bytes in another file");
    let gguf = Gguf::parse(&bytes).unwrap();
    let ranges = gguf
        .tensors
        .iter()
        .filter_map(|tensor| tensor.range.clone());
    let largest = ranges.max_by_key(ExactSizeIterator::len).unwrap();
    assert!(largest.len() > 8192, "more than a beginning");
    let mut half_copied = bytes.clone();
    half_copied[largest.start + 4096..largest.end].fill(0);
    assert_ne!(digest(&half_copied), whole);
    let mut one_bit = bytes;
    one_bit[largest.end - 1] ^= 1;
    assert_ne!(digest(&one_bit), whole);
}

#[test]
fn every_fixture_opens_with_its_configuration() {
    let families = [
        ("llama", Architecture::Llama, 64, false),
        ("llama-tied", Architecture::Llama, 64, true),
        ("mistral", Architecture::Mistral, 64, false),
        ("qwen2", Architecture::Qwen2, 64, false),
        ("qwen3", Architecture::Qwen3, 64, false),
        ("mixtral", Architecture::Mixtral, 64, false),
        ("qwen3-moe", Architecture::Qwen3Moe, 64, false),
        ("gguf-llama", Architecture::Llama, 288, true),
        ("gguf-qwen2", Architecture::Qwen2, 288, false),
        ("gguf-mixtral", Architecture::Mixtral, 288, false),
        ("gguf-qwen3-moe", Architecture::Qwen3Moe, 288, false),
    ];
    for (name, architecture, vocabulary, tied) in families {
        let model = open(name);
        let config = model.config();
        assert_eq!(
            (config.architecture, config.vocabulary),
            (architecture, vocabulary),
            "{name}"
        );
        assert_eq!(config.tied_embeddings, tied, "{name}");
        assert_eq!(
            (config.eos_ids.as_slice(), config.bos_id),
            (&[2][..], Some(1)),
            "{name}"
        );
        assert_eq!(config.name, name);
        assert_eq!(
            config.differences.qkv_bias,
            architecture == Architecture::Qwen2
        );
        assert_eq!(
            config.differences.sliding_window,
            (architecture == Architecture::Mistral).then_some(16)
        );
        // rope_freqs.weight is no parameter of the network.
        let norms = usize::from(name == "gguf-llama");
        let elements =
            inspect(model.path()).unwrap().parameters - (norms * config.head_dim / 2) as u64;
        assert_eq!(config.parameters, elements, "{name}");
        for layer in 0..config.layers {
            let layer = model.weights().layer(layer, &Part::whole(config)).unwrap();
            assert_eq!(layer.q.rows, config.heads * config.head_dim);
            assert_eq!(layer.q_norm.is_some(), config.differences.qk_norm);
            assert_eq!(
                layer.k_bias.as_ref().map(Vec::len),
                config.differences.qkv_bias.then_some(layer.k.rows)
            );
        }
        assert!(matches!(
            model.weights().layer(config.layers, &Part::whole(config)),
            Err(WeightsError::Layer { .. })
        ));
    }
}

#[test]
fn stored_types_reach_the_kernels() {
    let llama = open("gguf-llama");
    let layer = llama.weights().layer(1, &whole(&llama)).unwrap();
    let GatedWeights { gate, up, down, .. } = dense(layer.feed_forward);
    let types = [&layer.q, &layer.k, &layer.v, &gate, &up, &down].map(|matrix| matrix.dtype);
    use WeightType::{BF16, F16, Q4_0, Q4_1, Q8_0};
    assert_eq!(types, [Q4_1, Q4_0, Q8_0, F16, BF16, Q4_1]);
    let qwen = open("gguf-qwen2");
    assert_eq!(
        qwen.weights().output(&whole(&qwen)).unwrap().unwrap().dtype,
        WeightType::Q6K
    );
    let bf16 = open("qwen2");
    assert_eq!(
        bf16.weights().embedding(&whole(&bf16)).unwrap().dtype,
        WeightType::BF16
    );
    assert!(llama.weights().output(&whole(&llama)).unwrap().is_none());
}

/// In a Llama GGUF row `2i + half` of a head holds what belongs at `half * D/2 + i`; other families
/// keep the order.
#[test]
fn llama_rows_return_to_rotary_halves() {
    let (model, dim) = (open("gguf-llama"), 16);
    let path = fixture("gguf-llama").join("model.gguf");
    let file = std::fs::read(&path).unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    for (name, heads) in [("q", 4), ("k", 2)] {
        let stored = gguf
            .tensors
            .iter()
            .find(|tensor| tensor.name == format!("blk.0.attn_{name}.weight"))
            .unwrap();
        let stored = &file[stored.range.clone().unwrap()];
        let layer = model.weights().layer(0, &whole(&model)).unwrap();
        let loaded = if name == "q" { &layer.q } else { &layer.k };
        let width = stored.len() / (heads * dim);
        let row = |bytes: &[u8], row: usize| bytes[row * width..(row + 1) * width].to_vec();
        for (head, half, i) in
            (0..heads).flat_map(|head| (0..16).map(move |value| (head, value / 8, value % 8)))
        {
            let expected = row(stored, head * dim + 2 * i + half);
            assert_eq!(
                row(&loaded.bytes, head * dim + half * 8 + i),
                expected,
                "{name} {head} {half} {i}"
            );
        }
    }
    let qwen = open("gguf-qwen2");
    let layer = qwen.weights().layer(0, &whole(&qwen)).unwrap();
    assert!(matches!(layer.q.bytes, std::borrow::Cow::Borrowed(_)));
}

#[test]
fn rope_factors_of_a_gguf_equal_the_scaling_of_its_config() {
    let model = open("gguf-llama");
    assert!(matches!(
        model.config().rope.scaling,
        RopeScaling::Factors(_)
    ));
    let mut rope = model.config().rope.clone();
    let RopeScaling::Llama3 { .. } = open("llama").config().rope.scaling else {
        panic!("llama3 scaling expected")
    };
    rope.scaling = open("llama").config().rope.scaling.clone();
    for (a, b) in model.config().rope.inv_freq().iter().zip(rope.inv_freq()) {
        assert!((a - b).abs() <= 2e-7 * b, "{a} {b}");
    }
}

fn dense(feed_forward: FeedForwardWeights<'_>) -> GatedWeights<'_> {
    match feed_forward {
        FeedForwardWeights::Dense(gated) => gated,
        FeedForwardWeights::Routed { .. } => panic!("a dense model"),
    }
}

fn whole(model: &Model) -> Part {
    Part::whole(model.config())
}

#[test]
fn shards_are_cut_from_rows_and_columns() {
    let model = open("gguf-llama");
    // [64, 128] in Q4_1: 20 bytes per 32 columns.
    let layer = model.weights().layer(0, &whole(&model)).unwrap();
    let down = dense(layer.feed_forward).down;
    let rows = down.clone().into_rows(8..24);
    assert_eq!(
        (rows.rows, rows.cols, &*rows.bytes),
        (16, 128, &down.bytes[8 * 80..24 * 80])
    );
    let columns = down.clone().into_columns(64..128).unwrap();
    assert_eq!((columns.rows, columns.cols), (64, 64));
    assert_eq!(
        columns.bytes[40 * 3..40 * 4],
        down.bytes[80 * 3 + 40..80 * 4]
    );
    assert_eq!(columns.skip, 0);
    assert!(matches!(
        down.clone().into_columns(16..64),
        Err(WeightsError::Columns { .. })
    ));
    assert!(matches!(
        down.into_columns(64..160),
        Err(WeightsError::Columns { .. })
    ));
}

/// Blocks of 256 weights are cut at groups of 32: what a shard touches is copied whole.
#[test]
fn shards_may_begin_and_end_within_long_blocks() {
    let dtype = WeightType::Q6K;
    let bytes: Vec<u8> = (0..3 * 4 * 210).map(|i| (i % 241) as u8).collect();
    let matrix = WeightData {
        dtype,
        rows: 3,
        cols: 1024,
        skip: 0,
        bytes: bytes.clone().into(),
    };
    let shard = matrix.clone().into_columns(320..800).unwrap();
    assert_eq!((shard.rows, shard.cols, shard.skip), (3, 480, 64));
    assert_eq!(shard.bytes[630..1260], bytes[840 + 210..840 + 840]);
    let inner = shard.into_columns(224..256).unwrap();
    assert_eq!((inner.cols, inner.skip), (32, 32));
    assert_eq!(inner.bytes[..210], bytes[420..630]);
    let rows = matrix.clone().into_columns(32..64).unwrap().into_rows(1..2);
    assert_eq!((rows.rows, rows.skip, rows.bytes.len()), (1, 32, 210));
    assert!(matches!(
        matrix.into_columns(16..64),
        Err(WeightsError::Columns { .. })
    ));
}

/// A file that cannot be used, and what its message says.
struct Lack {
    file: Writer,
    expected: &'static str,
}

fn lack(file: Writer, expected: &'static str) -> Lack {
    Lack { file, expected }
}

#[test]
fn hand_made_file_is_read_and_every_lack_is_named() {
    let good = with_tensors(llama(), 0, 4096);
    assert_eq!(open_bytes(&good.bytes()).unwrap().config().vocabulary, 10);
    for Lack { file, expected } in lacks_of_metadata().into_iter().chain(lacks_of_tensors()) {
        let found = message(open_bytes(&file.bytes()));
        assert!(
            found.contains(expected),
            "{found}\nshould contain {expected}"
        );
    }
}

/// The metadata of a small Mixtral.
fn experts(count: u32, used: u32) -> Writer {
    llama()
        .size("llama.expert_count", count)
        .size("llama.expert_used_count", used)
}

/// Metadata that is missing, contradictory, or of models that cannot run.
fn lacks_of_metadata() -> Vec<Lack> {
    vec![
        lack(
            with_tensors(llama().size("llama.expert_count", 8), 0, 4096),
            "\"llama.expert_used_count\" is missing",
        ),
        lack(
            with_tensors(experts(8, 9), 0, 4096),
            "the number of experts of a token is 9, expected 1 to 8",
        ),
        lack(
            with_tensors(experts(8, 2), 0, 4096),
            "\"blk.0.ffn_gate_inp.weight\" is missing",
        ),
        lack(
            with_tensors(llama().size("split.count", 2), 0, 4096),
            "its name is not NAME-00001-of-00002.gguf",
        ),
        lack(
            with_tensors(llama().size("llama.block_count", 2), 0, 4096),
            "\"llama.block_count\" appears twice",
        ),
        lack(
            with_tensors(
                llama().raw("llama.rope.scaling.type", 8, &text("yarn")),
                0,
                4096,
            ),
            "\"llama.rope.scaling.factor\" is missing",
        ),
        lack(
            with_tensors(
                llama().raw("llama.rope.scaling.type", 8, &text("ntk")),
                0,
                4096,
            ),
            "rope scaling \"ntk\" is not supported",
        ),
        lack(
            with_tensors(llama().size("llama.rope.dimension_count", 4), 0, 4096),
            "rope.dimension_count",
        ),
        lack(
            with_tensors(llama().size("general.alignment", 12), 0, 4096),
            "general.alignment is 12",
        ),
        lack(
            Writer::new().raw("general.architecture", 8, &text("mamba")),
            "architecture \"mamba\" is not supported",
        ),
        lack(Writer::new(), "\"general.architecture\" is missing"),
        lack(
            Writer::new().raw("general.architecture", 4, &[1, 0, 0, 0]),
            "is 1, expected text",
        ),
    ]
}

/// Tensors that are missing, too many, or of other types and shapes.
fn lacks_of_tensors() -> Vec<Lack> {
    vec![
        lack(
            with_tensors(llama(), 13, 0),
            "impossible shape [32, 32] for type Q5_K",
        ),
        lack(
            with_tensors(llama(), 9, 1280),
            "\"blk.0.attn_q.weight\" has type Q8_1, which is not supported",
        ),
        lack(with_tensors(llama(), 99, 0), "has type ggml type 99"),
        lack(
            with_tensors(llama(), 0, 4096).tensor("blk.0.attn_output.bias", &[32], 0, 128),
            "attn_output.bias\" is the first",
        ),
        lack(
            with_tensors(llama(), 0, 4096).tensor("output_norm.weight", &[32], 0, 128),
            "\"output_norm.weight\" appears twice",
        ),
        lack(
            with_tensors(llama(), 0, 4096).tensor("output.weight", &[32, 11], 0, 1408),
            "shape [11, 32]",
        ),
        lack(
            llama().tensor("token_embd.weight", &[32, 10], 0, 1280),
            "\"output_norm.weight\" is missing",
        ),
    ]
}

/// Headers that promise more than any file holds: refused at once and without the memory they ask
/// for.
#[test]
fn each_wrong_path_has_its_message() {
    let dir = tempfile::tempdir().unwrap();
    let says = |path: &Path, expected: &str| {
        let found = message(Model::open(path));
        assert!(
            found.contains(expected),
            "{found}\nshould contain {expected}"
        );
    };
    says(&dir.path().join("nothing.gguf"), "cannot read");
    says(
        dir.path(),
        "is not a model: give a .gguf file or a directory with config.json",
    );
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    write("notes.txt", b"hello there");
    says(&dir.path().join("notes.txt"), "is not a model");
    write("empty.gguf", b"");
    says(&dir.path().join("empty.gguf"), "empty.gguf");
    write("bad.gguf", b"PK\x03\x04 and so on");
    says(&dir.path().join("bad.gguf"), "not a GGUF file");
    write(
        "config.json",
        &std::fs::read(fixture("llama-tied").join("config.json")).unwrap(),
    );
    says(dir.path(), "has no model.safetensors");
    write("model.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}");
    says(dir.path(), "damaged or truncated safetensors file");
    std::fs::copy(
        fixture("qwen3").join("model.safetensors"),
        dir.path().join("model.safetensors"),
    )
    .unwrap();
    says(dir.path(), "the configuration says");
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    write(
        "model.safetensors.index.json",
        br#"{"weight_map": {"a": "../x.safetensors"}}"#,
    );
    says(dir.path(), "is not a plain file name");
    std::fs::copy(
        fixture("llama").join("model.safetensors"),
        dir.path().join("x.safetensors"),
    )
    .unwrap();
    write(
        "model.safetensors.index.json",
        br#"{"weight_map": {"a": "x.safetensors"}}"#,
    );
    says(
        dir.path(),
        "says that \"a\" is in x.safetensors, but it is not",
    );
    write("config.json", b"[1]");
    says(dir.path(), "not a JSON object");
}

#[test]
fn inspection_sums_up_by_type() {
    let description = inspect(&fixture("gguf-llama").join("model.gguf")).unwrap();
    assert_eq!(description.format, "GGUF v3");
    assert!(description.config.is_ok());
    assert!(
        description
            .metadata
            .iter()
            .any(|(key, value)| key == "tokenizer.ggml.tokens" && value.summary() == "[text; 288]")
    );
    let types = description.by_type();
    assert_eq!(
        types["Q8_0"],
        TypeTotal {
            tensors: 3,
            parameters: 288 * 64 + 2 * 32 * 64,
            bytes: (288 * 64 + 2 * 32 * 64) / 32 * 34
        }
    );
    assert_eq!(
        types.values().map(|total| total.bytes).sum::<usize>(),
        description.bytes
    );
    let shards = inspect(&fixture("mistral")).unwrap();
    assert_eq!(
        (shards.format.as_str(), shards.tensors.len()),
        ("safetensors", 21)
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn damaged_gguf_files_never_panic(
        flips in proptest::collection::vec((0usize..3_000, any::<u8>()), 1..8),
    ) {
        let mut file = with_tensors(llama(), 0, 4096).bytes();
        for (at, byte) in flips {
            file[at] ^= byte;
        }
        if let Ok(gguf) = Gguf::parse(&file) {
            for tensor in &gguf.tensors {
                prop_assert!(tensor.range.as_ref().is_none_or(|range| range.end <= file.len()));
            }
            let _ = open_bytes(&file);
        }
    }

    #[test]
    fn damaged_safetensors_files_never_panic(
        flips in proptest::collection::vec((0usize..2_500, any::<u8>()), 1..8),
    ) {
        let mut file = std::fs::read(fixture("llama-tied").join("model.safetensors")).unwrap();
        for (at, byte) in flips {
            file[at] ^= byte;
        }
        for (_, tensor) in safetensors::read_header(&file, 0).unwrap_or_default() {
            prop_assert!(tensor.range.end <= file.len());
        }
    }

    #[test]
    fn random_bytes_are_no_model(mut bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = Gguf::parse(&bytes);
        let header = b"GGUF\x03\x00\x00\x00";
        bytes.splice(0..0, header.iter().copied());
        let _ = Gguf::parse(&bytes);
    }
}
