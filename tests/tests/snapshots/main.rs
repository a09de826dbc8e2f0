//! A sequence that goes on from a snapshot has the bits of one that was never interrupted: under
//! every policy, memory, head budget and type of element, and at another number of ranks.

mod cases;
mod ranks;

use palimpsest_engine::decoder::Logits;
use palimpsest_engine::kv::Contract;
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_engine::runner::Runner;
use palimpsest_engine::snapshot::Snapshot;
use palimpsest_kernels::{Backend, KvType};
use palimpsest_tests::{EngineOptions, STRIDE, engine, tiny_indexer_of_two, tiny_model};

use crate::cases::{Case, contracts, tokens};
use crate::ranks::{Group, identity};

/// What a sequence comes to.
#[derive(Debug, PartialEq)]
struct End {
    digest: u64,
    evicted: u64,
    logits: Vec<u32>,
}

fn end<B: Backend>(sequence: &mut OfflineSequence<'_, B>, tokens: &[u32]) -> End {
    let logits = sequence.feed(tokens, Logits::Last).expect("a step");
    End {
        digest: sequence.digest().expect("a digest"),
        evicted: sequence.cache().evicted,
        logits: logits.iter().map(|logit| logit.to_bits()).collect(),
    }
}

/// Reads `prompt` in one go, and once more with a snapshot after `at` tokens that another sequence
/// goes on from.
fn check<B: Backend>(runner: &mut Runner<B>, contract: &Contract, prompt: &[u32], at: usize) {
    let mut whole = OfflineSequence::open(runner, contract.clone()).expect("a valid contract");
    let want = end(&mut whole, prompt);
    whole.close();

    let mut first = OfflineSequence::open(runner, contract.clone()).expect("a valid contract");
    first.feed(&prompt[..at], Logits::None).expect("a step");
    let (snapshot, digest) = (
        first.snapshot().expect("a snapshot"),
        first.digest().expect("a digest"),
    );
    assert_eq!(snapshot.position(), at as u64);
    // Whoever goes on disturbs no snapshot, and finds pages that others wrote to.
    first.feed(&prompt[at / 2..], Logits::None).expect("a step");
    first.close();
    for _ in 0..2 {
        let mut second = OfflineSequence::resume(runner, &snapshot).expect("a snapshot of this");
        assert_eq!(second.digest().expect("a digest"), digest, "{contract:?}");
        let got = end(&mut second, &prompt[at..]);
        assert!(got == want, "{contract:?} after {at} tokens");
    }
}

#[test]
fn what_goes_on_from_a_snapshot_has_the_bits_of_what_never_stopped() {
    let (model, indexer) = (tiny_model(1), tiny_indexer_of_two(5));
    let prompt = tokens(9, 300);
    for (index, contract) in contracts().into_iter().enumerate() {
        for kv in [KvType::Q8, KvType::F16, KvType::F32] {
            let options = EngineOptions {
                kv,
                ..EngineOptions::default()
            };
            let mut runner = engine(model.path(), options, Some(&indexer));
            // Before the first eviction, after it, and past the trained length of 256.
            let boundary = [2, 5, 17][index % 3] * STRIDE as usize;
            check(&mut runner, &contract, &prompt, boundary);
        }
    }
}

/// The next token depends on no boundary, and nor does a snapshot.
#[test]
fn a_snapshot_may_stand_between_two_boundaries() {
    let (model, indexer) = (tiny_model(1), tiny_indexer_of_two(5));
    let prompt = tokens(9, 120);
    for contract in contracts() {
        let mut runner = engine(model.path(), EngineOptions::default(), Some(&indexer));
        check(&mut runner, &contract, &prompt, 85);
    }
}

/// A hundred sequences under random contracts are interrupted twice. Each time all ranks write
/// their files, and a group of another size goes on from these.
#[test]
fn what_moves_to_other_ranks_has_the_bits_of_what_never_moved() {
    let (model, indexer) = (tiny_model(1), tiny_indexer_of_two(5));
    for seed in 0..100 {
        let case = Case::random(seed);
        let prompt = tokens(1000 + seed, case.tokens);
        let group = |ranks| Group {
            model: model.path(),
            indexer: &indexer,
            kv: case.kv,
            contract: &case.contract,
            ranks,
        };
        let [first, second] = case.cuts;
        let files = group(case.ranks[0]).read(&[], &prompt[..first]);
        let files = group(case.ranks[1]).read(&files, &prompt[first..second]);
        let got = group(case.ranks[2]).answer(&files, &prompt[second..]);

        let want = group(case.ranks[2]).answer(&[], &prompt);
        let alone = group(1).answer(&[], &prompt);
        for (rank, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(
                got.answer, alone[0].answer,
                "rank {rank}, seed {seed}, {case:?}"
            );
            assert!(
                got.logits == alone[0].logits,
                "rank {rank}, seed {seed}, {case:?}"
            );
            assert!(got == want, "rank {rank}, seed {seed}, {case:?}");
        }
        let untouched = group(1).read(&[], &prompt[..second]);
        let read = |file: &Vec<u8>| Snapshot::decode(file, &identity(case.kv)).expect("a file");
        let whole = read(&untouched[0]);
        let parts = files.iter().map(read).collect();
        let joined = Snapshot::join(parts, whole.extent()).expect("all heads");
        assert!(joined == whole, "seed {seed}, {case:?}");
    }
}

#[cfg(feature = "emulate")]
#[test]
fn a_snapshot_of_the_emulated_device_is_restored_there() {
    use palimpsest_kernels::cuda::emulated::Emulated;
    use palimpsest_kernels::cuda::{CudaBackend, Precision};
    use palimpsest_tests::{devices, engine_on};

    let (model, indexer) = (tiny_model(1), tiny_indexer_of_two(5));
    let prompt = tokens(9, 90);
    // Each of them takes the emulated device its time.
    let contracts = devices::contracts().into_iter().skip(1).step_by(2);
    for (contract, kv) in contracts.zip([KvType::F16, KvType::Q8, KvType::F32]) {
        let options = EngineOptions {
            kv,
            ..EngineOptions::default()
        };
        let backend = CudaBackend::new(Emulated::new(11), Precision::F32);
        let mut runner = engine_on(backend, model.path(), options, Some(&indexer));
        check(&mut runner, &contract, &prompt, 64);
    }
}
