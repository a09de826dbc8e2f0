use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{Chat, ChatMessage, KvContract, Stopping, TokenIds};

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

/// All that happens to a request before it is admitted.
fn validate(
    mut request: GenerateRequest,
    timeout: Option<Duration>,
    arrived: Instant,
    model: &ServedModel,
    config: &Config,
) -> Result<ValidRequest, RequestError> {
    let input = request.input.take();
    let checked = super::check(request, timeout, arrived, model, config)?;
    let prompt = tokenize(input, model, config)?;
    checked.with_prompt(prompt, model, config)
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
        .map(|text| ChatMessage::new("user", *text))
        .collect();
    GenerateRequest {
        input: Some(Input::Chat(Chat {
            messages,
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// Checks that `request` is refused for `reason`, with a message that says `part`.
fn refused(request: GenerateRequest, reason: Reason, part: &str) {
    let shown = format!("{request:?}");
    let error = check(request).expect_err(&shown);
    assert_eq!(error.reason, reason, "{error}");
    assert!(
        error.message.contains(part),
        "{error} should say {part}: {shown}"
    );
}

#[test]
fn bad_prompts_have_their_reason() {
    refused(GenerateRequest::default(), Reason::EmptyPrompt, "no tokens");
    refused(text(""), Reason::EmptyPrompt, "no tokens");
    refused(ids(&[]), Reason::EmptyPrompt, "no tokens");
    refused(chat(&[]), Reason::EmptyPrompt, "messages is empty");
    refused(
        ids(&[1, 268]),
        Reason::TokenOutOfRange,
        "token id 268 at index 1 is not below the vocabulary of 268",
    );
}

#[test]
fn bad_names_have_their_reason() {
    let model = GenerateRequest {
        model: "gpt".into(),
        ..text("x")
    };
    refused(model, Reason::UnknownModel, "\"fake\"");
    let id = GenerateRequest {
        request_id: "a b".into(),
        ..text("x")
    };
    refused(id, Reason::BadRequestId, "128");
}

#[test]
fn what_is_wrong_is_named_by_its_path() {
    let field = |request| check(request).unwrap_err().field;
    let sampled = sampling(|s| s.temperature = Some(-0.5));
    assert_eq!(field(sampled), Some("sampling.temperature"));
    let biased = sampling(|s| _ = s.logit_bias.insert(268, 0.0));
    assert_eq!(field(biased), Some("sampling.logit_bias"));
    let stopped = stopping(|s| s.stop = vec![String::new()]);
    assert_eq!(field(stopped), Some("stopping.stop"));
    let contract = kv(|k| k.memory_slots = Some(3));
    assert_eq!(field(contract), Some("kv.memory_slots"));
    assert_eq!(field(text("")), Some("text"));
}

#[test]
fn bad_sampling_has_its_reason_and_its_numbers() {
    let bad = |change: fn(&mut Sampling), part| {
        refused(sampling(change), Reason::BadSampling, part);
    };
    bad(|s| s.temperature = Some(f32::NAN), "temperature is NaN");
    bad(|s| s.temperature = Some(-0.5), "temperature is -0.5");
    bad(
        |s| s.temperature = Some(f32::INFINITY),
        "temperature is inf",
    );
    bad(|s| s.top_p = Some(0.0), "top_p is 0");
    bad(|s| s.top_p = Some(1.5), "top_p is 1.5");
    bad(|s| s.min_p = -1.0, "min_p is -1");
    bad(
        |s| s.repetition_penalty = Some(0.0),
        "repetition_penalty is 0",
    );
    bad(
        |s| s.frequency_penalty = f32::NEG_INFINITY,
        "frequency_penalty is -inf",
    );
    bad(|s| s.presence_penalty = f32::NAN, "presence_penalty is NaN");
    bad(|s| _ = s.logit_bias.insert(268, 0.0), "token id 268");
    bad(|s| _ = s.logit_bias.insert(2, f32::NAN), "token 2 is NaN");
    bad(
        |s| s.logprobs = Some(21),
        "logprobs is 21, over the limit of 20",
    );
}

#[test]
fn bad_stopping_has_its_reason_and_its_numbers() {
    let bad = |change: fn(&mut Stopping), reason, part| refused(stopping(change), reason, part);
    let reason = Reason::BadStopping;
    bad(|s| s.stop = vec!["x".into(); 17], reason, "17 stop strings");
    bad(
        |s| s.stop = vec!["x".into(), String::new()],
        reason,
        "stop string 1 has 0 bytes",
    );
    bad(|s| s.stop = vec!["x".repeat(257)], reason, "257 bytes");
    bad(
        |s| s.max_tokens = Some(1_000_000),
        Reason::TooLong,
        "are 1000001, over the limit of 1000000",
    );
}

/// The largest number that fits the field started before everything else that waited.
#[test]
fn a_priority_out_of_range_is_refused_and_named() {
    let with = |priority| GenerateRequest {
        priority,
        ..text("x")
    };
    for priority in [i32::MIN, -101, 101, i32::MAX] {
        let part = format!("priority is {priority}, it must be -100 to 100");
        refused(with(priority), Reason::BadPriority, &part);
        assert_eq!(check(with(priority)).unwrap_err().field, Some("priority"));
    }
    for priority in [-100, 0, 100] {
        assert_eq!(check(with(priority)).unwrap().priority, priority);
    }
}

#[test]
fn a_contract_of_names_nobody_knows_is_refused() {
    let bad = |change: fn(&mut KvContract), part| refused(kv(change), Reason::BadContract, part);
    bad(
        |k| k.policy = "lru".into(),
        "use one of: full, window, random, retention",
    );
    bad(
        |k| k.memory = "disk".into(),
        "use one of: none, associative",
    );
    bad(
        |k| k.head_budget = "row".into(),
        "uniform, column, layer, group",
    );
    bad(|k| k.positions = "rope".into(), "absolute, compacted");
    // Scores of the server's `window` cannot be compared between heads.
    bad(
        |k| k.head_budget = "layer".into(),
        "use \"uniform\", or one of the policies random, retention",
    );
}

#[test]
fn a_contract_whose_numbers_do_not_fit_is_refused() {
    let bad = |change: fn(&mut KvContract), part| refused(kv(change), Reason::BadContract, part);
    bad(
        |k| (k.budget, k.window) = (100, Some(128)),
        "kv.budget is 100, the least is 133",
    );
    bad(
        |k| (k.budget, k.sinks) = (4, None),
        "kv.budget is 4, the least is 5",
    );
    bad(|k| k.budget = 4097, "over the limit of 4096");
    bad(|k| k.memory_slots = Some(3), "memory_slots is 3");
    bad(
        |k| (k.memory, k.memory_slots) = ("associative".into(), Some(0)),
        "0 slots",
    );
}

/// `full` keeps everything: what else a request asks for is refused, and not dropped.
#[test]
fn full_beside_anything_else_is_refused() {
    let bad = |change: fn(&mut KvContract), part| {
        let change = |k: &mut KvContract| {
            k.policy = "full".into();
            change(k);
        };
        refused(kv(change), Reason::BadContract, part);
    };
    bad(|k| k.memory = "associative".into(), "takes no memory");
    bad(|k| k.memory_slots = Some(3), "leave kv.memory_slots out");
    bad(
        |k| k.positions = "compacted".into(),
        "leave kv.positions out",
    );
    bad(
        |k| k.head_budget = "column".into(),
        "leave kv.head_budget out",
    );
    bad(|k| k.budget = 512, "leave kv.budget out");
    bad(|k| k.sinks = Some(4), "leave kv.sinks out");
    bad(|k| k.window = Some(64), "leave kv.window out");
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
    let warnings = |read| bounded.warnings_after(read, &model());
    assert_eq!(
        warnings(900_000),
        ["positions reach 900000, beyond the trained range of 512"]
    );
    assert_eq!(warnings(512), Vec::<String>::new());
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
    assert_ne!(
        check(text("x")).unwrap().sampling.seed,
        check(text("x")).unwrap().sampling.seed
    );
}

#[test]
fn the_contract_is_completed_by_the_servers_defaults() {
    let get = |request: GenerateRequest| KvContract::from(&check(request).unwrap().kv);
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
    assert_eq!(get(text("the é")), expected);

    let learned = get(kv(|k| {
        (k.policy, k.memory, k.budget) = ("retention".into(), "associative".into(), 1024);
    }));
    assert_eq!(
        (learned.window, learned.memory_slots),
        (Some(64), Some(128))
    );
    assert_eq!(learned.head_budget, "column");

    let small = get(kv(|k| {
        (k.policy, k.memory, k.budget) = ("retention".into(), "associative".into(), 256);
    }));
    assert_eq!((small.window, small.memory_slots), (Some(16), Some(16)));

    let full = get(kv(|k| k.policy = "full".into()));
    assert_eq!((full.memory.as_str(), full.memory_slots), ("none", Some(0)));
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
    let request = check(request).unwrap();
    assert_eq!(request.warnings_after(90_000, &model()), [""; 0]);
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

fn with_config(request: GenerateRequest, config: &Config) -> Result<ValidRequest, RequestError> {
    validate(request, None, Instant::now(), &model(), config)
}

/// The tokenizer would take a hundred times the memory of a text to find out the same.
#[test]
fn a_text_that_cannot_be_a_prompt_is_refused_before_it_is_tokenised() {
    let config = Config {
        max_total_tokens: 100,
        ..config()
    };
    let model = model();
    let longest = "<|im_start|>".len();
    let refused = tokenize(
        Some(Input::Text("x".repeat(100 * longest + 1))),
        &model,
        &config,
    );
    let refused = refused.unwrap_err();
    assert_eq!(refused.reason, Reason::TooLong);
    assert!(refused.message.contains("at least 101 tokens"), "{refused}");
    let encoded = || {
        model
            .tokenizer
            .encoded
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    assert_eq!(encoded(), 0);
    // This one could be: 100 times the longest token.
    let possible = Input::Text("<|im_start|>".repeat(100));
    assert_eq!(
        tokenize(Some(possible), &model, &config).unwrap().ids.len(),
        100
    );
    assert_eq!(encoded(), 1);
}

/// A message of 12 bytes takes hundreds where a template reads it, and is written with 30 more.
#[test]
fn a_conversation_counts_its_messages_as_well_as_their_text() {
    let config = Config {
        max_message_bytes: 10_000,
        ..config()
    };
    let error = with_config(chat(&["x"; 150]), &config).unwrap_err();
    assert_eq!(
        (error.reason, error.field),
        (Reason::TooLong, Some("chat.messages"))
    );
    assert!(
        error.message.contains("150 messages count as 10350 bytes"),
        "{error}"
    );
    with_config(chat(&["x"; 100]), &config).unwrap();
    let Some(Input::Chat(long)) = chat(&["ab", "c"]).input else {
        panic!("it is a chat")
    };
    let roles = Chat {
        answer_prefix: "1234".into(),
        ..long
    };
    assert_eq!(weight(&Input::Chat(roles)), 2 * (64 + 4) + 3 + 4);
    assert_eq!(weight(&Input::TokenIds(TokenIds { ids: vec![1, 2] })), 8);
}

/// All running sequences may report in one step, and a rank's answer has a bound: one that passes
/// it counts as a lost rank.
#[test]
fn a_report_that_no_answer_holds_is_refused_and_says_what_to_do() {
    let report = |budget| GenerateRequest {
        retention_report: true,
        ..kv(move |k| (k.policy, k.budget) = ("window".into(), budget))
    };
    let limited = Config {
        max_running: 128 << 10,
        ..config()
    };
    // 4 heads of 32 + 16 positions of 5 bytes are 960, and a share is 1024.
    let long = |mut request: GenerateRequest| {
        request.stopping = Some(Stopping {
            max_tokens: Some(1000),
            ..Default::default()
        });
        request
    };
    with_config(long(report(32)), &limited).unwrap();
    let error = with_config(long(report(64)), &limited).unwrap_err();
    assert_eq!(
        (error.reason, error.field),
        (Reason::AnswerTooLarge, Some("retention_report"))
    );
    assert!(
        error
            .message
            .contains("takes 1600 bytes, over the limit of 1024"),
        "{error}"
    );
    let silent = GenerateRequest {
        retention_report: false,
        ..report(64)
    };
    with_config(long(silent), &limited).unwrap();
}

#[test]
fn what_is_asked_of_kept_states_has_bounds() {
    let salted = |bytes: usize| GenerateRequest {
        cache_salt: "s".repeat(bytes),
        ..text("x")
    };
    let marked = |count: usize| GenerateRequest {
        snapshot_at: vec![1; count],
        ..text("x")
    };
    let caching = check(marked(MAX_MARKS)).unwrap().caching;
    assert_eq!(caching.marks.len(), MAX_MARKS);
    assert_eq!(
        check(salted(MAX_SALT_BYTES)).unwrap().caching.salt.len(),
        256
    );
    for (request, field) in [
        (salted(MAX_SALT_BYTES + 1), "cache_salt"),
        (marked(MAX_MARKS + 1), "snapshot_at"),
    ] {
        let error = check(request).unwrap_err();
        assert_eq!((error.reason, error.field), (Reason::BadReuse, Some(field)));
    }
}
