//! The default model against transformers in float32 on its dequantised weights
//! (`tests/oracle/smollm2_oracle.py`). `cargo xtask test` fetches the model and sets
//! PALIMPSEST_TEST_MODEL; without it these tests say that they are skipped.

use std::path::PathBuf;

use palimpsest_engine::decoder::Logits;
use palimpsest_engine::kv::Contract;
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_engine::runner::Runner;
use palimpsest_engine::sampler::log_sum_exp;
use palimpsest_kernels::KvType;
use palimpsest_kernels::cpu::{Activations, CpuBackend};
use palimpsest_tests::golden::{self, Golden};
use palimpsest_tests::{EngineOptions, engine, fixtures};

const PROMPTS: usize = 20;

fn model() -> Option<PathBuf> {
    let path = std::env::var_os("PALIMPSEST_TEST_MODEL").map(PathBuf::from);
    if path.is_none() {
        eprintln!(
            "SKIPPED: set PALIMPSEST_TEST_MODEL to the default model's GGUF file, or run `cargo \
             xtask test`"
        );
    }
    path
}

fn oracle() -> Golden {
    golden::read(&fixtures().join("smollm2_oracle.safetensors"))
}

/// Agreement with the oracle over all prompts.
#[derive(Debug, Default)]
struct Agreement {
    /// KL(oracle ‖ ours) over the whole vocabulary at the last position of every prompt.
    kl: Vec<f64>,
    /// Positions whose best token agrees, of all.
    top1: (usize, usize),
    /// Prompts whose greedy continuation agrees, up to a step where the oracle itself is
    /// undecided.
    continuations: usize,
}

/// The oracle's own two best logits may be closer than the noise of 8-bit activations; ours may
/// then choose the other.
fn compare(runner: &mut Runner<CpuBackend>, golden: &Golden, undecided: f32) -> Agreement {
    let vocabulary = runner.decoder().config().vocabulary;
    let mut agreement = Agreement::default();
    for i in 0..PROMPTS {
        let prompt = golden.ids(&format!("prompt.{i}"));
        let positions = golden.ids(&format!("positions.{i}"));
        let top_ids = golden.ids(&format!("top_ids.{i}"));
        let top = top_ids.len() / positions.len();
        let mut sequence = OfflineSequence::open(runner, Contract::Full).expect("the full policy");
        let logits = sequence.feed(&prompt, Logits::All).expect("a forward pass");
        for (row, &position) in positions.iter().enumerate() {
            let ours = argmax(&logits[position as usize * vocabulary..][..vocabulary]);
            agreement.top1.0 += usize::from(ours == top_ids[row * top]);
            agreement.top1.1 += 1;
        }
        let last = &logits[(prompt.len() - 1) * vocabulary..];
        agreement
            .kl
            .push(kl(&golden.floats(&format!("logprobs.{i}")), last));
        let margins = golden.floats(&format!("margins.{i}"));
        let mut next = argmax(last);
        let mut agrees = true;
        for (want, margin) in golden
            .ids(&format!("continuation.{i}"))
            .into_iter()
            .zip(margins)
        {
            if next != want {
                agrees = margin < undecided;
                break;
            }
            next = argmax(&sequence.feed(&[next], Logits::Last).expect("a step"));
        }
        agreement.continuations += usize::from(agrees);
    }
    agreement
}

fn kl(oracle_logprobs: &[f32], logits: &[f32]) -> f64 {
    let lse = log_sum_exp(logits);
    // The oracle is stored in half precision: its probabilities are normalised again before they
    // are compared.
    let oracle_lse = log_sum_exp(oracle_logprobs);
    let term = |(p, q): (&f32, &f32)| {
        let p = f64::from(p - oracle_lse);
        p.exp() * (p - f64::from(q - lse))
    };
    oracle_logprobs.iter().zip(logits).map(term).sum()
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len())
        .max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)))
        .expect("a vocabulary") as u32
}

#[test]
fn float_activations_are_the_float32_model() {
    let Some(path) = model() else { return };
    let exact = EngineOptions {
        threads: 2,
        activations: Activations::F32,
        kv: KvType::F32,
        stride: 256,
        ..EngineOptions::default()
    };
    let found = compare(&mut engine(&path, exact, None), &oracle(), 0.0);
    let worst = found.kl.iter().copied().fold(0.0, f64::max);
    let mean = found.kl.iter().sum::<f64>() / PROMPTS as f64;
    println!("float activations: mean KL {mean:.2e}, worst {worst:.2e}, {found:?}");
    assert!(mean < 1e-5, "mean KL {mean}");
    assert_eq!(found.top1.0, found.top1.1, "best tokens");
    assert_eq!(found.continuations, PROMPTS, "greedy continuations");
}

#[test]
fn eight_bit_activations_stay_close() {
    let Some(path) = model() else { return };
    let fast = EngineOptions {
        threads: 2,
        stride: 256,
        ..Default::default()
    };
    let found = compare(&mut engine(&path, fast, None), &oracle(), 0.5);
    let mean = found.kl.iter().sum::<f64>() / PROMPTS as f64;
    println!("8-bit activations: mean KL {mean:.2e}, {found:?}");
    assert!(mean <= 0.005, "mean KL {mean}");
    assert!(
        found.top1.0 * 100 >= found.top1.1 * 98,
        "best tokens: {:?}",
        found.top1
    );
}
