//! A group of ranks in this process, and what it says and does.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use palimpsest_collective::local::LocalGroup;
use palimpsest_collective::{Collective, Place};
use palimpsest_engine::decoder::Logits;
use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::kv::{Contract, Entries};
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_engine::peers::Calls;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::KvType;
use palimpsest_kernels::cpu::{Activations, CpuBackend};
use palimpsest_tests::{EngineOptions, STRIDE, engine};

/// Exact arithmetic as far as it goes.
pub const EXACT: EngineOptions = EngineOptions {
    threads: 1,
    activations: Activations::F32,
    kv: KvType::F32,
    stride: STRIDE,
    place: Place::ALONE,
};

/// What a group says and does.
#[derive(Debug, Default)]
pub struct Outcome {
    pub answer: Vec<u32>,
    /// Digest of the bits of all logits.
    pub logits: u64,
    /// What is kept, by layer and KV head. Ranks that share a head have told the same.
    pub kept: BTreeMap<(usize, usize), Head>,
    pub calls: Vec<Calls>,
    pub weight_bytes: Vec<usize>,
    pub held_pages: Vec<u64>,
}

/// What one KV head of one layer keeps.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Head {
    pub positions: Vec<u32>,
    /// Digest of the bits of keys and values.
    pub entries: u64,
}

/// One engine for each rank, which have joined one epoch.
pub fn group(
    path: &Path,
    world_size: usize,
    options: EngineOptions,
    indexer: Option<&Indexer>,
) -> Vec<Runner<CpuBackend>> {
    let ends = LocalGroup::new(world_size).into_iter();
    let ends = ends.map(|end| Arc::new(end) as Arc<dyn Collective>);
    group_over(ends.collect(), path, options, indexer)
}

/// The same over other communicators, in rank order.
pub fn group_over(
    ends: Vec<Arc<dyn Collective>>,
    path: &Path,
    options: EngineOptions,
    indexer: Option<&Indexer>,
) -> Vec<Runner<CpuBackend>> {
    let world_size = ends.len();
    let rank = |(rank, end)| {
        let place = Place { rank, world_size };
        let mut runner = engine(path, EngineOptions { place, ..options }, indexer);
        if world_size > 1 {
            runner.join(1, Some(end));
        }
        runner
    };
    ends.into_iter().enumerate().map(rank).collect()
}

/// Reads `prompt` and answers greedily, every rank on a thread of its own.
pub fn answer(
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
pub fn assert_same(one: &Outcome, many: &Outcome, what: &str) {
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
