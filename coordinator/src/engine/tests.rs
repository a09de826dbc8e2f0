//! The engine with everything above and below it, over fake ranks, under paused time.

use std::time::Duration;

use palimpsest_proto::error::RequestError;
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{
    FinishReason, Finished, GenerateEvent, GenerateRequest, KvContract, Sampling, Started,
    Stopping, TokenIds,
};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::Coordinator;
use crate::answer::Answer;
use crate::executor::ChannelExecutor;
use crate::executor::fake::{FakeRank, Fault, Script};

const STEP: Duration = Duration::from_millis(10);

fn config() -> Config {
    Config {
        step_limit: Duration::from_secs(5),
        ring_tokens: 8,
        ..Config::default()
    }
}

fn executor(ranks: &[FakeRank], config: &Config) -> Box<dyn Executor> {
    Box::new(ChannelExecutor::new(
        ranks.iter().map(FakeRank::spawn).collect(),
        config.step_limit,
    ))
}

async fn start_with(config: Config, scripts: Vec<Script>) -> (Coordinator, Vec<FakeRank>) {
    let ranks: Vec<_> = scripts
        .into_iter()
        .map(|script| FakeRank::new(script.with_step_time(STEP)))
        .collect();
    let infos = ranks.iter().map(FakeRank::info).collect();
    let coordinator = Coordinator::build(config.clone(), executor(&ranks, &config), infos).unwrap();
    assert!(coordinator.ready().await);
    (coordinator, ranks)
}

fn prompt(tokens: u32, max_tokens: u32) -> GenerateRequest {
    let ids = (0..tokens).map(|i| 97 + i % 26).collect();
    let stopping = Stopping {
        max_tokens: Some(max_tokens),
        ..Default::default()
    };
    let input = Some(Input::TokenIds(TokenIds { ids }));
    GenerateRequest {
        input,
        stopping: Some(stopping),
        ..Default::default()
    }
}

struct Whole {
    started: Started,
    text: String,
    finished: Finished,
}

async fn events(answer: &mut Answer) -> Result<Vec<GenerateEvent>, RequestError> {
    let mut events = Vec::new();
    while let Some(event) = answer.next().await {
        events.push(event?);
    }
    Ok(events)
}

async fn whole(answer: &mut Answer) -> Result<Whole, RequestError> {
    let events = events(answer).await?;
    let (mut started, mut text, mut finished) = (None, String::new(), None);
    for (number, event) in events.into_iter().enumerate() {
        assert_eq!(event.sequence_number, number as u64);
        match event.event.unwrap() {
            Event::Started(event) => assert!(started.replace(event).is_none() && number == 0),
            Event::Delta(delta) => text.push_str(&delta.text),
            Event::Finished(event) => assert!(finished.replace(event).is_none()),
        }
    }
    Ok(Whole {
        started: started.unwrap(),
        text,
        finished: finished.unwrap(),
    })
}

async fn generate(
    coordinator: &Coordinator,
    request: GenerateRequest,
) -> Result<Whole, RequestError> {
    whole(&mut coordinator.service().generate(request, None).await?).await
}

async fn first_delta(answer: &mut Answer) {
    loop {
        if let Some(Event::Delta(_)) = answer.next().await.unwrap().unwrap().event {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_with_characters_over_many_tokens_and_exact_usage() {
    let (coordinator, _) = start_with(
        config(),
        vec![Script::saying("é 👍🏽!", 0, 2), Script::saying("é 👍🏽!", 1, 2)],
    )
    .await;
    let request = GenerateRequest {
        request_id: "mine".into(),
        ..prompt(40, 50)
    };
    let whole = generate(&coordinator, request).await.unwrap();
    assert_eq!(whole.text, "é 👍🏽!");
    assert_eq!(
        (
            whole.started.request_id.as_str(),
            whole.started.prompt_tokens
        ),
        ("mine", 40)
    );
    assert_eq!(whole.finished.reason(), FinishReason::Eos);
    let usage = whole.finished.usage.unwrap();
    // 12 bytes and the end: 13 sampled, 52 fed; 2 layers x 2 heads x 32 bytes a token.
    assert_eq!((usage.prompt_tokens, usage.generated_tokens), (40, 13));
    assert_eq!((usage.held_slots, usage.evicted_tokens), (52, 0));
    assert_eq!(
        (usage.held_bytes, usage.full_cache_bytes),
        (52 * 128, 52 * 128)
    );
    // 40 tokens at stride 16 are 3 steps of prefill; the third samples.
    let close = |found: f64, steps: f64| (found - steps * STEP.as_secs_f64()).abs() < 0.004;
    assert!(
        close(usage.prefill_seconds, 3.0) && close(usage.decode_seconds, 12.0),
        "{usage:?}"
    );
    assert!(
        close(usage.first_token_seconds - usage.queue_seconds, 3.0),
        "{usage:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_bounded_sequence_reports_what_it_holds_and_which_positions() {
    let (coordinator, _) = start_with(config(), vec![Script::endless(0, 1)]).await;
    let kv = KvContract {
        budget: 16,
        ..Default::default()
    };
    let request = GenerateRequest {
        kv: Some(kv),
        retention_report: true,
        ..prompt(100, 20)
    };
    let finished = generate(&coordinator, request).await.unwrap().finished;
    let usage = finished.usage.unwrap();
    // 119 fed; the last boundary is 112: 16 retained and a tail of 7.
    assert_eq!((usage.held_slots, usage.evicted_tokens), (23, 96));
    let expected: Vec<u32> = (0..4).chain(100..119).collect();
    let heads = finished.retention.unwrap().heads;
    assert_eq!(heads.len(), 4);
    assert!(
        heads.iter().all(|head| head.positions == expected),
        "{:?}",
        heads[0].positions
    );
}

#[tokio::test(start_paused = true)]
async fn stop_strings_across_tokens_end_the_sequence() {
    let (coordinator, ranks) =
        start_with(config(), vec![Script::saying("one <stop> two", 0, 1)]).await;
    let mut request = prompt(3, 50);
    request.stopping.as_mut().unwrap().stop = vec!["<stop>".into(), "zzz".into()];
    request.sampling = Some(Sampling {
        logprobs: Some(0),
        ..Default::default()
    });
    let mut answer = coordinator.service().generate(request, None).await.unwrap();
    let mut tokens = 0;
    let mut text = String::new();
    let finished = loop {
        match answer.next().await.unwrap().unwrap().event.unwrap() {
            Event::Delta(delta) => {
                assert!(delta.tokens.iter().all(|token| token.bytes.len() == 1));
                tokens += delta.tokens.len();
                text.push_str(&delta.text);
            }
            Event::Finished(finished) => break finished,
            Event::Started(_) => {}
        }
    };
    assert_eq!(
        (text.as_str(), finished.reason(), finished.stop.as_str()),
        ("one ", FinishReason::Stop, "<stop>")
    );
    assert_eq!((finished.usage.unwrap().generated_tokens, tokens), (10, 10));
    assert!(answer.next().await.is_none());
    sleep(3 * STEP).await;
    assert_eq!(
        ranks[0].plans().last().unwrap().release,
        [2],
        "the sequence is released though the answer still lives"
    );
}

#[tokio::test(start_paused = true)]
async fn max_tokens_and_ignored_ends() {
    let (coordinator, ranks) = start_with(config(), vec![Script::saying("ab", 0, 1)]).await;
    let whole = generate(&coordinator, prompt(3, 1)).await.unwrap();
    assert_eq!(
        (whole.text.as_str(), whole.finished.reason()),
        ("a", FinishReason::Length)
    );
    let mut request = prompt(3, 6);
    request.stopping.as_mut().unwrap().ignore_eos = true;
    let whole = generate(&coordinator, request).await.unwrap();
    assert_eq!(whole.finished.usage.unwrap().generated_tokens, 6);
    let banned = ranks[0]
        .plans()
        .into_iter()
        .flat_map(|plan| plan.sequences)
        .filter_map(|s| s.init)
        .next_back()
        .unwrap();
    assert_eq!(
        (banned.banned, banned.max_tokens),
        (vec![crate::executor::fake::IM_END], 9)
    );
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stream_is_released_by_the_next_plan() {
    let (coordinator, ranks) = start_with(config(), vec![Script::endless(0, 1)]).await;
    let mut other = coordinator
        .service()
        .generate(prompt(3, 400), None)
        .await
        .unwrap();
    let mut answer = coordinator
        .service()
        .generate(prompt(3, 400), None)
        .await
        .unwrap();
    first_delta(&mut answer).await;
    first_delta(&mut other).await;
    let before = ranks[0].plans().len();
    drop(answer);
    sleep(2 * STEP).await;
    let plans = ranks[0].plans();
    // At most the step that was under way comes before it.
    let released = plans[before..]
        .iter()
        .position(|plan| plan.release == [3])
        .unwrap();
    assert!(released <= 1, "after {released} steps");
    assert!(
        plans[before + released..]
            .iter()
            .all(|plan| plan.sequences.iter().all(|s| s.sequence != 3))
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_paused_then_given_up_and_never_buffers_more_than_its_ring() {
    let config = Config {
        slow_reader_limit: Duration::from_secs(2),
        ..config()
    };
    let (coordinator, ranks) = start_with(config, vec![Script::endless(0, 1)]).await;
    let tokens = |id: u64| {
        ranks[0]
            .plans()
            .iter()
            .flat_map(|p| &p.sequences)
            .filter(|s| s.sequence == id && s.sample)
            .count()
    };
    let mut answer = coordinator
        .service()
        .generate(prompt(3, 400), None)
        .await
        .unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(tokens(2), 8, "a ring of 8");
    for _ in 0..6 {
        answer.next().await.unwrap().unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(tokens(2), 13, "resumed, and full again");
    sleep(Duration::from_secs(3)).await;
    let error = whole(&mut answer).await.err();
    assert_eq!(error.map(|error| error.reason), Some(Reason::SlowReader));
    assert!(ranks[0].plans().last().unwrap().release.contains(&2));
}

#[tokio::test(start_paused = true)]
async fn deadlines_in_the_queue_and_in_execution() {
    let (coordinator, _) = start_with(
        Config {
            max_running: 1,
            ..config()
        },
        vec![Script::endless(0, 1)],
    )
    .await;
    let within = |ms: u64, tokens| GenerateRequest {
        deadline_ms: ms,
        ..prompt(3, tokens)
    };
    let service = coordinator.service();
    let mut running = service.generate(within(300, 1000), None).await.unwrap();
    let mut waiting = service.generate(within(100, 1), None).await.unwrap();
    let begin = Instant::now();
    let running =
        tokio::spawn(async move { (whole(&mut running).await.err().unwrap(), begin.elapsed()) });
    let error = whole(&mut waiting).await.err().unwrap();
    assert_eq!(
        (error.reason, begin.elapsed().as_millis()),
        (Reason::DeadlineInQueue, 100)
    );
    assert_eq!(service.engine.admission().waiting(), (0, 0));
    let (error, after) = running.await.unwrap();
    assert_eq!(
        (error.reason, after.as_millis()),
        (Reason::DeadlineInExecution, 300)
    );
    // The transport's deadline counts as well.
    let mut answer = service
        .generate(prompt(3, 1000), Some(Duration::from_millis(50)))
        .await
        .unwrap();
    assert_eq!(
        whole(&mut answer).await.err().unwrap().reason,
        Reason::DeadlineInExecution
    );
}

#[tokio::test(start_paused = true)]
async fn a_deadline_holds_while_a_step_hangs() {
    let (coordinator, _) = start_with(
        config(),
        vec![Script::endless(0, 1).with_fault(2, Fault::Hang)],
    )
    .await;
    let request = GenerateRequest {
        deadline_ms: 100,
        ..prompt(3, 9)
    };
    let begin = Instant::now();
    assert_eq!(
        generate(&coordinator, request).await.err().unwrap().reason,
        Reason::DeadlineInExecution
    );
    assert_eq!(begin.elapsed().as_millis(), 100, "not the 5 s of the step");
}

#[tokio::test(start_paused = true)]
async fn a_lost_group_ends_its_requests_by_class_and_another_takes_over() {
    // Plans: warm-up, its release with the first prefill, ...: the fault comes in mid-stream.
    let script = Script::endless(0, 1).with_fault(6, Fault::Error);
    let (coordinator, _) = start_with(
        Config {
            max_running: 2,
            ..config()
        },
        vec![script],
    )
    .await;
    let service = coordinator.service();
    let mut streaming = service.generate(prompt(3, 100), None).await.unwrap();
    let mut prefilling = service.generate(prompt(300, 100), None).await.unwrap();
    let mut waiting = service.generate(prompt(5, 4), None).await.unwrap();
    let error = whole(&mut streaming).await.err().unwrap();
    assert_eq!(error.reason, Reason::GroupLost);
    assert!(error.message.contains("scripted error"), "{error}");
    assert_eq!(
        whole(&mut prefilling).await.err().unwrap().reason,
        Reason::RankFailed
    );
    assert_eq!(*service.engine.readiness().borrow(), Readiness::Lost);
    assert_eq!(
        generate(&coordinator, prompt(3, 1))
            .await
            .err()
            .unwrap()
            .reason,
        Reason::NoReadyGroup
    );
    let next = FakeRank::new(Script::endless(0, 1));
    coordinator
        .replace(
            executor(std::slice::from_ref(&next), &config()),
            vec![next.info()],
            2,
        )
        .await
        .unwrap();
    assert_eq!(
        whole(&mut waiting).await.unwrap().text.len(),
        4,
        "what waited is served by the next group"
    );
    assert!(next.plans().iter().all(|plan| plan.epoch == 2));
    assert!(coordinator.ready().await);
    generate(&coordinator, prompt(3, 1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn requests_go_on_with_the_next_group_when_they_may_wait() {
    let script = || Script::saying("forty-two characters, and no more of them", 0, 1);
    let config = Config {
        regroup_limit: Duration::from_secs(30),
        ..config()
    };
    let (coordinator, _) =
        start_with(config.clone(), vec![script().with_fault(9, Fault::Error)]).await;
    let mut answer = coordinator
        .service()
        .generate(prompt(300, 100), None)
        .await
        .unwrap();
    let reader = tokio::spawn(async move { whole(&mut answer).await });
    let mut readiness = coordinator.service().engine.readiness();
    readiness
        .wait_for(|readiness| *readiness == Readiness::Lost)
        .await
        .unwrap();
    sleep(Duration::from_secs(20)).await;
    let next = FakeRank::new(script());
    coordinator
        .replace(
            executor(std::slice::from_ref(&next), &config),
            vec![next.info()],
            7,
        )
        .await
        .unwrap();
    let done = reader.await.unwrap().unwrap();
    assert_eq!(
        done.text, "forty-two characters, and no more of them",
        "no token is lost or said twice"
    );
    assert!(next.plans().iter().all(|plan| plan.epoch == 7));
    let first = &next.plans()[0].sequences;
    assert!(
        first
            .iter()
            .all(|step| step.position == 0 && step.init.is_some())
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_a_group_no_longer_than_it_may() {
    let config = Config {
        regroup_limit: Duration::from_secs(30),
        max_running: 1,
        ..config()
    };
    let (coordinator, _) = start_with(
        config,
        vec![Script::endless(0, 1).with_fault(6, Fault::Error)],
    )
    .await;
    let mut streaming = coordinator
        .service()
        .generate(prompt(3, 100), None)
        .await
        .unwrap();
    let mut waiting = coordinator
        .service()
        .generate(prompt(3, 100), None)
        .await
        .unwrap();
    let begin = Instant::now();
    assert_eq!(
        whole(&mut streaming).await.err().unwrap().reason,
        Reason::GroupLost
    );
    assert_eq!(
        whole(&mut waiting).await.err().unwrap().reason,
        Reason::RankFailed
    );
    assert_eq!(begin.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_between_two_groups_waits_no_longer_than_it_may() {
    let limits = Config {
        max_queued: 2,
        group_wait_limit: Duration::from_secs(5),
        ..config()
    };
    let config = Config {
        regroup_limit: Duration::from_secs(20),
        ..limits
    };
    let (coordinator, _) = start_with(
        config.clone(),
        vec![Script::endless(0, 1).with_fault(6, Fault::Error)],
    )
    .await;
    let mut lost = coordinator
        .service()
        .generate(prompt(3, 100), None)
        .await
        .unwrap();
    let mut readiness = coordinator.service().engine.readiness();
    readiness
        .wait_for(|readiness| *readiness == Readiness::Lost)
        .await
        .unwrap();
    let begin = Instant::now();
    let error = generate(&coordinator, prompt(3, 1)).await.err().unwrap();
    assert_eq!(
        (error.reason, begin.elapsed().as_secs()),
        (Reason::NoReadyGroup, 5)
    );
    let mut early = coordinator
        .service()
        .generate(prompt(3, 4), None)
        .await
        .unwrap();
    let _second = coordinator
        .service()
        .generate(prompt(3, 4), None)
        .await
        .unwrap();
    assert_eq!(
        generate(&coordinator, prompt(3, 1))
            .await
            .err()
            .unwrap()
            .reason,
        Reason::QueueFull
    );
    let next = FakeRank::new(Script::endless(0, 1).with_fault(20, Fault::Error));
    coordinator
        .replace(
            executor(std::slice::from_ref(&next), &config),
            vec![next.info()],
            2,
        )
        .await
        .unwrap();
    assert_eq!(whole(&mut early).await.unwrap().text.len(), 4);
    assert_eq!(
        whole(&mut lost).await.err().unwrap().reason,
        Reason::GroupLost,
        "the next one was lost, too, and none came"
    );
    // Who comes when a group is overdue is told so at once.
    let begin = Instant::now();
    assert_eq!(
        generate(&coordinator, prompt(3, 1))
            .await
            .err()
            .unwrap()
            .reason,
        Reason::NoReadyGroup
    );
    assert_eq!(begin.elapsed().as_secs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_breaks_every_group_is_given_up() {
    let config = Config {
        regroup_limit: Duration::from_secs(3600),
        max_replays: 2,
        ..config()
    };
    let breaking = || Script::endless(0, 1).with_fault(3, Fault::Error);
    let (coordinator, _) = start_with(config.clone(), vec![breaking()]).await;
    let mut answer = coordinator
        .service()
        .generate(prompt(3, 100), None)
        .await
        .unwrap();
    let reader = tokio::spawn(async move { whole(&mut answer).await });
    let readiness = coordinator.service().engine.readiness();
    for epoch in 2..4 {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(
            (*readiness.borrow(), reader.is_finished()),
            (Readiness::Lost, false)
        );
        let next = FakeRank::new(breaking());
        coordinator
            .replace(
                executor(std::slice::from_ref(&next), &config),
                vec![next.info()],
                epoch,
            )
            .await
            .unwrap();
    }
    assert_eq!(
        reader.await.unwrap().err().unwrap().reason,
        Reason::GroupLost
    );
}

#[tokio::test(start_paused = true)]
async fn a_sequence_that_fails_alone_harms_no_other() {
    let script = Script::endless(0, 1).with_fault(4, Fault::FailSequence);
    let (coordinator, ranks) = start_with(config(), vec![script]).await;
    let mut first = coordinator
        .service()
        .generate(prompt(3, 9), None)
        .await
        .unwrap();
    let mut second = coordinator
        .service()
        .generate(prompt(3, 9), None)
        .await
        .unwrap();
    assert_eq!(
        whole(&mut first).await.err().unwrap().reason,
        Reason::GroupLost
    );
    assert_eq!(whole(&mut second).await.unwrap().text.len(), 9);
    sleep(2 * STEP).await;
    let released: Vec<u64> = ranks[0]
        .plans()
        .into_iter()
        .flat_map(|plan| plan.release)
        .collect();
    assert_eq!(
        released,
        [1, 3],
        "what failed holds nothing that could be released"
    );
}

#[tokio::test(start_paused = true)]
async fn a_group_that_fails_its_first_step_never_serves() {
    let rank = FakeRank::new(Script::endless(0, 1).with_fault(0, Fault::Error));
    let coordinator = Coordinator::build(
        config(),
        executor(std::slice::from_ref(&rank), &config()),
        vec![rank.info()],
    )
    .unwrap();
    assert!(!coordinator.ready().await);
    assert_eq!(
        generate(&coordinator, prompt(3, 1))
            .await
            .err()
            .unwrap()
            .reason,
        Reason::NoReadyGroup
    );
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_was_admitted_and_refuses_the_rest() {
    let (coordinator, ranks) = start_with(
        Config {
            max_running: 1,
            ..config()
        },
        vec![Script::endless(0, 1)],
    )
    .await;
    let service = coordinator.service().clone();
    let mut running = service.generate(prompt(3, 5), None).await.unwrap();
    let mut queued = service.generate(prompt(3, 5), None).await.unwrap();
    let engine = service.engine.clone();
    let drain = tokio::spawn(async move { engine.drain().await });
    sleep(Duration::from_millis(1)).await;
    assert_eq!(*service.engine.readiness().borrow(), Readiness::Draining);
    assert_eq!(
        generate(&coordinator, prompt(3, 1))
            .await
            .err()
            .unwrap()
            .reason,
        Reason::Draining
    );
    let (first, second) = tokio::join!(whole(&mut running), whole(&mut queued));
    assert_eq!(
        (first.unwrap().text.len(), second.unwrap().text.len()),
        (5, 5)
    );
    timeout(Duration::from_secs(1), drain)
        .await
        .unwrap()
        .unwrap();
    let released: usize = ranks[0].plans().iter().map(|plan| plan.release.len()).sum();
    assert_eq!(released, 3, "also the last one");
}

#[tokio::test(start_paused = true)]
async fn a_drain_has_a_limit() {
    let config = Config {
        drain_limit: Duration::from_millis(200),
        ..config()
    };
    let (coordinator, _) = start_with(config, vec![Script::endless(0, 1)]).await;
    let mut answer = coordinator
        .service()
        .generate(prompt(3, 100_000), None)
        .await
        .unwrap();
    let engine = coordinator.service().engine.clone();
    let drain = tokio::spawn(async move { engine.drain().await });
    assert_eq!(
        whole(&mut answer).await.err().unwrap().reason,
        Reason::Draining
    );
    timeout(Duration::from_secs(1), drain)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_in_requests_and_in_tokens() {
    let config = Config {
        max_running: 1,
        max_queued: 2,
        max_queued_tokens: 50,
        ..config()
    };
    let (coordinator, _) = start_with(config, vec![Script::endless(0, 1)]).await;
    let service = coordinator.service();
    let running = service.generate(prompt(3, 1000), None).await.unwrap();
    sleep(3 * STEP).await;
    let waiting = service.generate(prompt(30, 1), None).await.unwrap();
    let error = service.generate(prompt(30, 1), None).await.err().unwrap();
    assert_eq!(error.reason, Reason::QueueFull);
    assert!(
        error
            .message
            .contains("30 prompt tokens wait, with 30 more the limit of 50"),
        "{error}"
    );
    let second = service.generate(prompt(20, 1), None).await.unwrap();
    let error = service.generate(prompt(1, 1), None).await.err().unwrap();
    assert!(error.message.contains("2 requests wait already"), "{error}");
    assert_eq!(service.engine.admission().waiting(), (2, 50));
    drop((running, waiting, second));
    sleep(3 * STEP).await;
    assert_eq!(service.engine.admission().waiting(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn memory_is_never_over_committed_and_64_streams_say_what_they_say_alone() {
    let config = Config {
        max_running: 64,
        ..config()
    };
    let mut script = Script::endless(0, 1);
    // Room for about 20 of them; the fake rank refuses plans that reserve more than its arena.
    script.rank.kv_arena_bytes = 20 * 4 * 3 * (1024 + 256);
    let (coordinator, _) = start_with(config, vec![script]).await;
    let mut alone = Vec::new();
    for tokens in 1..=64 {
        alone.push(
            generate(&coordinator, prompt(tokens, 30))
                .await
                .unwrap()
                .text,
        );
    }
    let together = (1..=64).map(|tokens| {
        let coordinator = coordinator.clone();
        tokio::spawn(async move {
            generate(&coordinator, prompt(tokens, 30))
                .await
                .unwrap()
                .text
        })
    });
    let together: Vec<_> = together.collect();
    for (alone, together) in alone.into_iter().zip(together) {
        assert_eq!(alone, together.await.unwrap());
    }
}
