//! The default model over groups of ranks, where its file is there.

use std::path::PathBuf;

use palimpsest_coordinator::text::Tokenizer;
use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::kv::{Bounded, Contract, HeadBudget};
use palimpsest_kernels::cpu::Activations;
use palimpsest_models::Model;
use palimpsest_tests::{EngineOptions, bounded, memory};

use crate::group::{EXACT, Outcome, answer, assert_same, group};

/// The shipped indexer of the default model.
fn trained() -> Indexer {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../assets/indexers/smollm2-135m-instruct.safetensors"
    );
    Indexer::parse(&std::fs::read(file).expect("a file of the repository")).expect("an indexer")
}

/// Prompts over the default model, and their tokens.
const PROMPTS: usize = 3;
const PROMPT_TOKENS: usize = 800;
/// Tokens of the shortest and the longest prompt where more are asked for.
const SHORTEST: usize = 2048;
const LONGEST: usize = 8192;
/// Tokens of an answer.
const ANSWER_TOKENS: usize = 16;

/// What a prompt is read under: the window, and what was trained for the model with the memories it
/// goes with.
fn default_contracts() -> [Contract; 3] {
    let window = Bounded {
        window: 128,
        ..bounded("window", HeadBudget::Uniform, 0)
    };
    let retention = Bounded {
        window: 64,
        ..bounded("retention", HeadBudget::Column, 32)
    };
    let pairwise = Bounded {
        window: 64,
        memory: memory("associative", 32),
        ..bounded("query-indexer", HeadBudget::Column, 32)
    };
    [window, retention, pairwise].map(|contract| {
        Contract::Bounded(Bounded {
            budget: 300,
            sinks: 4,
            ..contract
        })
    })
}

/// Different parts of one text, which begins anew where it ends.
fn default_prompts(text: &[u32], count: Option<usize>) -> Vec<Vec<u32>> {
    let len = |i: usize| match count {
        Some(count) => SHORTEST + i * (LONGEST - SHORTEST) / count.saturating_sub(1).max(1),
        None => PROMPT_TOKENS,
    };
    let prompt = |i: usize| {
        text.iter()
            .copied()
            .cycle()
            .skip(379 * i)
            .take(len(i))
            .collect()
    };
    (0..count.unwrap_or(PROMPTS)).map(prompt).collect()
}

/// Numbers of ranks, and the most that one of them may hold of the weights in units of its share:
/// sharers of a KV head hold its keys and values each.
const SIZES: [(usize, f64); 4] = [(2, 1.05), (3, 1.05), (4, 1.12), (6, 1.07)];

/// What is read and by whom.
struct Reading {
    path: PathBuf,
    indexer: Indexer,
    contracts: [Contract; 3],
    prompts: Vec<Vec<u32>>,
}

impl Reading {
    fn new(path: PathBuf, count: Option<usize>) -> Self {
        let model = Model::open(&path).expect("a model");
        let files = model.tokenizer().expect("a tokenizer");
        let tokenizer = Tokenizer::from_bytes(&files.tokenizer_json).expect("a tokenizer");
        let text = tokenizer
            .encode(include_str!("../../../assets/gpl-3.0.txt"), false)
            .expect("ids");
        Self {
            path,
            indexer: trained(),
            contracts: default_contracts(),
            prompts: default_prompts(&text, count),
        }
    }

    /// The first `most` prompts by a group, each under the next contract.
    fn by(&self, world_size: usize, activations: Activations, most: usize) -> Vec<Outcome> {
        // Threads change no bit; a rank alone has the whole machine.
        let threads = if world_size == 1 { 2 } else { 1 };
        let options = EngineOptions {
            stride: 256,
            threads,
            activations,
            ..EXACT
        };
        let mut group = group(&self.path, world_size, options, Some(&self.indexer));
        let asked = self.prompts.iter().zip(self.contracts.iter().cycle());
        asked
            .take(most)
            .map(|(prompt, contract)| answer(&mut group, contract, prompt, ANSWER_TOKENS))
            .collect()
    }

    /// A group's outcomes are those of one rank, and its weights are cut evenly.
    fn assert_alike(&self, alone: &[Outcome], many: &[Outcome], group: &str, most: f64) {
        for (index, (one, many)) in alone.iter().zip(many).enumerate() {
            let policy = self.contracts[index % self.contracts.len()].policy();
            let len = self.prompts[index].len();
            let what = format!("{group}, {policy}, prompt {index} of {len} tokens");
            assert_same(one, many, &what);
            let whole = one.weight_bytes[0] as f64 / many.weight_bytes.len() as f64;
            for bytes in &many.weight_bytes {
                let share = *bytes as f64 / whole;
                assert!(
                    (0.95..most).contains(&share),
                    "{group}: a rank holds {share} of its share of weights"
                );
            }
        }
        let entries: usize = many
            .iter()
            .flat_map(|many| many.kept.values())
            .map(|head| head.positions.len())
            .sum();
        eprintln!(
            "{group}: {} prompts, {entries} entries, the bits of one rank",
            many.len()
        );
    }
}

/// `PALIMPSEST_TEST_PROMPTS` asks for more prompts, `PALIMPSEST_TEST_RANKS` for some numbers of
/// ranks only (`2,3`).
#[test]
fn the_default_model_answers_alike() {
    let Some(path) = std::env::var_os("PALIMPSEST_TEST_MODEL").map(PathBuf::from) else {
        eprintln!(
            "SKIPPED: set PALIMPSEST_TEST_MODEL to the default model's GGUF file, or run `cargo \
             xtask test`"
        );
        return;
    };
    let count = std::env::var("PALIMPSEST_TEST_PROMPTS")
        .ok()
        .and_then(|n| n.parse().ok());
    let sizes = std::env::var("PALIMPSEST_TEST_RANKS").ok();
    let sizes: Option<Vec<usize>> = sizes.map(|list| {
        list.split(',')
            .map(|n| n.parse().expect("a number"))
            .collect()
    });
    let reading = Reading::new(path, count);
    for activations in [Activations::Int8, Activations::F32] {
        let alone = reading.by(1, activations, reading.prompts.len());
        for (world_size, most) in SIZES {
            if sizes
                .as_ref()
                .is_some_and(|sizes| !sizes.contains(&world_size))
            {
                continue;
            }
            // Many ranks on few cores wait for each other: unless it was asked for, they read one
            // prompt.
            let asked = if count.is_none() && world_size > 3 {
                1
            } else {
                reading.prompts.len()
            };
            let many = reading.by(world_size, activations, asked);
            let group = format!("{world_size} ranks, {activations:?} activations");
            reading.assert_alike(&alone, &many, &group, most);
        }
    }
}
