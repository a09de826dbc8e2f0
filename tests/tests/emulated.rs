//! The CUDA backend, on the emulated device, answers as the CPU backend does: same tokens, same slots kept.
#![cfg(feature = "emulate")]

use palimpsest_kernels::cpu::Activations;
use palimpsest_kernels::cuda::emulated::Emulated;
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_kernels::{Backend, KvType};
use palimpsest_tests::{EngineOptions, VOCABULARY, contract, engine, engine_on, random, tiny_indexer, tiny_model};
use palimpsest_worker::kv::{Contract, HeadBudget, Positions};
use palimpsest_worker::model::decoder::Logits;
use palimpsest_worker::runner::Runner;
use palimpsest_worker::session::Session;

/// What an engine says, keeps and has evicted.
#[derive(Debug, PartialEq)]
struct Outcome {
    answer: Vec<u32>,
    kept: Vec<Vec<u32>>,
    evicted: u64,
}

/// Reads `prompt`, then greedily chooses `tokens` more, or reads those `forced` and says what it would have chosen.
fn outcome<B: Backend>(mut runner: Runner<B>, contract: &Contract, tokens: usize, forced: Option<&[u32]>) -> Outcome {
    let mut session = Session::open(&mut runner, contract.clone()).expect("a valid contract");
    let mut logits = session.feed(&prompt(90), Logits::Last).expect("a step");
    let mut answer = Vec::new();
    for i in 0..tokens {
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("a vocabulary") as u32;
        answer.push(best);
        logits = session.feed(&[forced.map_or(best, |forced| forced[i])], Logits::Last).expect("a step");
    }
    let cache = session.cache();
    let kept = cache.heads.iter().map(|head| head.positions.clone()).collect();
    Outcome { answer, kept, evicted: cache.evicted }
}

fn prompt(count: usize) -> Vec<u32> {
    let token = |v: &f32| ((v + 1.0) * 0.5 * VOCABULARY as f32) as u32 % VOCABULARY as u32;
    random(9, count).iter().map(token).collect()
}

/// One contract for each way through the cache: learned, observing, pairwise; both memories; moved positions.
fn contracts() -> Vec<Contract> {
    vec![
        Contract::full(),
        contract("retention", HeadBudget::Column, 12),
        Contract { positions: Positions::Compacted, ..contract("retention", HeadBudget::Group, 12) },
        Contract { memory: "associative".into(), ..contract("query-indexer", HeadBudget::Column, 12) },
        contract("h2o", HeadBudget::Uniform, 0),
        contract("snapkv", HeadBudget::Column, 0),
    ]
}

const TOKENS: usize = 20;

/// The CPU's outcome.
fn wanted(contract: &Contract, kv: KvType) -> Outcome {
    let options = EngineOptions { activations: Activations::F32, kv, ..EngineOptions::default() };
    let want = outcome(engine(tiny_model(1).path(), options, Some(&tiny_indexer(5))), contract, TOKENS, None);
    assert!(contract.budget.is_none() || want.evicted > 0, "{contract:?} evicts nothing");
    want
}

fn emulated(contract: &Contract, kv: KvType, forced: Option<&[u32]>) -> Outcome {
    let options = EngineOptions { kv, ..EngineOptions::default() };
    let backend = CudaBackend::new(Emulated::new(11), Precision::F32);
    outcome(engine_on(backend, tiny_model(1).path(), options, Some(&tiny_indexer(5))), contract, TOKENS, forced)
}

#[test]
fn the_emulated_device_answers_as_the_cpu_does() {
    for contract in contracts() {
        assert_eq!(emulated(&contract, KvType::F32, None), wanted(&contract, KvType::F32), "{contract:?}");
    }
}

/// Queries and probabilities in f16 on tensor cores: a random model amplifies their rounding, so both read the same tokens
/// and are compared in what they would have chosen and in what they kept.
#[test]
fn tensor_cores_choose_nearly_the_same() {
    for contract in contracts() {
        let want = wanted(&contract, KvType::F16);
        let got = emulated(&contract, KvType::F16, Some(&want.answer));
        let same = got.answer.iter().zip(&want.answer).filter(|(got, want)| got == want).count();
        let both = |(got, want): (&Vec<u32>, &Vec<u32>)| got.iter().filter(|p| want.binary_search(p).is_ok()).count();
        let kept: usize = got.kept.iter().zip(&want.kept).map(both).sum();
        let all: usize = want.kept.iter().map(Vec::len).sum();
        println!("{} {}: {same} of {TOKENS} tokens, {kept} of {all} entries", contract.policy, contract.memory);
        // Where policies rank what is nearly equal, one other slot changes a random model's next choices.
        let (least_same, least_kept) = (0.6, 0.95);
        assert!(same as f64 >= least_same * TOKENS as f64, "{contract:?}: {same} of {TOKENS} tokens");
        assert!(kept as f64 >= least_kept * all as f64, "{contract:?}: {kept} of {all} entries");
    }
}
