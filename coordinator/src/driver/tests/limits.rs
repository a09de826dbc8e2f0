//! Deadlines, drains, and bounds of the queue and of memory.

use std::net::IpAddr;

use palimpsest_proto::internal::v1::{StepOutput, StepPlan};

use super::*;
use crate::executor::ExecutorError;
use crate::service::Call;

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
    let mut running = ask(&coordinator, within(300, 1000)).await;
    let mut waiting = ask(&coordinator, within(100, 1)).await;
    let begin = Instant::now();
    let running =
        tokio::spawn(async move { (whole(&mut running).await.err().unwrap(), begin.elapsed()) });
    let error = whole(&mut waiting).await.err().unwrap();
    assert_eq!(
        (error.reason, begin.elapsed().as_millis()),
        (Reason::DeadlineInQueue, 100)
    );
    assert_eq!(service.driver.admission().waiting(), Queued::default());
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
    assert_eq!(failure(&mut answer).await, Reason::DeadlineInExecution);
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
        refusal(&coordinator, request).await,
        Reason::DeadlineInExecution
    );
    assert_eq!(begin.elapsed().as_millis(), 100, "not the 5 s of the step");
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
    let mut running = ask(&coordinator, prompt(3, 5)).await;
    let mut queued = ask(&coordinator, prompt(3, 5)).await;
    let driver = service.driver.clone();
    let drain = tokio::spawn(async move { driver.drain().await });
    sleep(Duration::from_millis(1)).await;
    assert_eq!(*service.driver.readiness().borrow(), Readiness::Draining);
    assert_eq!(refusal(&coordinator, prompt(3, 1)).await, Reason::Draining);
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
    let mut answer = ask(&coordinator, prompt(3, 100_000)).await;
    let driver = coordinator.service().driver.clone();
    let drain = tokio::spawn(async move { driver.drain().await });
    assert_eq!(failure(&mut answer).await, Reason::Draining);
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
    let running = ask(&coordinator, prompt(3, 1000)).await;
    sleep(3 * STEP).await;
    let waiting = ask(&coordinator, prompt(30, 1)).await;
    let error = service.generate(prompt(30, 1), None).await.err().unwrap();
    assert_eq!(error.reason, Reason::QueueFull);
    assert!(
        error
            .message
            .contains("30 prompt tokens wait, with 30 more the limit of 50"),
        "{error}"
    );
    let second = ask(&coordinator, prompt(20, 1)).await;
    let error = service.generate(prompt(1, 1), None).await.err().unwrap();
    assert!(error.message.contains("2 requests wait already"), "{error}");
    // Who is refused is counted, whatever the reason.
    assert_eq!(
        refusal(&coordinator, prompt(0, 1)).await,
        Reason::EmptyPrompt
    );
    let figures = service.metrics.encode();
    for line in [
        "palimpsest_requests_total{outcome=\"queue_full\"} 2",
        "palimpsest_requests_total{outcome=\"empty_prompt\"} 1",
    ] {
        assert!(
            figures.lines().any(|found| found == line),
            "{line} is missing in\n{figures}"
        );
    }
    assert_eq!(
        service.driver.admission().waiting(),
        Queued {
            requests: 2,
            tokens: 50
        }
    );
    drop((running, waiting, second));
    sleep(3 * STEP).await;
    assert_eq!(service.driver.admission().waiting(), Queued::default());
}

/// A call from an address.
fn from(address: [u8; 4]) -> Call {
    Call {
        network: Some(IpAddr::from(address).into()),
        ..Call::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_shared_between_clients() {
    let config = Config {
        max_running: 1,
        max_queued: 2,
        ..config()
    };
    let (coordinator, _) = start_with(config, vec![Script::endless(0, 1)]).await;
    let service = coordinator.service();
    let (many, few) = (from([10, 0, 0, 1]), from([10, 0, 0, 2]));
    let ask = |call, tokens| service.generate_for(call, prompt(3, tokens));
    let running = ask(&many, 1000).await.unwrap();
    sleep(3 * STEP).await;
    let mut first = ask(&many, 1).await.unwrap();
    let mut second = ask(&many, 1).await.unwrap();
    let refused = ask(&many, 1).await.err().unwrap();
    assert_eq!(refused.reason, Reason::QueueFull);
    let mut third = ask(&few, 1).await.unwrap();
    let error = whole(&mut second).await.err().unwrap();
    assert_eq!(error.reason, Reason::QueueFull);
    assert!(error.message.contains("this client has more"), "{error}");
    drop(running);
    for kept in [&mut third, &mut first] {
        assert_eq!(whole(kept).await.unwrap().text.len(), 1);
    }
    assert_eq!(service.driver.admission().waiting(), Queued::default());
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

/// An executor with a bug.
struct Panics;

#[async_trait::async_trait]
impl Executor for Panics {
    async fn execute(&mut self, _: StepPlan) -> Result<StepOutput, ExecutorError> {
        panic!("as was asked")
    }
}

/// The last word of a driver that had panicked stood for ever, and probes believed it.
#[tokio::test(start_paused = true)]
async fn a_driver_that_panics_is_not_taken_for_a_ready_one() {
    let (coordinator, ranks) = start_with(config(), vec![Script::endless(0, 1)]).await;
    let taken = coordinator.replace(Box::new(Panics), vec![ranks[0].info()], 2);
    let (taken, ()) = tokio::join!(taken, coordinator.ended());
    taken.unwrap();
    let service = coordinator.service();
    assert_eq!(*service.driver.readiness().borrow(), Readiness::Ended);
    let figures = service.metrics.encode();
    assert!(figures.contains("palimpsest_group_ready 0"), "{figures}");
    assert_eq!(refusal(&coordinator, prompt(3, 1)).await, Reason::Draining);
}

/// Reads `tokens` of an endless answer every 900 ms until `until`, or until the answer fails.
async fn read_slowly(coordinator: &Coordinator, tokens: usize, until: Duration) -> Option<Reason> {
    let mut answer = ask(coordinator, prompt(3, 100_000)).await;
    let begin = Instant::now();
    while begin.elapsed() < until {
        sleep(Duration::from_millis(900)).await;
        for _ in 0..tokens {
            if let Err(error) = answer.next().await.unwrap() {
                return Some(error.reason);
            }
        }
    }
    None
}

/// Guards against a reader that holds a running sequence for an hour by reading just enough, just
/// in time: half a ring, so that its sequence is never paused for long.
#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_less_than_its_ring_in_the_limit_is_given_up() {
    let config = Config {
        slow_reader_limit: Duration::from_secs(1),
        ..config()
    };
    let (coordinator, _) = start_with(config, vec![Script::endless(0, 1)]).await;
    let hour = Duration::from_secs(3600);
    let begin = Instant::now();
    let reason = read_slowly(&coordinator, 5, hour).await;
    assert_eq!(reason, Some(Reason::SlowReader));
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
    // A ring in 900 ms is enough, though it never catches up for long.
    assert_eq!(
        read_slowly(&coordinator, 8, Duration::from_secs(60)).await,
        None
    );
}
