//! Requests over gRPC against a real engine on a tiny model.

use palimpsest_coordinator::Config;
use palimpsest_engine::decoder::Logits;
use palimpsest_engine::kv::Contract;
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_proto::error::REASON_KEY;
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{
    FinishReason, GenerateRequest, HeadRetention, KvContract, RetentionReport, Sampling, Stopping,
    TokenIds,
};
use palimpsest_tests::service::{ask, serve};
use palimpsest_tests::{
    EngineOptions, HEAD_DIM, KV_HEADS, LAYERS, engine, random, tiny_indexer, tiny_model,
};
use tonic::Code;

const ARENA: usize = 8 << 20;

fn prompt(seed: u64, count: usize) -> Vec<u32> {
    random(seed, count)
        .iter()
        .map(|v| ((v + 1.0) * 0.5 * 255.0) as u32)
        .collect()
}

/// A policy that keeps everything takes no budget.
fn request(ids: &[u32], policy: &str, budget: u32, max_tokens: u32) -> GenerateRequest {
    let budget = if policy == "full" { 0 } else { budget };
    GenerateRequest {
        input: Some(Input::TokenIds(TokenIds { ids: ids.to_vec() })),
        sampling: Some(Sampling {
            logprobs: Some(0),
            ..Default::default()
        }),
        stopping: Some(Stopping {
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            ..Default::default()
        }),
        kv: Some(KvContract {
            policy: policy.into(),
            budget,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Greedy tokens of the engine alone, under the contract the service said it used.
fn alone(path: &std::path::Path, ids: &[u32], kv: &KvContract, count: usize) -> Vec<u32> {
    let mut runner = engine(path, EngineOptions::default(), Some(&tiny_indexer(5)));
    let contract = Contract::try_from(kv).expect("a contract the service accepted");
    let mut sequence = OfflineSequence::open(&mut runner, contract).expect("a valid contract");
    let mut logits = sequence.feed(ids, Logits::Last).expect("a step");
    let mut tokens = Vec::new();
    while tokens.len() < count {
        // The service bans the end of sequence where a request ignores it.
        logits[267] = f32::NEG_INFINITY;
        let best =
            (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
        tokens.push(best.expect("a vocabulary") as u32);
        logits = sequence
            .feed(&tokens[tokens.len() - 1..], Logits::Last)
            .expect("a step");
    }
    tokens
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_share_steps_answer_as_if_alone() {
    let model = tiny_model(11);
    let service = serve(
        model.path(),
        Some(tiny_indexer(5)),
        ARENA,
        Config::default(),
    )
    .await;
    let policies = [
        "full",
        "window",
        "retention",
        "h2o",
        "tova",
        "random",
        "keydiff",
        "snapkv",
    ];
    let prompts: Vec<_> = (0..policies.len())
        .map(|i| prompt(40 + i as u64, 20 + 45 * i))
        .collect();
    let asked: Vec<_> = policies
        .into_iter()
        .zip(&prompts)
        .map(|(policy, ids)| {
            let (client, request) = (service.client.clone(), request(ids, policy, 40, 50));
            tokio::spawn(async move { ask(&client, request).await })
        })
        .collect();
    for (answer, ids) in asked.into_iter().zip(&prompts) {
        let answer = answer.await.expect("no panic").expect("an answer");
        let kv = answer.started.kv.clone().expect("the contract");
        assert_eq!(answer.tokens, alone(model.path(), ids, &kv, 50), "{kv:?}");
        assert_eq!(answer.finished.reason(), FinishReason::Length);
    }
    service.server.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_says_what_was_held_and_evicted() {
    let model = tiny_model(12);
    let service = serve(
        model.path(),
        Some(tiny_indexer(5)),
        ARENA,
        Config::default(),
    )
    .await;
    let entry = 2 * HEAD_DIM * 2;
    for policy in ["full", "window", "retention"] {
        let mut request = request(&prompt(3, 333), policy, 40, 10);
        request.retention_report = true;
        let answer = ask(&service.client, request).await.expect("an answer");
        let usage = answer.finished.usage.expect("usage");
        // The last token is generated, but nothing follows it: it never enters the cache.
        let read = 333 + 10 - 1;
        assert_eq!(
            (usage.prompt_tokens, usage.generated_tokens),
            (333, 10),
            "{policy}"
        );
        assert_eq!(usage.held_slots + usage.evicted_tokens, read, "{policy}");
        assert!(
            usage.full_cache_bytes >= read * (LAYERS * KV_HEADS * entry) as u64,
            "{policy}"
        );
        assert!(
            usage.held_bytes <= answer.started.reserved_bytes,
            "{policy}"
        );
        if policy == "full" {
            assert_eq!(usage.evicted_tokens, 0);
        } else {
            // What the budget leaves beside the memory after the boundary at 336, and 6 more. Only
            // the learned policy has a memory unless the request says so: a sixteenth of a small
            // budget, four entries at least.
            let memory_slots = if policy == "retention" { 4 } else { 0 };
            assert_eq!(
                answer.started.kv.as_ref().and_then(|kv| kv.memory_slots),
                Some(memory_slots),
                "{policy}"
            );
            assert_eq!(
                usage.held_slots,
                u64::from(40 - memory_slots) + 6,
                "{policy}"
            );
        }
        let report = answer.finished.retention.expect("the report");
        assert_complete(&report, usage.held_slots, policy);
    }
    // A short text takes as much as it would without eviction, and never more.
    for (policy, tokens) in [("window", 5), ("retention", 5), ("retention", 45)] {
        let asked = request(&prompt(3, tokens), policy, 40, 2);
        let answer = ask(&service.client, asked).await.expect("an answer");
        let usage = answer.finished.usage.expect("usage");
        assert_eq!(usage.evicted_tokens, 0, "{policy}, {tokens}");
        assert_eq!(
            usage.held_bytes, usage.full_cache_bytes,
            "{policy}, {tokens}"
        );
    }
    service.server.shut_down().await;
}

/// A report of all heads, whose positions are as many as are held, in order, sinks among them.
fn assert_complete(report: &RetentionReport, held_slots: u64, policy: &str) {
    assert_eq!(report.heads.len(), LAYERS * KV_HEADS);
    let held: usize = report.heads.iter().map(|h| h.positions.len()).sum();
    assert_eq!(
        held as u64,
        held_slots * (LAYERS * KV_HEADS) as u64,
        "{policy}"
    );
    for head in &report.heads {
        assert!(head.positions.windows(2).all(|p| p[0] < p[1]));
        assert!(
            head.positions.starts_with(&[0, 1, 2, 3]),
            "sinks are never evicted"
        );
    }
}

/// A map of a real engine comes while it reads, and tells what the list of positions does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maps_tell_what_heads_keep_while_a_prompt_is_read() {
    let model = tiny_model(12);
    let indexer = Some(tiny_indexer(5));
    let service = serve(model.path(), indexer, ARENA, Config::default()).await;
    let mut request = request(&prompt(3, 333), "retention", 40, 10);
    (request.retention_map, request.retention_report) = (true, true);
    let mut events = service
        .client
        .clone()
        .generate(request)
        .await
        .expect("a stream");
    let (mut maps, mut report) = (Vec::new(), None);
    while let Some(event) = events.get_mut().message().await.expect("an event") {
        match event.event.expect("an event") {
            Event::RetentionMap(map) => maps.push(map),
            Event::Finished(finished) => report = finished.retention,
            _ => {}
        }
    }
    // The last boundary is in the answer, and the prompt ends before it.
    let told: Vec<usize> = maps.iter().map(|map| map.shares.len()).collect();
    assert!(told.ends_with(&[333, 336]) && told.is_sorted(), "{told:?}");
    assert!(
        told.len() > 2,
        "nothing was told while the prompt was read: {told:?}"
    );
    let last = maps.last().expect("a map");
    let heads = report.expect("the report").heads;
    for (position, share) in last.shares.iter().enumerate() {
        let lists = |head: &&HeadRetention| head.positions.contains(&(position as u32));
        let held = heads.iter().filter(lists).count();
        assert_eq!(
            usize::from(*share),
            (255 * held).div_ceil(heads.len()),
            "{position}"
        );
    }
    // What is held is what the budget allows, and a full cache grows.
    for map in maps
        .iter()
        .filter(|map| map.shares.len().is_multiple_of(16))
    {
        assert!(map.held_slots <= 40, "{} slots", map.held_slots);
        let entry = (LAYERS * KV_HEADS * 2 * HEAD_DIM * 2) as u64;
        assert_eq!(map.full_cache_bytes, map.shares.len() as u64 * entry);
    }
    service.server.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_named_and_the_service_goes_on() {
    let model = tiny_model(13);
    // Room for 64 pages: a full cache of 400 tokens takes 78, a bounded one fits.
    let service = serve(
        model.path(),
        None,
        64 * 32 * 2 * HEAD_DIM * 2,
        Config::default(),
    )
    .await;
    let good = || request(&prompt(1, 300), "window", 40, 5);
    type Change = fn(&mut GenerateRequest);
    let bad: [(&str, Code, Change); 9] = [
        ("empty_prompt", Code::InvalidArgument, |r| r.input = None),
        ("token_out_of_range", Code::InvalidArgument, |r| {
            r.input = Some(Input::TokenIds(TokenIds { ids: vec![1, 268] }));
        }),
        ("bad_contract", Code::InvalidArgument, |r| {
            r.kv.as_mut().expect("set").policy = "clairvoyant".into()
        }),
        ("bad_contract", Code::InvalidArgument, |r| {
            let kv = r.kv.as_mut().expect("set");
            (kv.budget, kv.sinks, kv.window) = (10, Some(4), Some(8));
        }),
        ("bad_contract", Code::InvalidArgument, |r| {
            r.kv.as_mut().expect("set").policy = "retention".into()
        }),
        ("bad_sampling", Code::InvalidArgument, |r| {
            r.sampling.as_mut().expect("set").temperature = Some(f32::NAN)
        }),
        ("bad_stopping", Code::InvalidArgument, |r| {
            r.stopping.as_mut().expect("set").stop = vec![String::new()]
        }),
        ("never_fits", Code::InvalidArgument, |r| {
            r.kv = Some(KvContract {
                policy: "full".into(),
                ..Default::default()
            });
            r.stopping.as_mut().expect("set").max_tokens = Some(100);
        }),
        ("unknown_model", Code::NotFound, |r| {
            r.model = "another".into()
        }),
    ];
    for (reason, code, change) in bad {
        let mut request = good();
        change(&mut request);
        let status = ask(&service.client, request).await.expect_err(reason);
        let tag = status
            .metadata()
            .get(REASON_KEY)
            .and_then(|v| v.to_str().ok());
        assert_eq!((tag, status.code()), (Some(reason), code), "{status:?}");
        assert!(!status.message().is_empty());
    }
    let answer = ask(&service.client, good())
        .await
        .expect("the service goes on");
    assert_eq!(answer.finished.usage.expect("usage").generated_tokens, 5);
    service.server.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_stream_returns_its_memory() {
    let model = tiny_model(14);
    // 64 pages with their notes, which are seven parts of eight.
    let bytes = 64 * 32 * (2 * HEAD_DIM * 2 + 8) * 8 / 7;
    let service = serve(model.path(), None, bytes, Config::default()).await;
    for round in 0..20 {
        // Each asks for more than half of the arena, so two cannot run at once.
        let mut stream = service
            .client
            .clone()
            .generate(request(&prompt(round, 20), "full", 0, 150))
            .await
            .expect("accepted")
            .into_inner();
        stream.message().await.expect("an event");
        drop(stream);
    }
    let answer = ask(&service.client, request(&prompt(2, 20), "full", 0, 150))
        .await
        .expect("room again");
    assert_eq!(answer.tokens.len(), 150);
    service.server.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_of_random_weights_needs_a_shape_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "eos_token_id": 7}"#;
    std::fs::write(directory.path().join("config.json"), config).expect("written");
    let path = std::path::PathBuf::from(format!("random:{}", directory.path().display()));
    let service = serve(&path, None, ARENA, Config::default()).await;
    let mut long = request(&prompt(3, 200), "window", 64, 30);
    long.stopping = Some(Stopping {
        max_tokens: Some(30),
        ..Default::default()
    });
    let answered = ask(&service.client, long).await.expect("an answer");
    assert_eq!(answered.tokens.len(), 30, "no token ends it");
    let finished = answered.finished;
    assert_eq!(finished.reason(), FinishReason::Length, "{finished:?}");
}
