//! A group of ranks answers as one rank does: same logits, same decisions, same entries, bit for
//! bit, and nothing exchanged beyond the usual.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use palimpsest_collective::Place;
use palimpsest_collective::local::LocalGroup;
use palimpsest_coordinator::text::Tokenizer;
use palimpsest_engine::decoder::Logits;
use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::kv::{Contract, Entries, HeadBudget, Positions};
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_engine::peers::Calls;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::KvType;
use palimpsest_kernels::cpu::{Activations, CpuBackend};
use palimpsest_models::Model;
use palimpsest_tests::{
    EngineOptions, KV_HEADS, LAYERS, STRIDE, VOCABULARY, contract, engine, random,
    tiny_indexer_of_two, tiny_model,
};

/// What a group says and does.
#[derive(Debug, Default)]
struct Outcome {
    answer: Vec<u32>,
    /// Digest of the bits of all logits.
    logits: u64,
    /// What is kept, by layer and KV head. Ranks that share a head have told the same.
    kept: BTreeMap<(usize, usize), Head>,
    calls: Vec<Calls>,
    weight_bytes: Vec<usize>,
    held_pages: Vec<u64>,
}

/// What one KV head of one layer keeps.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Head {
    positions: Vec<u32>,
    /// Digest of the bits of keys and values.
    entries: u64,
}

/// One engine for each rank, which have joined one epoch.
fn group(
    path: &Path,
    world_size: usize,
    options: EngineOptions,
    indexer: Option<&Indexer>,
) -> Vec<Runner<CpuBackend>> {
    let rank = |(rank, end)| {
        let place = Place { rank, world_size };
        let mut runner = engine(path, EngineOptions { place, ..options }, indexer);
        if world_size > 1 {
            runner.join(1, Some(Arc::new(end)));
        }
        runner
    };
    LocalGroup::new(world_size)
        .into_iter()
        .enumerate()
        .map(rank)
        .collect()
}

/// Reads `prompt` and answers greedily, every rank on a thread of its own.
fn answer(
    group: &mut [Runner<CpuBackend>],
    contract: &Contract,
    prompt: &[u32],
    tokens: usize,
) -> Outcome {
    let told: Vec<_> = std::thread::scope(|scope| {
        let rank = |runner| scope.spawn(move || answer_rank(runner, contract, prompt, tokens));
        let threads: Vec<_> = group.iter_mut().map(rank).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a rank"))
            .collect()
    });
    let mut outcome = Outcome::default();
    for (rank, told) in told.into_iter().enumerate() {
        if rank == 0 {
            (outcome.answer, outcome.logits) = (told.answer, told.logits);
        } else {
            assert_eq!(outcome.answer, told.answer, "rank {rank} sampled otherwise");
            assert_eq!(outcome.logits, told.logits, "rank {rank} has other logits");
        }
        for (place, head) in told.heads {
            let known = outcome.kept.entry(place).or_insert_with(|| head.clone());
            assert_eq!(*known, head, "sharers of {place:?} decided otherwise");
        }
        outcome.held_pages.push(told.held_pages);
    }
    for runner in group {
        outcome.calls.push(runner.decoder().peers().calls());
        outcome.weight_bytes.push(runner.decoder().weight_bytes());
    }
    outcome
}

/// What one rank says and does.
struct Told {
    answer: Vec<u32>,
    logits: u64,
    heads: Vec<((usize, usize), Head)>,
    held_pages: u64,
}

fn hash_bits(values: &[f32], hash: &mut DefaultHasher) {
    values.iter().for_each(|value| value.to_bits().hash(hash));
}

fn answer_rank(
    runner: &mut Runner<CpuBackend>,
    contract: &Contract,
    prompt: &[u32],
    tokens: usize,
) -> Told {
    let mut sequence = OfflineSequence::open(runner, contract.clone()).expect("a valid contract");
    let (mut answer, mut hash) = (Vec::new(), DefaultHasher::new());
    let mut logits = sequence.feed(prompt, Logits::Last).expect("a step");
    for _ in 0..tokens {
        hash_bits(&logits, &mut hash);
        let best = (0..logits.len())
            .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
            .expect("a vocabulary") as u32;
        answer.push(best);
        logits = sequence.feed(&[best], Logits::Last).expect("a step");
    }
    hash_bits(&logits, &mut hash);
    let logits = hash.finish();
    let (kv_heads, first) = (
        sequence.cache().layout.kv_heads.len(),
        sequence.cache().layout.kv_heads.start,
    );
    let positions: Vec<Vec<u32>> = sequence
        .cache()
        .heads
        .iter()
        .map(|head| head.positions.clone())
        .collect();
    let head = |index: usize, positions: &[u32]| {
        let Entries { keys, values } = sequence.entries(index).expect("entries");
        let mut hash = DefaultHasher::new();
        hash_bits(&keys, &mut hash);
        hash_bits(&values, &mut hash);
        let head = Head {
            positions: positions.to_vec(),
            entries: hash.finish(),
        };
        ((index / kv_heads, first + index % kv_heads), head)
    };
    let heads = positions
        .iter()
        .enumerate()
        .map(|(index, positions)| head(index, positions))
        .collect();
    let held_pages = sequence.cache().held_pages();
    sequence.close();
    Told {
        answer,
        logits,
        heads,
        held_pages,
    }
}

/// Both say and keep the same, bit for bit.
fn assert_same(one: &Outcome, many: &Outcome, what: &str) {
    assert_eq!(many.answer, one.answer, "{what}");
    assert_eq!(many.kept.len(), one.kept.len(), "{what}");
    for (place, head) in &one.kept {
        assert_eq!(
            many.kept[place].positions, head.positions,
            "layer and KV head {place:?} keep others, {what}"
        );
        assert_eq!(
            many.kept[place].entries, head.entries,
            "layer and KV head {place:?} hold others, {what}"
        );
    }
    assert_eq!(many.logits, one.logits, "{what}");
}

fn tokens(seed: u64, count: usize) -> Vec<u32> {
    random(seed, count)
        .iter()
        .map(|v| ((v + 1.0) * 0.5 * VOCABULARY as f32) as u32 % VOCABULARY as u32)
        .collect()
}

/// Contracts whose scores, memories and positions take different ways through a rank.
fn contracts() -> Vec<Contract> {
    let mut all = vec![Contract::full(), contract("window", HeadBudget::Uniform, 0)];
    for policy in [
        "random",
        "retention",
        "query-indexer",
        "h2o",
        "snapkv",
        "keydiff",
    ] {
        all.extend(HeadBudget::ALL.map(|budget| contract(policy, budget, 0)));
    }
    all.extend(
        ["tova", "expected-attention"].map(|policy| contract(policy, HeadBudget::Column, 0)),
    );
    all.push(contract("retention", HeadBudget::Column, 12));
    all.push(Contract {
        memory: "associative".into(),
        ..contract("retention", HeadBudget::Column, 12)
    });
    for budget in HeadBudget::ALL {
        all.push(Contract {
            positions: Positions::Compacted,
            ..contract("retention", budget, 12)
        });
    }
    all
}

/// Exact arithmetic as far as it goes.
const EXACT: EngineOptions = EngineOptions {
    threads: 1,
    activations: Activations::F32,
    kv: KvType::F32,
    stride: STRIDE,
    place: Place::ALONE,
};

#[test]
fn every_number_of_ranks_gives_the_answer_of_one() {
    let (model, indexer) = (tiny_model(1), tiny_indexer_of_two(5));
    let prompt = tokens(9, 300);
    for contract in contracts() {
        let one = answer(
            &mut group(model.path(), 1, EXACT, Some(&indexer)),
            &contract,
            &prompt,
            24,
        );
        // From 4 on ranks share KV heads, unevenly and evenly.
        for world_size in [2, 3, 4, 6] {
            let many = answer(
                &mut group(model.path(), world_size, EXACT, Some(&indexer)),
                &contract,
                &prompt,
                24,
            );
            assert_same(&one, &many, &format!("{world_size} ranks, {contract:?}"));
        }
    }
}

/// The shipped indexer of the default model.
fn trained() -> Indexer {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../assets/indexers/smollm2-135m-instruct.safetensors"
    );
    Indexer::parse(&std::fs::read(file).expect("a file of the repository")).expect("an indexer")
}

/// Prompts over the default model, and their tokens; `PALIMPSEST_TEST_PROMPTS` asks for more,
/// `PALIMPSEST_TEST_RANKS` for some numbers of ranks only (`2,3`).
const PROMPTS: (usize, usize) = (3, 800);
/// Tokens of the shortest and the longest prompt where more are asked for.
const LONG_PROMPTS: (usize, usize) = (2048, 8192);
/// Tokens of an answer.
const ANSWER_TOKENS: usize = 16;

/// What a prompt is read under: the window, and what was trained for the model with the memories it
/// goes with.
fn default_contracts() -> [Contract; 3] {
    let with = |contract: Contract, memory: &str, window| Contract {
        budget: Some(300),
        sinks: 4,
        window,
        memory: memory.into(),
        ..contract
    };
    [
        with(contract("window", HeadBudget::Uniform, 0), "none", 128),
        with(
            contract("retention", HeadBudget::Column, 32),
            "centroid",
            64,
        ),
        with(
            contract("query-indexer", HeadBudget::Column, 32),
            "associative",
            64,
        ),
    ]
}

/// Different parts of one text, which begins anew where it ends.
fn default_prompts(text: &[u32], count: Option<usize>) -> Vec<Vec<u32>> {
    let (shortest, longest) = LONG_PROMPTS;
    let len = |i: usize| match count {
        Some(count) => shortest + i * (longest - shortest) / count.saturating_sub(1).max(1),
        None => PROMPTS.1,
    };
    let prompt = |i: usize| {
        text.iter()
            .copied()
            .cycle()
            .skip(379 * i)
            .take(len(i))
            .collect()
    };
    (0..count.unwrap_or(PROMPTS.0)).map(prompt).collect()
}

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
    let model = Model::open(&path).expect("a model");
    let tokenizer = Tokenizer::from_bytes(&model.tokenizer().expect("a tokenizer").tokenizer_json)
        .expect("a tokenizer");
    let text = tokenizer
        .encode(include_str!("../../assets/gpl-3.0.txt"), false)
        .expect("ids");
    let (prompts, contracts, indexer) = (
        default_prompts(&text, count),
        default_contracts(),
        trained(),
    );
    // Threads change no bit; a rank alone has the whole machine.
    let read = |activations, world_size: usize, most: usize| -> Vec<Outcome> {
        let threads = if world_size == 1 { 2 } else { 1 };
        let options = EngineOptions {
            stride: 256,
            threads,
            activations,
            ..EXACT
        };
        let mut group = group(&path, world_size, options, Some(&indexer));
        let asked = prompts.iter().zip(contracts.iter().cycle()).take(most);
        asked
            .map(|(prompt, contract)| answer(&mut group, contract, prompt, ANSWER_TOKENS))
            .collect()
    };
    for activations in [Activations::Int8, Activations::F32] {
        let alone = read(activations, 1, prompts.len());
        // Sharers of a KV head hold its keys and values each.
        for (world_size, most) in [(2, 1.05), (3, 1.05), (4, 1.12), (6, 1.07)] {
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
                prompts.len()
            };
            let many = read(activations, world_size, asked);
            for (index, (one, many)) in alone.iter().zip(&many).enumerate() {
                let (policy, len) = (
                    &contracts[index % contracts.len()].policy,
                    prompts[index].len(),
                );
                let what = format!(
                    "{world_size} ranks, {activations:?} activations, {policy}, prompt {index} of \
                     {len} tokens"
                );
                assert_same(one, many, &what);
                let whole = one.weight_bytes[0] as f64 / world_size as f64;
                for bytes in &many.weight_bytes {
                    let share = *bytes as f64 / whole;
                    let what = "of its share of weights";
                    assert!(
                        (0.95..most).contains(&share),
                        "a rank of {world_size} holds {share} {what}"
                    );
                }
            }
            let entries: usize = many
                .iter()
                .flat_map(|many| many.kept.values())
                .map(|head| head.positions.len())
                .sum();
            let prompts = many.len();
            eprintln!(
                "{world_size} ranks, {activations:?} activations: {prompts} prompts, {entries} \
                 entries, the bits of one rank"
            );
        }
    }
}

/// One sum after the embedding, two in every layer, one gather of logits where some are wanted;
/// where ranks share a pool, five small sums more at a boundary that evicts.
#[test]
fn nothing_is_exchanged_beyond_the_usual() {
    let (model, indexer) = (tiny_model(1), tiny_indexer_of_two(5));
    let (prompt, answer_tokens) = (tokens(9, 96), 4);
    let steps = 96 / STRIDE + answer_tokens;
    let sums = steps * (1 + 2 * LAYERS as u64);
    for head_budget in HeadBudget::ALL {
        let contract = contract("retention", head_budget, 0);
        let many = answer(
            &mut group(model.path(), 3, EXACT, Some(&indexer)),
            &contract,
            &prompt,
            answer_tokens as usize,
        );
        // Budget 40: boundaries at 48, 64, 80 and 96 evict.
        let counts = if head_budget.spans_ranks() { 4 * 5 } else { 0 };
        let usual = Calls {
            sums,
            gathers: 1 + answer_tokens,
            counts,
        };
        assert_eq!(many.calls, vec![usual; 3], "{head_budget:?}");
    }
    // Sharers of a KV head tell each other what its query heads observed: a gather, and how long it
    // is, at each of these boundaries.
    let contract = contract("h2o", HeadBudget::Column, 0);
    let many = answer(
        &mut group(model.path(), 4, EXACT, None),
        &contract,
        &prompt,
        answer_tokens as usize,
    );
    let usual = Calls {
        sums,
        gathers: 1 + answer_tokens + 4,
        counts: 4,
    };
    assert_eq!(many.calls, vec![usual; 4]);
}

/// With pools of one KV head index a rank holds what its own heads hold in a whole model; pooled
/// over the model, at most the stated cap more; pooled over each layer, what the pools leave it.
#[test]
fn a_rank_holds_its_heads_share() {
    let (model, indexer) = (tiny_model(1), tiny_indexer_of_two(5));
    let prompt = tokens(9, 96);
    for head_budget in HeadBudget::ALL {
        let contract = contract("retention", head_budget, 0);
        let many = answer(
            &mut group(model.path(), KV_HEADS, EXACT, Some(&indexer)),
            &contract,
            &prompt,
            1,
        );
        for kv_head in 0..KV_HEADS {
            let own = many
                .kept
                .iter()
                .filter(|(head, _)| head.1 == kv_head)
                .map(|(_, kept)| kept.positions.len())
                .sum::<usize>();
            // The answer's token came after the last boundary.
            let held = own - LAYERS;
            let (share, protected) = (40 * LAYERS, 10 * LAYERS);
            let most = match head_budget {
                HeadBudget::Uniform | HeadBudget::Column => {
                    assert_eq!(held, share, "{head_budget:?}, KV head {kv_head}");
                    continue;
                }
                HeadBudget::Layer => protected + (share - protected) * KV_HEADS,
                HeadBudget::Group => protected + (share - protected) * 3 / 2,
            };
            assert!(
                held <= most,
                "{head_budget:?}: {held} entries of KV head {kv_head}"
            );
        }
    }
}
