//! What a prompt is asked for beside its answer, against the logits that a forward pass over it
//! gives: log-probabilities of its tokens, and its embedding.

use std::collections::BTreeMap;

use palimpsest_engine::decoder::Logits;
use palimpsest_engine::kv::{Contract, HeadBudget};
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::cpu::CpuBackend;
use palimpsest_proto::internal::v1::{SequenceInit, SequenceOutput, SequenceStep, StepPlan};
use palimpsest_proto::v1::{Embedding, Pooling, Sampling, TokenLogprob};
use palimpsest_tests::{
    HIDDEN, STRIDE, VOCABULARY, contract, random, tiny_indexer_of_two, tiny_model,
};

use crate::group::{EXACT, group};
use crate::tokens;

const TOP: usize = 3;

/// What a sequence is asked for beside its answer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Asked {
    Nothing,
    /// Of the tokens from this position on.
    Likelihood {
        from: u64,
    },
    Embedding(Pooling),
}

impl Asked {
    const fn likelihood(self) -> Option<u64> {
        match self {
            Self::Likelihood { from } => Some(from),
            Self::Nothing | Self::Embedding(_) => None,
        }
    }
}

/// The steps in which a prompt is read and one token is answered, in pieces of at most `piece`
/// tokens.
fn plans(contract: &Contract, prompt: &[u32], piece: usize, asked: Asked) -> Vec<StepPlan> {
    let mut plans = Vec::new();
    let mut at = 0;
    while at < prompt.len() {
        let room = STRIDE as usize - at % STRIDE as usize;
        let end = (at + piece.min(room)).min(prompt.len());
        let init = (at == 0).then(|| SequenceInit {
            kv: Some(contract.into()),
            sampling: Some(Sampling {
                prompt_logprobs: asked.likelihood().map(|_| TOP as u32),
                prompt_logprobs_from: asked.likelihood().unwrap_or(0),
                ..Default::default()
            }),
            pooling: match asked {
                Asked::Embedding(pooling) => pooling.into(),
                Asked::Nothing | Asked::Likelihood { .. } => 0,
            },
            max_tokens: 1000,
            prompt_tokens: prompt.len() as u64,
            ..Default::default()
        });
        let step = SequenceStep {
            sequence: 1,
            init,
            tokens: prompt[at..end].to_vec(),
            position: at as u64,
            sample: end == prompt.len(),
            next: prompt
                .get(end)
                .copied()
                .filter(|_| asked.likelihood().is_some()),
            ..Default::default()
        };
        plans.push(StepPlan {
            step: plans.len() as u64 + 1,
            sequences: vec![step],
            ..Default::default()
        });
        at = end;
    }
    plans
}

/// What one rank told.
#[derive(Debug, PartialEq)]
struct Told {
    scored: Vec<TokenLogprob>,
    embedding: Option<Embedding>,
    token: Option<u32>,
    digest: u64,
}

fn read(runner: &mut Runner<CpuBackend>, plans: &[StepPlan]) -> Told {
    let (mut scored, mut token, mut embedding) = (Vec::new(), None, None);
    for plan in plans {
        let epoch = if runner.is_in(1) { 1 } else { 0 };
        let output = runner.execute(&StepPlan {
            epoch,
            ..plan.clone()
        });
        assert_eq!(output.error, "");
        let [one]: [SequenceOutput; 1] = output.sequences.try_into().expect("one sequence");
        assert_eq!(one.error, "");
        scored.extend(one.prompt_logprobs);
        token = one.token;
        assert!(embedding.is_none(), "it comes with the prompt's end");
        embedding = one.embedding;
    }
    let digest = runner.digest(1).expect("a digest").expect("it lives");
    Told {
        scored,
        embedding,
        token,
        digest,
    }
}

/// Ranks of a group, each on a thread of its own.
fn read_on_all(group: &mut [Runner<CpuBackend>], plans: &[StepPlan]) -> Vec<Told> {
    std::thread::scope(|scope| {
        let rank = |runner| scope.spawn(move || read(runner, plans));
        let threads: Vec<_> = group.iter_mut().map(rank).collect();
        let told = threads.into_iter().map(|thread| thread.join());
        told.map(|told| told.expect("a rank")).collect()
    })
}

/// The definition, in double precision.
fn expected(logits: &[f32], token: u32) -> BTreeMap<u32, f64> {
    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|&a, &b| {
        logits[b as usize]
            .total_cmp(&logits[a as usize])
            .then(a.cmp(&b))
    });
    ids.truncate(TOP);
    let all = ids.into_iter().chain([token]);
    all.map(|id| (id, f64::from(logits[id as usize]) - sum.ln()))
        .collect()
}

#[test]
fn those_of_a_prompt_are_those_of_a_forward_pass_on_any_number_of_ranks() {
    let (model, indexer) = (tiny_model(1), tiny_indexer_of_two(5));
    let prompt = tokens(9, 150);
    for contract in [
        Contract::Full,
        contract("retention", HeadBudget::Column, 12),
    ] {
        let mut one = group(model.path(), 1, EXACT, Some(&indexer));
        let mut sequence = OfflineSequence::open(&mut one[0], contract.clone()).expect("valid");
        let logits = sequence.feed(&prompt, Logits::All).expect("a pass");
        sequence.close();
        let unscored = read(&mut one[0], &plans(&contract, &prompt, 16, Asked::Nothing));
        assert!(unscored.scored.is_empty());

        for (world_size, piece) in [(1, 16), (1, 5), (2, 16), (3, 7)] {
            let mut ranks = group(model.path(), world_size, EXACT, Some(&indexer));
            let told = read_on_all(
                &mut ranks,
                &plans(&contract, &prompt, piece, Asked::Likelihood { from: 0 }),
            );
            for rank in &told {
                assert_eq!(rank.scored, told[0].scored, "ranks tell the same");
                assert_eq!(rank.token, unscored.token, "the answer is the same");
            }
            if world_size == 1 {
                assert_eq!(told[0].digest, unscored.digest, "the state is the same");
            }
            assert_eq!(told[0].scored.len(), prompt.len() - 1);
            let rows = logits.chunks(VOCABULARY).zip(&prompt[1..]);
            for ((row, &token), scored) in rows.zip(&told[0].scored) {
                assert_eq!((scored.id, scored.top.len()), (token, TOP));
                let want = expected(row, token);
                for one in scored.top.iter().chain([scored]) {
                    let want = want.get(&one.id).expect("one of the best");
                    assert!(
                        (f64::from(one.logprob) - want).abs() < 1e-5,
                        "{one:?}, {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn those_of_the_end_of_a_prompt_are_the_same_alone() {
    let (model, indexer) = (tiny_model(1), tiny_indexer_of_two(5));
    let prompt = tokens(9, 150);
    let contract = contract("retention", HeadBudget::Column, 12);
    let told = |from, piece| {
        let mut one = group(model.path(), 1, EXACT, Some(&indexer));
        let asked = Asked::Likelihood { from };
        read(&mut one[0], &plans(&contract, &prompt, piece, asked))
    };
    let all = told(0, 16);
    // Around the boundaries and the edges of pieces, and at both ends.
    for from in [1, 2, 15, 16, 17, 79, 80, 81, 148, 149] {
        for piece in [16, 5] {
            let end = told(from, piece);
            assert_eq!(end.scored, all.scored[from as usize - 1..], "{from}");
            assert_eq!((end.token, end.digest), (all.token, all.digest), "{from}");
        }
    }
}

/// Logits are the head times the final state, so the head times an embedding points where the
/// logits do: those of the last token, or the sum of all.
#[test]
fn an_embedding_is_the_direction_of_the_states_that_logits_are_made_of() {
    const SEED: u64 = 1;
    let (model, prompt) = (tiny_model(SEED), tokens(9, 150));
    // The embedding is the first tensor of the tiny model, and its head.
    let head = random(SEED ^ 1, VOCABULARY * HIDDEN);
    let contract = contract("window", HeadBudget::Uniform, 0);
    let mut one = group(model.path(), 1, EXACT, None);
    let mut sequence = OfflineSequence::open(&mut one[0], contract.clone()).expect("valid");
    let logits = sequence.feed(&prompt, Logits::All).expect("a pass");
    sequence.close();
    let rows: Vec<&[f32]> = logits.chunks(VOCABULARY).collect();
    for pooling in [Pooling::Mean, Pooling::Last] {
        let pooled: Vec<f64> = (0..VOCABULARY)
            .map(|id| match pooling {
                Pooling::Last => f64::from(rows[rows.len() - 1][id]),
                _ => rows.iter().map(|row| f64::from(row[id])).sum(),
            })
            .collect();
        let mut alone = None;
        for (world_size, piece) in [(1, 16), (1, 5), (2, 16), (3, 7)] {
            let asked = Asked::Embedding(pooling);
            let mut ranks = group(model.path(), world_size, EXACT, None);
            let told = read_on_all(&mut ranks, &plans(&contract, &prompt, piece, asked));
            assert!(told.iter().all(|rank| rank.embedding == told[0].embedding));
            let values = told[0].embedding.clone().expect("told").values;
            let length: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
            let seen: Vec<f64> = head
                .chunks(HIDDEN)
                .map(|row| row.iter().zip(&values).map(|(w, x)| f64::from(w * x)).sum())
                .collect();
            let cosine = dot(&seen, &pooled) / (dot(&seen, &seen) * dot(&pooled, &pooled)).sqrt();
            assert!(
                cosine > 1.0 - 1e-6,
                "{pooling:?}, {world_size} ranks: {cosine}"
            );
            // However a prompt is cut and over however many ranks: the same bits.
            assert_eq!(alone.get_or_insert_with(|| values.clone()), &values);
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
