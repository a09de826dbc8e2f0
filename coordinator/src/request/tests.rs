use palimpsest_proto::v1::{Chat, ChatMessage, TokenIds};

use super::*;
use crate::executor::fake::{IM_END, IM_START, Script, VOCABULARY};

fn model() -> ServedModel {
    ServedModel::new(vec![Script::endless(0, 1).rank]).unwrap()
}

fn config() -> Config {
    Config {
        max_total_tokens: 1_000_000,
        max_budget: 4096,
        ..Config::default()
    }
}

fn text(text: &str) -> GenerateRequest {
    GenerateRequest {
        input: Some(Input::Text(text.into())),
        ..Default::default()
    }
}

fn ids(ids: &[u32]) -> GenerateRequest {
    let input = Some(Input::TokenIds(TokenIds { ids: ids.to_vec() }));
    let stopping = Some(Stopping {
        max_tokens: Some(8),
        ..Default::default()
    });
    GenerateRequest {
        input,
        stopping,
        ..Default::default()
    }
}

fn check(request: GenerateRequest) -> Result<ValidRequest, RequestError> {
    validate(request, None, Instant::now(), &model(), &config())
}

fn sampling(change: impl FnOnce(&mut Sampling)) -> GenerateRequest {
    let mut sampling = Sampling::default();
    change(&mut sampling);
    GenerateRequest {
        sampling: Some(sampling),
        ..text("x")
    }
}

fn stopping(change: impl FnOnce(&mut Stopping)) -> GenerateRequest {
    let mut stopping = Stopping::default();
    change(&mut stopping);
    GenerateRequest {
        stopping: Some(stopping),
        ..text("x")
    }
}

fn kv(change: impl FnOnce(&mut KvContract)) -> GenerateRequest {
    let mut kv = KvContract::default();
    change(&mut kv);
    GenerateRequest {
        kv: Some(kv),
        ..text("x")
    }
}

fn chat(messages: &[&str]) -> GenerateRequest {
    let messages = messages
        .iter()
        .map(|text| ChatMessage {
            role: "user".into(),
            content: (*text).into(),
        })
        .collect();
    GenerateRequest {
        input: Some(Input::Chat(Chat {
            messages,
            answer_prefix: String::new(),
        })),
        ..Default::default()
    }
}

#[test]
fn every_bad_field_has_its_reason_and_its_numbers() {
    let rows = [
        (GenerateRequest::default(), Reason::EmptyPrompt, "no tokens"),
        (text(""), Reason::EmptyPrompt, "no tokens"),
        (ids(&[]), Reason::EmptyPrompt, "no tokens"),
        (chat(&[]), Reason::EmptyPrompt, "messages is empty"),
        (
            ids(&[1, 268]),
            Reason::TokenOutOfRange,
            "token id 268 at index 1 is not below the vocabulary of 268",
        ),
        (
            GenerateRequest {
                model: "gpt".into(),
                ..text("x")
            },
            Reason::UnknownModel,
            "\"fake\"",
        ),
        (
            GenerateRequest {
                request_id: "a b".into(),
                ..text("x")
            },
            Reason::BadRequestId,
            "128",
        ),
        (
            sampling(|s| s.temperature = Some(f32::NAN)),
            Reason::BadSampling,
            "temperature is NaN",
        ),
        (
            sampling(|s| s.temperature = Some(-0.5)),
            Reason::BadSampling,
            "temperature is -0.5",
        ),
        (
            sampling(|s| s.temperature = Some(f32::INFINITY)),
            Reason::BadSampling,
            "temperature is inf",
        ),
        (
            sampling(|s| s.top_p = Some(0.0)),
            Reason::BadSampling,
            "top_p is 0",
        ),
        (
            sampling(|s| s.top_p = Some(1.5)),
            Reason::BadSampling,
            "top_p is 1.5",
        ),
        (
            sampling(|s| s.min_p = -1.0),
            Reason::BadSampling,
            "min_p is -1",
        ),
        (
            sampling(|s| s.repetition_penalty = Some(0.0)),
            Reason::BadSampling,
            "repetition_penalty is 0",
        ),
        (
            sampling(|s| s.frequency_penalty = f32::NEG_INFINITY),
            Reason::BadSampling,
            "frequency_penalty is -inf",
        ),
        (
            sampling(|s| s.presence_penalty = f32::NAN),
            Reason::BadSampling,
            "presence_penalty is NaN",
        ),
        (
            sampling(|s| _ = s.logit_bias.insert(268, 0.0)),
            Reason::BadSampling,
            "token id 268",
        ),
        (
            sampling(|s| _ = s.logit_bias.insert(2, f32::NAN)),
            Reason::BadSampling,
            "token 2 is NaN",
        ),
        (
            sampling(|s| s.logprobs = Some(21)),
            Reason::BadSampling,
            "logprobs is 21, over the limit of 20",
        ),
        (
            stopping(|s| s.max_tokens = Some(0)),
            Reason::BadStopping,
            "max_tokens is 0",
        ),
        (
            stopping(|s| s.stop = vec!["x".into(); 17]),
            Reason::BadStopping,
            "17 stop strings",
        ),
        (
            stopping(|s| s.stop = vec!["x".into(), String::new()]),
            Reason::BadStopping,
            "stop string 1 has 0 bytes",
        ),
        (
            stopping(|s| s.stop = vec!["x".repeat(257)]),
            Reason::BadStopping,
            "257 bytes",
        ),
        (
            stopping(|s| s.max_tokens = Some(1_000_000)),
            Reason::TooLong,
            "are 1000001, over the limit of 1000000",
        ),
        (
            kv(|k| k.policy = "lru".into()),
            Reason::BadContract,
            "use one of: full, window, random, retention",
        ),
        (
            kv(|k| k.memory = "disk".into()),
            Reason::BadContract,
            "use one of: none, associative",
        ),
        (
            kv(|k| k.head_budget = "row".into()),
            Reason::BadContract,
            "uniform, column, layer, group",
        ),
        (
            kv(|k| k.positions = "rope".into()),
            Reason::BadContract,
            "absolute, compacted",
        ),
        (
            kv(|k| (k.budget, k.window) = (100, Some(128))),
            Reason::BadContract,
            "kv.budget is 100, the least is 133",
        ),
        (
            kv(|k| (k.budget, k.sinks) = (4, None)),
            Reason::BadContract,
            "kv.budget is 4, the least is 5",
        ),
        (
            kv(|k| k.budget = 4097),
            Reason::BadContract,
            "over the limit of 4096",
        ),
        (
            kv(|k| k.memory_slots = Some(3)),
            Reason::BadContract,
            "memory_slots is 3",
        ),
        (
            kv(|k| (k.memory, k.memory_slots) = ("associative".into(), Some(0))),
            Reason::BadContract,
            "0 slots",
        ),
        (
            kv(|k| (k.policy, k.memory) = ("full".into(), "associative".into())),
            Reason::BadContract,
            "takes no memory",
        ),
    ];
    for (request, reason, part) in rows {
        let shown = format!("{request:?}");
        let error = check(request).expect_err(&shown);
        assert_eq!(error.reason, reason, "{error}");
        assert!(error.message.contains(part), "{error} should say {part}");
    }
}

#[test]
fn a_full_cache_too_large_for_the_arena_never_fits() {
    let mut request = kv(|k| k.policy = "full".into());
    request.stopping = Some(Stopping {
        max_tokens: Some(900_000),
        ..Default::default()
    });
    let error = check(request).unwrap_err();
    // 4 heads of 28126 pages of 32 entries of 32 bytes and a note of 8
    assert_eq!(error.reason, Reason::NeverFits);
    assert!(
        error.message.contains("reserves 144005120 bytes of pages")
            && error.message.contains("67108864"),
        "{error}"
    );
    let mut bounded = kv(|k| k.policy = "window".into());
    bounded.stopping = Some(Stopping {
        max_tokens: Some(900_000),
        ..Default::default()
    });
    let bounded = check(bounded).unwrap();
    assert_eq!(
        bounded.cost.bytes(),
        4 * 3 * 32 * (32 + 8),
        "64 + 16 entries are 3 pages a head"
    );
    // A memory that pages would have room for, and the part of memories has not.
    let memory = kv(|k| {
        (k.policy, k.memory) = ("window".into(), "associative".into());
        (k.budget, k.memory_slots) = (4096, Some(3000));
    });
    let mut small = model();
    small.room.latent = 300_000;
    let error = validate(memory, None, Instant::now(), &small, &config()).unwrap_err();
    assert!(
        error.reason == Reason::NeverFits
            && error.message.contains("384000 bytes of latent memory"),
        "{error}"
    );
    assert_eq!(
        bounded.warnings,
        ["positions reach 900001, beyond the trained range of 512"]
    );
}

#[test]
fn defaults_are_filled_in() {
    let request = check(text("the é")).unwrap();
    let sampling = &request.sampling;
    assert_eq!(
        (
            sampling.temperature,
            sampling.top_p,
            sampling.repetition_penalty
        ),
        (Some(0.0), Some(1.0), Some(1.0))
    );
    assert!(sampling.seed.is_some());
    assert_eq!(request.max_tokens, 512);
    let expected = KvContract {
        budget: 64,
        policy: "window".into(),
        memory: "none".into(),
        head_budget: "uniform".into(),
        sinks: Some(4),
        window: Some(8),
        positions: "absolute".into(),
        memory_slots: Some(0),
    };
    assert_eq!(request.kv, expected);
    let learned =
        kv(|k| (k.policy, k.memory, k.budget) = ("retention".into(), "associative".into(), 1024));
    let learned = check(learned).unwrap().kv;
    assert_eq!(
        (
            learned.window,
            learned.memory_slots,
            learned.head_budget.as_str()
        ),
        (Some(64), Some(128), "column")
    );
    let small =
        kv(|k| (k.policy, k.memory, k.budget) = ("retention".into(), "associative".into(), 256));
    let small = check(small).unwrap().kv;
    assert_eq!((small.window, small.memory_slots), (Some(16), Some(16)));
    let full = check(kv(|k| k.policy = "full".into())).unwrap();
    assert_eq!(
        (full.kv.memory.as_str(), full.kv.memory_slots),
        ("none", Some(0))
    );
    assert_ne!(
        check(text("x")).unwrap().sampling.seed,
        check(text("x")).unwrap().sampling.seed
    );
}

#[test]
fn control_tokens_and_the_whole_vocabulary_are_fine() {
    assert_eq!(
        *check(ids(&[IM_START, IM_END])).unwrap().prompt,
        [IM_START, IM_END]
    );
    check(ids(&[VOCABULARY as u32 - 1])).unwrap();
    assert_eq!(*check(text("<|im_end|>")).unwrap().prompt, [IM_END]);
    let chat = check(chat(&["hi"])).unwrap();
    assert_eq!(
        (chat.prompt[0], chat.prompt.last()),
        (IM_START, Some(&u32::from(b'\n')))
    );
}

#[test]
fn compacted_positions_never_leave_the_trained_range() {
    let mut request = kv(|k| k.positions = "compacted".into());
    request.stopping = Some(Stopping {
        max_tokens: Some(90_000),
        ..Default::default()
    });
    assert_eq!(check(request).unwrap().warnings, Vec::<String>::new());
}

#[test]
fn the_nearest_deadline_counts() {
    let at = Instant::now();
    let run = |deadline_ms, timeout| {
        let request = GenerateRequest {
            deadline_ms,
            ..text("x")
        };
        validate(request, timeout, at, &model(), &config()).map(|request| request.deadline - at)
    };
    assert_eq!(run(0, None).unwrap(), config().request_limit);
    assert_eq!(
        run(500, Some(Duration::from_secs(9))).unwrap(),
        Duration::from_millis(500)
    );
    assert_eq!(
        run(5000, Some(Duration::from_millis(7))).unwrap(),
        Duration::from_millis(7)
    );
    assert_eq!(
        run(0, Some(Duration::ZERO)).unwrap_err().reason,
        Reason::DeadlineInQueue
    );
}
