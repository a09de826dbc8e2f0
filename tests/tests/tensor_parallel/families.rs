//! Families with differences of their own: pieces, threads and ranks change no bit.

use palimpsest_engine::decoder::Logits;
use palimpsest_engine::kv::{Bounded, Contract, HeadBudget, Positions};
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_tests::{EngineOptions, FAMILIES, bounded, contract, engine, family, random};

use crate::group::{EXACT, answer, assert_same, group};

/// Token ids below the vocabulary of the fixtures.
fn tokens(count: usize) -> Vec<u32> {
    let ids = random(9, count).into_iter();
    ids.map(|v| ((v + 1.0) * 32.0) as u32 % 64).collect()
}

/// Ways through a rank that depend on layers: windows, rotations, what is observed.
fn contracts() -> Vec<Contract> {
    let compacted = Bounded {
        positions: Positions::Compacted,
        ..bounded("h2o", HeadBudget::Group, 0)
    };
    vec![
        Contract::Full,
        contract("window", HeadBudget::Uniform, 12),
        contract("expected-attention", HeadBudget::Column, 0),
        Contract::Bounded(compacted),
    ]
}

/// Longer than the context of any of them.
const PROMPT: usize = 280;

#[test]
fn every_family_gives_the_answer_of_one_rank_on_two_and_three() {
    let prompt = tokens(PROMPT);
    for name in FAMILIES {
        let path = family(name);
        for options in [
            EXACT,
            EngineOptions {
                stride: 16,
                ..Default::default()
            },
        ] {
            for contract in contracts() {
                let one = answer(&mut group(&path, 1, options, None), &contract, &prompt, 8);
                for world_size in [2, 3] {
                    let mut many = group(&path, world_size, options, None);
                    let many = answer(&mut many, &contract, &prompt, 8);
                    let what = format!("{name}, {world_size} ranks, {contract:?}");
                    assert_same(&one, &many, &what);
                }
            }
        }
    }
}

#[test]
fn pieces_and_threads_do_not_change_a_bit_of_any_family() {
    let prompt = tokens(PROMPT);
    for name in FAMILIES {
        let path = family(name);
        for contract in contracts() {
            let outcome = |piece: usize, threads: usize| {
                let options = EngineOptions {
                    threads,
                    ..Default::default()
                };
                let mut runner = engine(&path, options, None);
                let mut sequence =
                    OfflineSequence::open(&mut runner, contract.clone()).expect("a valid contract");
                let mut logits = Vec::new();
                for part in prompt.chunks(piece) {
                    logits = sequence.feed(part, Logits::Last).expect("a step");
                }
                let bits: Vec<u32> = logits.iter().map(|l| l.to_bits()).collect();
                (sequence.digest().expect("a digest"), bits)
            };
            let want = outcome(16, 1);
            for (piece, threads) in [(1, 1), (7, 2), (PROMPT, 3)] {
                let what = format!("{name}, {contract:?}: pieces of {piece}, {threads} threads");
                assert!(outcome(piece, threads) == want, "{what}");
            }
        }
    }
}
