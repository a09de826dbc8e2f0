//! Ranks on emulated CUDA devices that sum there, through NCCL's in-memory twin: the bits of sums
//! on the host, one list of commands a step, the same graphs on all ranks, and an end when a rank
//! dies.
#![cfg(feature = "emulate")]

use std::sync::Arc;
use std::time::Duration;

use palimpsest_collective::local::LocalGroup;
use palimpsest_collective::nccl::fake::{Fake, connect};
use palimpsest_collective::{Collective, CollectiveError, Place};
use palimpsest_engine::decoder::Logits;
use palimpsest_engine::error::Error;
use palimpsest_engine::kv::{Contract, HeadBudget};
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::KvType;
use palimpsest_kernels::cuda::emulated::Emulated;
use palimpsest_kernels::cuda::recorded::{Call, Recorded};
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_proto::internal::v1::{SequenceInit, SequenceStep, StepPlan};
use palimpsest_proto::v1::{KvContract, Sampling};
use palimpsest_tests::devices::prompt;
use palimpsest_tests::{
    EngineOptions, LAYERS, STRIDE, contract, engine_on, tiny_indexer_of_two, tiny_model,
};

type Backend = CudaBackend<Recorded<Emulated>>;
type Ends = Vec<Arc<dyn Collective>>;

const PROMPT: usize = 60;
/// Sums of a step: one of embeddings, two in each layer.
const SUMS: usize = 1 + 2 * LAYERS;

/// Ends whose sums stay on the device.
fn on_device(world_size: usize) -> Ends {
    let library = Arc::new(Fake::default());
    let ends = connect(vec![library; world_size], Duration::from_secs(30));
    ends.into_iter()
        .map(|end| Arc::new(end.expect("all came")) as Arc<dyn Collective>)
        .collect()
}

/// Ends whose sums go through the host.
fn through_host(world_size: usize) -> Ends {
    LocalGroup::new(world_size)
        .into_iter()
        .map(|end| Arc::new(end) as Arc<dyn Collective>)
        .collect()
}

/// One engine for each rank, which have joined one epoch.
fn group(ends: Ends, precision: Precision, graphs: bool) -> Vec<Runner<Backend>> {
    let (model, world_size) = (tiny_model(1), ends.len());
    let rank = |(rank, end)| {
        let options = EngineOptions {
            kv: KvType::F32,
            place: Place { rank, world_size },
            ..EngineOptions::default()
        };
        let backend =
            CudaBackend::new(Recorded::new(Emulated::new(0)), precision).with_graphs(graphs);
        let mut runner = engine_on(
            backend,
            model.path(),
            options,
            Some(&tiny_indexer_of_two(5)),
        );
        if world_size > 1 {
            runner.join(1, Some(end));
        }
        runner
    };
    ends.into_iter().enumerate().map(rank).collect()
}

/// What a rank says and does.
#[derive(Debug, PartialEq)]
struct Told {
    answer: Vec<u32>,
    /// Bits of the logits of all steps.
    logits: Vec<Vec<u32>>,
    /// What the device was asked for in each step of decoding, and whether that ended at a
    /// boundary.
    steps: Vec<(Vec<Call>, bool)>,
}

fn greedy(logits: &[f32]) -> u32 {
    (0..logits.len())
        .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
        .expect("a vocabulary") as u32
}

/// Reads the prompt and answers greedily with `tokens` tokens.
fn answer(runner: &mut Runner<Backend>, contract: &Contract, tokens: usize) -> Result<Told, Error> {
    let mut sequence = OfflineSequence::open(runner, contract.clone())?;
    let mut told = Told {
        answer: Vec::new(),
        logits: Vec::new(),
        steps: Vec::new(),
    };
    let mut logits = sequence.feed(&prompt(PROMPT), Logits::Last)?;
    for _ in 0..tokens {
        told.answer.push(greedy(&logits));
        sequence.runner().decoder().backend().device().take();
        logits = sequence.feed(&[greedy(&logits)], Logits::Last)?;
        told.logits
            .push(logits.iter().map(|logit| logit.to_bits()).collect());
        let at_boundary = sequence.cache().seen.is_multiple_of(STRIDE);
        told.steps.push((
            sequence.runner().decoder().backend().device().take(),
            at_boundary,
        ));
    }
    Ok(told)
}

/// All ranks at a time, each on a thread of its own.
fn answer_all(group: &mut [Runner<Backend>], contract: &Contract, tokens: usize) -> Vec<Told> {
    std::thread::scope(|scope| {
        let rank =
            |runner| scope.spawn(move || answer(runner, contract, tokens).expect("an answer"));
        let threads: Vec<_> = group.iter_mut().map(rank).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a rank"))
            .collect()
    })
}

fn names(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(Call::name).collect()
}

fn count(calls: &[Call], name: &str) -> usize {
    calls.iter().filter(|call| call.name() == name).count()
}

fn contracts() -> [Contract; 3] {
    [
        Contract::Full,
        contract("retention", HeadBudget::Column, 12),
        contract("retention", HeadBudget::Group, 0),
    ]
}

#[test]
fn sums_on_the_device_have_the_bits_of_sums_on_the_host() {
    for contract in contracts() {
        let one = answer_all(
            &mut group(through_host(1), Precision::F32, true),
            &contract,
            20,
        );
        for world_size in [2, 3] {
            let host = answer_all(
                &mut group(through_host(world_size), Precision::F32, true),
                &contract,
                20,
            );
            let device = answer_all(
                &mut group(on_device(world_size), Precision::F32, true),
                &contract,
                20,
            );
            for (rank, (device, host)) in device.iter().zip(&host).enumerate() {
                assert_eq!(
                    device.logits, host.logits,
                    "rank {rank} of {world_size}, {contract:?}"
                );
                assert_eq!(
                    device.answer, one[0].answer,
                    "rank {rank} of {world_size}, {contract:?}"
                );
                let put_off = |(calls, at_boundary): &(Vec<Call>, bool)| {
                    *at_boundary || count(calls, "upload") == 1
                };
                assert!(device.steps.iter().all(put_off), "steps are put off");
            }
        }
    }
}

/// Within a step of decoding nothing goes to the host or comes from there: one upload and one list,
/// then two waits, for what the ranks compare and for what they gather.
#[test]
fn a_step_of_a_group_is_one_list_with_its_sums() {
    let contract = contract("retention", HeadBudget::Column, 12);
    for told in answer_all(
        &mut group(on_device(2), Precision::Bf16, false),
        &contract,
        20,
    ) {
        let mut boundaries = 0;
        for (calls, at_boundary) in &told.steps[1..] {
            let names = names(calls);
            assert_eq!(
                (names[0], count(calls, "sum")),
                ("upload", SUMS),
                "{names:?}"
            );
            let waits = names
                .iter()
                .position(|&name| name == "wait")
                .expect("an answer");
            assert_eq!(
                names[1..waits]
                    .iter()
                    .filter(|&&name| name == "upload")
                    .count(),
                0,
                "{names:?}"
            );
            assert!(
                names[..waits].contains(&"gather_rows"),
                "all of the step comes before: {names:?}"
            );
            if *at_boundary {
                boundaries += 1;
            } else {
                assert_eq!(names[waits..], ["wait", "wait"]);
                assert_eq!(count(calls, "alloc"), 0, "{names:?}");
            }
        }
        assert_eq!(boundaries, 2);
        // Between a product and its sum is one kernel, behind the sum another.
        let names = names(&told.steps[1].0);
        let around: Vec<[&str; 3]> = (1..names.len() - 1)
            .filter(|&i| names[i] == "sum")
            .map(|i| [names[i - 1], names[i], names[i + 1]])
            .collect();
        assert_eq!(around[0][..2], ["embed", "sum"]);
        assert!(
            around[1..]
                .iter()
                .all(|around| *around == ["to_fixed", "sum", "from_fixed"]),
            "{around:?}"
        );
    }
}

/// Ranks replay in the same steps, also where their heads keep other numbers of slots.
#[test]
fn ranks_capture_and_replay_together() {
    for contract in contracts() {
        let told = answer_all(
            &mut group(on_device(3), Precision::Bf16, true),
            &contract,
            24,
        );
        let of = |told: &Told, name| {
            told.steps
                .iter()
                .map(|(calls, _)| count(calls, name))
                .collect::<Vec<_>>()
        };
        for other in &told[1..] {
            for name in ["capture", "replay", "sum"] {
                assert_eq!(of(other, name), of(&told[0], name), "{name}, {contract:?}");
            }
        }
        let quiet =
            |(calls, _): &&(Vec<Call>, bool)| names(calls) == ["upload", "replay", "wait", "wait"];
        let replayed = told[0].steps.iter().filter(quiet).count();
        assert!(
            replayed >= 16,
            "{replayed} of 24 steps are replayed, {contract:?}"
        );
    }
}

/// A rank that cannot capture keeps the others from it, and changes nothing else.
#[test]
fn no_rank_replays_what_another_cannot() {
    let contract = contract("retention", HeadBudget::Column, 12);
    let free = answer_all(
        &mut group(on_device(2), Precision::Bf16, true),
        &contract,
        20,
    );
    let mut held = group(on_device(2), Precision::Bf16, true);
    held[1].decoder().backend().device().refuse_captures();
    let held = answer_all(&mut held, &contract, 20);
    for (free, held) in free.iter().zip(&held) {
        assert!(
            free.steps
                .iter()
                .any(|(calls, _)| count(calls, "replay") > 0)
        );
        // What is without sums, behind a boundary, is nobody else's business.
        let with_sums = |(calls, _): &&(Vec<Call>, bool)| count(calls, "sum") != SUMS;
        assert_eq!(
            held.steps.iter().filter(with_sums).count(),
            0,
            "every step's sums are started one by one"
        );
        assert_eq!(held.logits, free.logits);
    }
}

/// A rank dies in the middle of an answer. The others say why their step failed, join the next
/// epoch with a new rank, and answer as if nothing had happened, with graphs of that epoch.
#[test]
fn a_rank_that_dies_ends_the_epoch_and_not_the_group() {
    let contract = contract("retention", HeadBudget::Column, 12);
    let mut ranks = group(on_device(2), Precision::Bf16, true);
    let want = answer_all(&mut ranks, &contract, 12);
    let (survivor, dying) = ranks.split_at_mut(1);
    let failed = std::thread::scope(|scope| {
        let survivor = scope.spawn(|| answer(&mut survivor[0], &contract, 12));
        answer(&mut dying[0], &contract, 6).expect("half an answer");
        dying[0]
            .decoder()
            .peers()
            .collective()
            .expect("a group")
            .abort();
        survivor
            .join()
            .expect("a rank")
            .expect_err("its peer is gone")
    });
    assert!(
        matches!(failed, Error::Collective(CollectiveError::PeerGone(_))),
        "{failed}"
    );
    for (runner, end) in ranks.iter_mut().zip(on_device(2)) {
        runner.join(2, Some(end));
    }
    let again = answer_all(&mut ranks, &contract, 12);
    for (again, want) in again.iter().zip(&want) {
        assert_eq!(again.logits, want.logits);
        let first = again
            .steps
            .iter()
            .find(|(calls, _)| count(calls, "replay") > 0)
            .expect("graphs");
        assert_eq!(count(&first.0, "capture"), 1, "the old epoch's are gone");
    }
}

/// The coordinator ends the epoch while a rank waits for the others.
#[test]
fn an_epoch_that_is_ended_ends_the_step() {
    let mut ranks = group(on_device(2), Precision::Bf16, true);
    let end = ranks[0]
        .decoder()
        .peers()
        .collective()
        .expect("a group")
        .clone();
    let failed = std::thread::scope(|scope| {
        let alone = scope.spawn(|| answer(&mut ranks[0], &Contract::Full, 1));
        std::thread::sleep(Duration::from_millis(100));
        end.abort();
        alone
            .join()
            .expect("a rank")
            .expect_err("the epoch was ended")
    });
    assert!(
        matches!(failed, Error::Collective(CollectiveError::Aborted)),
        "{failed}"
    );
}

/// A rank whose hidden states are other ones, as a damaged memory would have them, is found by its
/// digest. What it was asked to do for that, the others did not do, and still their steps have the
/// same sums.
#[test]
fn a_rank_that_diverges_keeps_step() {
    const DIVERGES: u64 = 8;
    let mut ranks = group(on_device(2), Precision::Bf16, true);
    ranks[1].diverge_at(vec![DIVERGES]);
    let digests = |runner: &mut Runner<Backend>| -> Vec<u64> {
        let mut seen = 0;
        let pieces = prompt(48)
            .chunks(STRIDE as usize)
            .map(<[u32]>::to_vec)
            .collect::<Vec<_>>();
        let mut step = |(number, tokens): (usize, Vec<u32>)| {
            let init = (number == 0).then(|| SequenceInit {
                kv: Some(KvContract {
                    policy: "full".into(),
                    ..Default::default()
                }),
                sampling: Some(Sampling {
                    temperature: Some(0.0),
                    ..Default::default()
                }),
                max_tokens: 100,
                prompt_tokens: 100,
                ..Default::default()
            });
            let (count, position) = (tokens.len(), seen);
            seen += count as u64;
            let sequence = SequenceStep {
                sequence: 1,
                init,
                tokens,
                position,
                sample: true,
                ..Default::default()
            };
            let plan = StepPlan {
                epoch: 1,
                step: number as u64,
                sequences: vec![sequence],
                ..Default::default()
            };
            let output = runner.execute(&plan);
            assert_eq!(output.error, "", "step {number}");
            output.digest
        };
        pieces
            .into_iter()
            .chain((0..8).map(|token| vec![token]))
            .enumerate()
            .map(&mut step)
            .collect()
    };
    let told: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = ranks
            .iter_mut()
            .map(|runner| scope.spawn(|| digests(runner)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a rank"))
            .collect()
    });
    let same = told[0]
        .iter()
        .zip(&told[1])
        .take_while(|(one, other)| one == other)
        .count();
    assert_eq!((same as u64 + 1, told[0].len()), (DIVERGES, 11));
}
