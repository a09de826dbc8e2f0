//! Logits and greedy continuations against Hugging Face transformers in float32: `tests/oracle/`
//! made the golden files.

use std::path::Path;

use palimpsest_engine::decoder::Logits;
use palimpsest_engine::kv::Contract;
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_kernels::KvType;
use palimpsest_kernels::cpu::Activations;
use palimpsest_tests::{EngineOptions, engine, fixtures, golden};

/// Largest difference of any logit: float32 against float32, summed in another order.
const TOLERANCE: f32 = 2e-4;

fn check(path: &Path, golden_file: &Path) {
    let golden = golden::read(golden_file);
    let (prompt, logits) = (golden.ids("prompt"), golden.floats("logits"));
    let exact = EngineOptions {
        activations: Activations::F32,
        kv: KvType::F32,
        ..Default::default()
    };
    let mut runner = engine(path, exact, None);
    let vocabulary = runner.decoder().config().vocabulary;
    let mut sequence = OfflineSequence::open(&mut runner, Contract::Full).expect("the full policy");
    let got = sequence.feed(&prompt, Logits::All).expect("a forward pass");
    assert_eq!(got.len(), logits.len());
    for (position, (got, want)) in got
        .chunks(vocabulary)
        .zip(logits.chunks(vocabulary))
        .enumerate()
    {
        let worst = got
            .iter()
            .zip(want)
            .map(|(g, w)| (g - w).abs())
            .fold(0.0, f32::max);
        assert!(
            worst <= TOLERANCE,
            "{}: position {position} is off by {worst}",
            path.display()
        );
    }
    let mut next = argmax(&got[got.len() - vocabulary..]);
    for (i, want) in golden.ids("continuation").into_iter().enumerate() {
        assert_eq!(next, want, "{}: greedy token {i}", path.display());
        next = argmax(&sequence.feed(&[next], Logits::Last).expect("a step"));
    }
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len())
        .max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)))
        .expect("a vocabulary") as u32
}

fn check_directory(name: &str) {
    let dir = fixtures().join("models").join(name);
    check(&dir, &dir.join("golden.safetensors"));
}

fn check_gguf(name: &str) {
    let dir = fixtures().join("models").join(name);
    check(&dir.join("model.gguf"), &dir.join("golden.safetensors"));
}

#[test]
fn llama_with_llama3_rope_scaling() {
    check_directory("llama");
}

#[test]
fn llama_with_tied_embeddings() {
    check_directory("llama-tied");
}

#[test]
fn mistral_with_a_sliding_window_shorter_than_the_prompt() {
    check_directory("mistral");
}

#[test]
fn qwen2_with_biases() {
    check_directory("qwen2");
}

#[test]
fn qwen3_with_head_norms_and_its_own_head_dim() {
    check_directory("qwen3");
}

#[test]
fn yarn_with_the_factor_of_the_paper() {
    check_directory("yarn");
    check_gguf("gguf-yarn");
}

#[test]
fn yarn_with_the_factors_of_deepseek_and_a_ramp_between_pairs() {
    check_directory("yarn-deepseek");
}

#[test]
fn mixtral() {
    check_directory("mixtral");
    check_gguf("gguf-mixtral");
}

#[test]
fn qwen3_moe_with_weights_that_add_up_and_with_shares() {
    check_directory("qwen3-moe");
    check_directory("qwen3-moe-shares");
    check_gguf("gguf-qwen3-moe");
}

#[test]
fn gemma3_with_windowed_and_full_layers() {
    check_directory("gemma3");
    check_gguf("gguf-gemma3");
}

#[test]
fn phi3_with_a_part_of_each_head_rotated_by_longrope() {
    check_directory("phi3");
    check_gguf("gguf-phi3");
}

#[test]
fn smollm3_with_a_layer_that_does_not_rotate() {
    check_directory("smollm3");
    check_gguf("gguf-smollm3");
}

#[test]
fn gpt_oss_with_sinks_experts_and_biases() {
    check_gguf("gguf-gpt-oss");
}

#[test]
fn quantised_llama_from_gguf() {
    check_gguf("gguf-llama");
}

#[test]
fn quantised_qwen2_from_gguf() {
    check_gguf("gguf-qwen2");
}
