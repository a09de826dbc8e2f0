//! The invariant everything rests on: the state after N tokens is a function of those tokens.
//! Whatever the pieces, the threads and the company in a batch, the bits are the same.

use std::path::Path;

use palimpsest_engine::decoder::Logits;
use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::kv::{Bounded, Contract, HeadBudget, Positions};
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_kernels::KvType;
use palimpsest_proto::internal::v1::{SequenceInit, SequenceStep, StepPlan};
use palimpsest_proto::v1::Sampling;
use palimpsest_tests::{
    EngineOptions, FAMILIES, HEAD_DIM, KV_HEADS, LAYERS, STRIDE, VOCABULARY, bounded, contract,
    engine, family, memory, random, tiny_indexer, tiny_indexer_of_two, tiny_model,
};

fn tokens(seed: u64, count: usize) -> Vec<u32> {
    random(seed, count)
        .iter()
        .map(|v| ((v + 1.0) * 0.5 * VOCABULARY as f32) as u32 % VOCABULARY as u32)
        .collect()
}

/// Every policy with a head budget and a memory that exercise it.
fn contracts() -> Vec<Contract> {
    let mut all = vec![Contract::Full];
    for policy in [
        "window",
        "random",
        "h2o",
        "tova",
        "snapkv",
        "knorm",
        "keydiff",
        "lagkv",
        "expected-attention",
        "retention",
        "query-indexer",
    ] {
        let pools = !["window", "knorm", "keydiff", "lagkv"].contains(&policy);
        for head_budget in HeadBudget::ALL {
            if pools || head_budget == HeadBudget::Uniform {
                all.push(contract(policy, head_budget, 0));
            }
        }
        let head_budget = if pools {
            HeadBudget::Column
        } else {
            HeadBudget::Uniform
        };
        all.push(contract(policy, head_budget, 12));
    }
    for (policy, head_budget) in [
        ("window", HeadBudget::Uniform),
        ("retention", HeadBudget::Column),
    ] {
        all.push(Contract::Bounded(Bounded {
            memory: memory("associative", 12),
            ..bounded(policy, head_budget, 12)
        }));
    }
    all.push(Contract::Bounded(Bounded {
        positions: Positions::Compacted,
        ..bounded("retention", HeadBudget::Column, 12)
    }));
    all
}

/// Digest of the state and bits of the logits after `prompt`, read in pieces of `piece` tokens.
fn outcome(
    path: &Path,
    options: EngineOptions,
    contract: &Contract,
    prompt: &[u32],
    piece: usize,
) -> (u64, Vec<u32>) {
    outcome_with(&tiny_indexer(5), path, options, contract, (prompt, piece))
}

fn outcome_with(
    indexer: &Indexer,
    path: &Path,
    options: EngineOptions,
    contract: &Contract,
    (prompt, piece): (&[u32], usize),
) -> (u64, Vec<u32>) {
    let mut runner = engine(path, options, Some(indexer));
    let mut sequence =
        OfflineSequence::open(&mut runner, contract.clone()).expect("a valid contract");
    let mut logits = Vec::new();
    for part in prompt.chunks(piece) {
        logits = sequence.feed(part, Logits::Last).expect("a step");
    }
    (
        sequence.digest().expect("a digest"),
        logits.iter().map(|l| l.to_bits()).collect(),
    )
}

#[test]
fn pieces_and_threads_do_not_change_a_bit() {
    let model = tiny_model(1);
    // Three boundaries beyond the budget, ending between two; past the trained length of 256.
    let prompt = tokens(9, 300);
    for contract in contracts() {
        for kv in [KvType::Q8, KvType::F16, KvType::F32] {
            let options = EngineOptions {
                kv,
                ..Default::default()
            };
            let want = outcome(model.path(), options, &contract, &prompt, STRIDE as usize);
            for (piece, threads) in [(1, 1), (7, 2), (64, 4), (prompt.len(), 2)] {
                let options = EngineOptions { threads, ..options };
                let got = outcome(model.path(), options, &contract, &prompt, piece);
                assert!(
                    got == want,
                    "{contract:?}, {kv:?}: pieces of {piece} on {threads} threads differ"
                );
            }
        }
    }
}

#[test]
fn a_second_scorer_keeps_other_slots_and_the_invariant() {
    let (model, prompt, options) = (tiny_model(1), tokens(9, 300), EngineOptions::default());
    let two = tiny_indexer_of_two(5);
    for head_budget in HeadBudget::ALL {
        let contract = contract("retention", head_budget, 12);
        let want = outcome_with(
            &two,
            model.path(),
            options,
            &contract,
            (&prompt, STRIDE as usize),
        );
        for (piece, threads) in [(1, 1), (7, 2), (prompt.len(), 4)] {
            let options = EngineOptions { threads, ..options };
            let got = outcome_with(&two, model.path(), options, &contract, (&prompt, piece));
            assert!(
                got == want,
                "{contract:?}: pieces of {piece} on {threads} threads differ"
            );
        }
        assert_ne!(
            want,
            outcome(model.path(), options, &contract, &prompt, STRIDE as usize),
            "{contract:?}"
        );
    }
}

#[test]
fn what_was_read_since_a_mark_can_be_forgotten_until_the_next_boundary() {
    let model = tiny_model(1);
    let indexer = tiny_indexer(5);
    let stride = STRIDE as usize;
    let (prompt, other) = (tokens(9, 9 * stride), tokens(10, 2 * stride));
    for contract in contracts() {
        for at in [8 * stride, 8 * stride + 3] {
            let mut runner = engine(model.path(), EngineOptions::default(), Some(&indexer));
            let free = |sequence: &mut OfflineSequence<'_, _>| sequence.cache().held_pages();
            let mut sequence =
                OfflineSequence::open(&mut runner, contract.clone()).expect("a valid contract");
            sequence.feed(&prompt[..at], Logits::None).expect("a step");
            let (mark, pages, digest) = (
                sequence.mark(),
                free(&mut sequence),
                sequence.digest().expect("a digest"),
            );
            sequence
                .feed(&other[..stride - 4], Logits::None)
                .expect("a step");
            assert!(
                sequence.rewind(&mark),
                "{contract:?}: no boundary was passed"
            );
            assert_eq!(
                (free(&mut sequence), sequence.digest().expect("a digest")),
                (pages, digest),
                "{contract:?}"
            );
            let logits = sequence.feed(&prompt[at..], Logits::Last).expect("a step");
            let got = (
                sequence.digest().expect("a digest"),
                logits.iter().map(|l| l.to_bits()).collect(),
            );
            sequence.close();
            let want = outcome(
                model.path(),
                EngineOptions::default(),
                &contract,
                &prompt,
                prompt.len(),
            );
            assert!(got == want, "{contract:?}: what was forgotten left a trace");
            // Beyond a boundary entries may be gone, unless everything is kept.
            let mut sequence =
                OfflineSequence::open(&mut runner, contract.clone()).expect("a valid contract");
            sequence.feed(&prompt[..at], Logits::None).expect("a step");
            let mark = sequence.mark();
            sequence
                .feed(&other[..stride], Logits::None)
                .expect("a step");
            assert_eq!(
                sequence.rewind(&mark),
                contract.bounded().is_none(),
                "{contract:?}"
            );
        }
    }
}

#[test]
fn different_policies_and_memories_make_different_states() {
    let model = tiny_model(1);
    let prompt = tokens(9, 300);
    let options = EngineOptions::default();
    let mut digests: Vec<u64> = contracts()
        .iter()
        .map(|c| outcome(model.path(), options, c, &prompt, 16).0)
        .collect();
    let count = digests.len();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), count, "states coincide that should not");
}

#[test]
fn later_tokens_do_not_change_earlier_logits() {
    let model = tiny_model(3);
    let indexer = tiny_indexer(5);
    let (prompt, cut) = (tokens(11, 200), 150);
    let mut other = prompt.clone();
    other[cut..]
        .iter_mut()
        .for_each(|t| *t = (*t + 1) % VOCABULARY as u32);
    // Entries go to the memory at boundaries, and the row that is read next sees them: it must not
    // see its own future.
    for contract in contracts() {
        let logits = |tokens: &[u32]| {
            let mut runner = engine(model.path(), EngineOptions::default(), Some(&indexer));
            let mut sequence =
                OfflineSequence::open(&mut runner, contract.clone()).expect("a valid contract");
            let logits = sequence.feed(tokens, Logits::All).expect("a step");
            logits.iter().map(|l| l.to_bits()).collect::<Vec<_>>()
        };
        let (a, b) = (logits(&prompt), logits(&other));
        assert!(
            a[..cut * VOCABULARY] == b[..cut * VOCABULARY],
            "{contract:?}: a row read tokens after it"
        );
        assert!(
            a[cut * VOCABULARY..] != b[cut * VOCABULARY..],
            "{contract:?}: the tokens were not read at all"
        );
    }
}

#[test]
fn a_budget_that_holds_everything_is_the_full_cache() {
    let model = tiny_model(2);
    let prompt = tokens(3, 100);
    let full = outcome(
        model.path(),
        EngineOptions::default(),
        &Contract::Full,
        &prompt,
        16,
    );
    for policy in ["window", "h2o", "retention"] {
        let roomy = Contract::Bounded(Bounded {
            budget: 100,
            ..bounded(policy, HeadBudget::Uniform, 0)
        });
        let got = outcome(model.path(), EngineOptions::default(), &roomy, &prompt, 16);
        assert_eq!(got.1, full.1, "{policy} with room for all");
    }
}

#[test]
fn memory_of_a_sequence_stays_within_its_reservation() {
    let model = tiny_model(2);
    let prompt = tokens(4, 400);
    let indexer = tiny_indexer(5);
    for (index, contract) in contracts().into_iter().enumerate().skip(1) {
        let kv = if index % 2 == 0 {
            KvType::F16
        } else {
            KvType::Q8
        };
        let options = EngineOptions {
            kv,
            ..Default::default()
        };
        let mut runner = engine(model.path(), options, Some(&indexer));
        let geometry = palimpsest_proto::kv::Geometry {
            layers: LAYERS as u64,
            kv_heads: KV_HEADS as u64,
            total_kv_heads: KV_HEADS as u64,
            head_dim: HEAD_DIM as u64,
            element_bytes: kv.bytes() as u64,
            scale_bytes: kv.scale_bytes() as u64,
            stride: STRIDE,
        };
        let reserved = palimpsest_proto::kv::reserved_bytes(&contract, &geometry, 1 << 40);
        let page = geometry.page_bytes();
        let mut sequence =
            OfflineSequence::open(&mut runner, contract.clone()).expect("a valid contract");
        let mut most = 0;
        for &token in &prompt {
            sequence.feed(&[token], Logits::None).expect("a step");
            let cache = sequence.cache();
            most = most.max(cache.held_pages() * page + cache.memory_bytes());
        }
        assert!(
            most <= reserved,
            "{contract:?}: {most} bytes held, {reserved} reserved"
        );
        assert!(
            most * 3 > reserved,
            "{contract:?}: the reservation of {reserved} is far above {most}"
        );
    }
}

/// Tokens each sequence samples when the sequences share their steps in different ways.
fn generate(
    path: &Path,
    prompts: &[Vec<u32>],
    contracts: &[Contract],
    indexer: Option<&Indexer>,
    together: bool,
) -> Vec<(Vec<u32>, u64)> {
    let mut runner = engine(
        path,
        EngineOptions {
            threads: 2,
            ..Default::default()
        },
        indexer,
    );
    let answer = 40;
    let mut states: Vec<(usize, Vec<u32>)> = prompts.iter().map(|_| (0, Vec::new())).collect();
    let mut step = 0;
    let mut digests = vec![0; prompts.len()];
    let groups: Vec<Vec<usize>> = if together {
        vec![(0..prompts.len()).collect()]
    } else {
        (0..prompts.len()).map(|i| vec![i]).collect()
    };
    for group in groups {
        while group.iter().any(|&i| states[i].1.len() < answer) {
            step += 1;
            let unfinished = group.iter().filter(|&&i| states[i].1.len() < answer);
            let steps = unfinished
                .map(|&i| next_step(i, &prompts[i], &contracts[i], &states[i], step))
                .collect();
            let plan = StepPlan {
                epoch: 1,
                step,
                sequences: steps,
                ..Default::default()
            };
            let output = runner.execute(&plan);
            assert_eq!(output.error, "");
            for (out, planned) in output.sequences.iter().zip(&plan.sequences) {
                assert_eq!(out.error, "");
                let state = &mut states[out.sequence as usize];
                state.0 += planned.tokens.len();
                state.1.extend(out.token);
            }
        }
        for &i in &group {
            digests[i] = runner
                .digest(i as u64)
                .expect("a digest")
                .expect("a live sequence");
        }
    }
    states.into_iter().map(|s| s.1).zip(digests).collect()
}

/// The next tokens of sequence `i`: up to the boundary, in pieces whose size depends on the step.
fn next_step(
    i: usize,
    prompt: &[u32],
    contract: &Contract,
    state: &(usize, Vec<u32>),
    step: u64,
) -> SequenceStep {
    let (read, answer) = state;
    let all: Vec<u32> = prompt.iter().chain(answer).copied().collect();
    let room = STRIDE as usize - read % STRIDE as usize;
    let count = room
        .min(all.len() - read)
        .min(1 + (step as usize * 7 + i) % 16);
    SequenceStep {
        sequence: i as u64,
        init: (*read == 0).then(|| SequenceInit {
            kv: Some(contract.into()),
            sampling: Some(Sampling {
                temperature: Some(0.8),
                seed: Some(i as u64),
                frequency_penalty: 0.3,
                ..Default::default()
            }),
            max_tokens: 1000,
            prompt_tokens: prompt.len() as u64,
            ..Default::default()
        }),
        tokens: all[*read..read + count].to_vec(),
        position: *read as u64,
        sample: read + count == all.len(),
        ..Default::default()
    }
}

#[test]
fn company_in_a_batch_does_not_change_a_bit() {
    let model = tiny_model(6);
    let prompts: Vec<_> = (0..8)
        .map(|i| tokens(20 + i, 30 + 37 * i as usize))
        .collect();
    let all = contracts();
    let contracts: Vec<_> = (0..8).map(|i| all[i * 5 % all.len()].clone()).collect();
    let indexer = tiny_indexer(5);
    let read = |together| generate(model.path(), &prompts, &contracts, Some(&indexer), together);
    assert_eq!(read(false), read(true));
}

/// Rows of one step go to other experts, see other windows and turn otherwise.
#[test]
fn company_in_a_batch_does_not_change_a_bit_of_any_family() {
    let prompts: Vec<Vec<u32>> = (0..5)
        .map(|i| tokens(20 + i, 30 + 37 * i as usize))
        .map(|prompt| prompt.into_iter().map(|token| token % 64).collect())
        .collect();
    let policies = ["window", "h2o", "snapkv", "keydiff"];
    let bounded = policies.map(|policy| contract(policy, HeadBudget::Uniform, 0));
    let contracts: Vec<_> = [Contract::Full].into_iter().chain(bounded).collect();
    for name in FAMILIES {
        let read = |together| generate(&family(name), &prompts, &contracts, None, together);
        assert_eq!(read(false), read(true), "{name}");
    }
}

#[test]
fn what_a_plan_may_not_ask_fails_that_sequence_alone() {
    let model = tiny_model(6);
    let mut runner = engine(model.path(), EngineOptions::default(), None);
    let contract = contract("window", HeadBudget::Uniform, 0);
    let prompt = tokens(1, 10);
    let good = |id: usize| next_step(id, &prompt, &contract, &(0, Vec::new()), 2);
    let with = |id: usize, change: &dyn Fn(&mut SequenceStep)| {
        let mut step = good(id);
        change(&mut step);
        step
    };
    let sequences = vec![
        good(0),
        with(1, &|s| s.position = 3),
        with(2, &|s| s.tokens = vec![VOCABULARY as u32]),
        with(3, &|s| s.tokens.clear()),
        with(4, &|s| s.tokens = vec![1; STRIDE as usize + 1]),
        with(5, &|s| s.init = None),
        with(6, &|s| {
            s.init
                .as_mut()
                .expect("first step")
                .kv
                .as_mut()
                .expect("set")
                .policy = "nonsense".into()
        }),
    ];
    let output = runner.execute(&StepPlan {
        epoch: 1,
        step: 1,
        sequences,
        ..Default::default()
    });
    assert_eq!(output.error, "");
    let errors: Vec<bool> = output
        .sequences
        .iter()
        .map(|s| !s.error.is_empty())
        .collect();
    assert_eq!(errors, [false, true, true, true, true, true, true]);
    assert!(
        output.sequences[6].error.contains("nonsense"),
        "{}",
        output.sequences[6].error
    );
    // The refused ones hold nothing, and the good one goes on.
    assert!(runner.digest(1).expect("no kernel error").is_none());
    assert!(runner.digest(0).expect("no kernel error").is_some());
}
