//! What an engine on a device answers and keeps, to be compared with the CPU's.

use std::path::{Path, PathBuf};

use palimpsest_engine::decoder::Logits;
use palimpsest_engine::error::Error;
use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::kv::{Bounded, Contract, HeadBudget, Positions};
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::cpu::Activations;
use palimpsest_kernels::{Backend, KvType};

use crate::{
    EngineOptions, VOCABULARY, bounded, contract, engine, engine_on, fixtures, memory, random,
};

/// A difference of the two likeliest logits below which rounding may choose the other one.
const CLOSE: f32 = 2e-3;
/// Share of the kept entries that may be others, where scores are as close.
const OTHERS: f64 = 0.02;

/// What an engine says, keeps and has evicted. Two are equal whatever their margins.
#[derive(Debug)]
pub struct Outcome {
    /// Tokens it chose.
    pub answer: Vec<u32>,
    /// Positions that each head keeps.
    pub kept: Vec<Vec<u32>>,
    /// Entries evicted.
    pub evicted: u64,
    /// For each token, by how much its logit was above the next.
    pub margins: Vec<f32>,
}

impl PartialEq for Outcome {
    fn eq(&self, other: &Self) -> bool {
        (&self.answer, &self.kept, self.evicted) == (&other.answer, &other.kept, other.evicted)
    }
}

impl Outcome {
    /// What differs by more than rounding from what the CPU did, which read the same tokens.
    pub fn differences(&self, cpu: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (i, (got, want)) in self.answer.iter().zip(&cpu.answer).enumerate() {
            let margin = cpu.margins[i];
            if got != want && margin > CLOSE {
                found.push(format!(
                    "token {i} is {got}, not {want}, whose margin is {margin:.2e}"
                ));
            }
        }
        if self.evicted != cpu.evicted {
            found.push(format!(
                "{} entries evicted, not {}",
                self.evicted, cpu.evicted
            ));
        }
        let all: usize = cpu.kept.iter().map(Vec::len).sum();
        let others = |(got, want): (&Vec<u32>, &Vec<u32>)| {
            want.iter()
                .filter(|position| !got.contains(position))
                .count()
        };
        let others: usize = self.kept.iter().zip(&cpu.kept).map(others).sum();
        if others as f64 > OTHERS * all as f64 {
            found.push(format!("{others} of {all} kept entries are others"));
        }
        found
    }
}

/// Reads `prompt`, then greedily chooses `tokens` more, or reads those `forced` and says what it
/// would have chosen.
///
/// # Panics
/// When the engine refuses or fails.
pub fn outcome<B: Backend>(
    mut runner: Runner<B>,
    contract: &Contract,
    prompt: &[u32],
    (tokens, forced): (usize, Option<&[u32]>),
) -> Outcome {
    // Some fixtures have a smaller vocabulary.
    let vocabulary = runner.decoder().config().vocabulary as u32;
    let prompt: Vec<u32> = prompt.iter().map(|token| token % vocabulary).collect();
    let mut sequence =
        OfflineSequence::open(&mut runner, contract.clone()).expect("a valid contract");
    let mut logits = sequence.feed(&prompt, Logits::Last).expect("a step");
    let (mut answer, mut margins) = (Vec::new(), Vec::new());
    for i in 0..tokens {
        // The first of equals, as the sampler has it.
        let better = |&a: &usize, &b: &usize| logits[a].total_cmp(&logits[b]).then(b.cmp(&a));
        let best = (0..logits.len()).max_by(better).expect("a vocabulary");
        let others = (0..logits.len()).filter(|&token| token != best);
        let next = others
            .map(|token| logits[token])
            .fold(f32::NEG_INFINITY, f32::max);
        margins.push(logits[best] - next);
        let best = best as u32;
        answer.push(best);
        logits = sequence
            .feed(&[forced.map_or(best, |forced| forced[i])], Logits::Last)
            .expect("a step");
    }
    let cache = sequence.cache();
    let kept = cache
        .heads
        .iter()
        .map(|head| head.positions.clone())
        .collect();
    Outcome {
        answer,
        kept,
        evicted: cache.evicted,
        margins,
    }
}

/// Tokens without structure.
pub fn prompt(count: usize) -> Vec<u32> {
    let token = |v: &f32| ((v + 1.0) * 0.5 * VOCABULARY as f32) as u32 % VOCABULARY as u32;
    random(9, count).iter().map(token).collect()
}

/// One contract for each way through the cache: learned, observing, pairwise; both memories; moved
/// positions.
pub fn contracts() -> Vec<Contract> {
    vec![
        Contract::Full,
        contract("retention", HeadBudget::Column, 12),
        Contract::Bounded(Bounded {
            positions: Positions::Compacted,
            ..bounded("retention", HeadBudget::Group, 12)
        }),
        Contract::Bounded(Bounded {
            memory: memory("associative", 12),
            ..bounded("query-indexer", HeadBudget::Column, 12)
        }),
        contract("h2o", HeadBudget::Uniform, 0),
        contract("snapkv", HeadBudget::Column, 0),
    ]
}

/// The CPU's outcome with float activations, the prompt of 90 tokens.
///
/// # Panics
/// When the CPU's engine fails, or evicts nothing under a budget.
pub fn on_cpu(
    path: &Path,
    kv: KvType,
    indexer: Option<&Indexer>,
    contract: &Contract,
    tokens: usize,
) -> Outcome {
    let options = EngineOptions {
        activations: Activations::F32,
        kv,
        ..EngineOptions::default()
    };
    let want = outcome(
        engine(path, options, indexer),
        contract,
        &prompt(90),
        (tokens, None),
    );
    assert!(
        contract.bounded().is_none() || want.evicted > 0,
        "{contract:?} evicts nothing"
    );
    want
}

/// The same on another device, which reads the tokens `forced` where they are given.
///
/// # Panics
/// When the engine fails.
pub fn on_device<B: Backend>(
    backend: B,
    path: &Path,
    (kv, indexer): (KvType, Option<&Indexer>),
    contract: &Contract,
    answer: (usize, Option<&[u32]>),
) -> Outcome {
    let options = EngineOptions {
        kv,
        ..EngineOptions::default()
    };
    outcome(
        engine_on(backend, path, options, indexer),
        contract,
        &prompt(90),
        answer,
    )
}

/// The tiny models that come with golden logits: every architecture, and both GGUF quantisations.
pub fn tiny_configurations() -> Vec<PathBuf> {
    let models = fixtures().join("models");
    let file = |name: &str| models.join(name).join("model.gguf");
    let directories =
        ["llama", "llama-tied", "mistral", "qwen2", "qwen3"].map(|name| models.join(name));
    directories
        .into_iter()
        .chain(["gguf-llama", "gguf-qwen2"].map(file))
        .collect()
}

/// A rank's greedy answer of `tokens` tokens to the prompt of 90, and the bits of their logits.
/// Unlike [`outcome`] it may fail, as where another rank dies.
///
/// # Errors
/// Those of the engine.
pub fn answer<B: Backend>(
    runner: &mut Runner<B>,
    contract: &Contract,
    tokens: usize,
) -> Result<Vec<(u32, Vec<u32>)>, Error> {
    let mut sequence = OfflineSequence::open(runner, contract.clone())?;
    let mut logits = sequence.feed(&prompt(90), Logits::Last)?;
    let mut told = Vec::new();
    for _ in 0..tokens {
        let best = (0..logits.len())
            .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
            .unwrap_or(0) as u32;
        told.push((best, logits.iter().map(|logit| logit.to_bits()).collect()));
        logits = sequence.feed(&[best], Logits::Last)?;
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_may_choose_another_token_and_nothing_else() {
        let cpu = || Outcome {
            answer: vec![1, 2, 3],
            kept: vec![(0..100).collect(), (0..100).collect()],
            evicted: 7,
            margins: vec![0.5, 1e-4, 0.1],
        };
        assert_eq!(cpu().differences(&cpu()), [] as [String; 0]);
        let mut close = cpu();
        (close.answer[1], close.kept[1][5]) = (9, 1000);
        assert_eq!(close.differences(&cpu()), [] as [String; 0]);
        let mut other = cpu();
        (other.answer[2], other.evicted) = (9, 8);
        other.kept[0] = (50..150).collect();
        let told = other.differences(&cpu());
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].starts_with("token 2 is 9, not 3"), "{told:?}");
        assert_eq!(told[2], "50 of 200 kept entries are others");
    }
}
