//! A real model that begins with what is kept gives the tokens of one that reads everything.

use palimpsest_coordinator::Config;
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{GenerateRequest, KvContract, Sampling, Stopping, TokenIds, Usage};
use palimpsest_tests::service::{RankMemory, TestService, serve_with};
use palimpsest_tests::{STRIDE, tiny_indexer, tiny_model};

/// `count` tokens that follow from `seed`.
fn tokens(seed: u64, count: u64) -> Vec<u32> {
    let mix = |i: u64| (seed * 1_000_003 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (0..count).map(|i| (mix(i) % 90) as u32).collect()
}

/// What one answer was.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    ids: Vec<u32>,
    usage: Usage,
}

async fn ask(service: &TestService, prompt: &[u32], kv: &KvContract, seed: u64) -> Answer {
    let request = GenerateRequest {
        input: Some(Input::TokenIds(TokenIds {
            ids: prompt.to_vec(),
        })),
        sampling: Some(Sampling {
            temperature: Some(0.9),
            seed: Some(seed),
            // Counts the tokens of prompt and answer, those of a kept state too.
            repetition_penalty: Some(1.2),
            frequency_penalty: 0.2,
            logprobs: Some(0),
            ..Default::default()
        }),
        stopping: Some(Stopping {
            max_tokens: Some(3 * STRIDE as u32 / 2),
            ignore_eos: true,
            ..Default::default()
        }),
        kv: Some(kv.clone()),
        ..Default::default()
    };
    let service = service.coordinator.service();
    let mut answer = service.generate(request, None).await.expect("taken");
    let (mut ids, mut usage) = (Vec::new(), None);
    while let Some(event) = answer.next().await {
        match event.expect("no failure").event {
            Some(Event::Delta(delta)) => ids.extend(delta.tokens.iter().map(|token| token.id)),
            Some(Event::Finished(finished)) => usage = finished.usage,
            _ => {}
        }
    }
    Answer {
        ids,
        usage: usage.expect("finished"),
    }
}

fn contracts() -> Vec<KvContract> {
    let bounded = |policy: &str, memory: &str| KvContract {
        budget: 48,
        policy: policy.into(),
        memory: memory.into(),
        ..Default::default()
    };
    vec![
        KvContract::default(),
        bounded("window", "none"),
        bounded("h2o", "centroid"),
        bounded("expected-attention", "none"),
        KvContract {
            policy: "full".into(),
            ..Default::default()
        },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_have_the_tokens_of_those_that_read_everything() {
    let model = tiny_model(6);
    let serve = |snapshots| {
        let memory = RankMemory {
            arena: 64 << 20,
            snapshots,
        };
        serve_with(
            model.path(),
            Some(tiny_indexer(5)),
            memory,
            Config::default(),
        )
    };
    let (keeping, reading) = (serve(256 << 20).await, serve(0).await);
    for (number, kv) in contracts().iter().enumerate() {
        let mut conversation = tokens(40 + number as u64, 5 * STRIDE + 7);
        for turn in 0..4 {
            let answer = ask(&keeping, &conversation, kv, turn).await;
            let expected = ask(&reading, &conversation, kv, turn).await;
            assert_eq!(answer.ids, expected.ids, "turn {turn} under {kv:?}");
            assert_eq!(expected.usage.cached_tokens, 0);
            let (held, evicted) = (answer.usage.held_slots, answer.usage.evicted_tokens);
            assert_eq!(held, expected.usage.held_slots, "turn {turn} under {kv:?}");
            assert_eq!(
                evicted, expected.usage.evicted_tokens,
                "turn {turn} under {kv:?}"
            );
            let unread = conversation.len() as u64 - answer.usage.cached_tokens;
            // Of a full cache only the ends of prompts are kept.
            let most = if kv.policy == "full" { 3 } else { 2 } * STRIDE;
            assert!(
                turn == 0 || unread <= most,
                "turn {turn} under {kv:?}: {unread} read"
            );
            conversation.extend(answer.ids);
            conversation.extend(tokens(90 + turn, 9));
        }
    }
}
