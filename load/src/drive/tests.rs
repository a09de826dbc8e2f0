//! Runs against servers that are futures, on a clock that stands still between events.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn every(gap: Duration, count: u32) -> Vec<Arrival> {
    (0..count)
        .map(|i| Arrival {
            at: gap * i,
            prompt_tokens: 1,
            output_tokens: 1,
            text_offset: 0,
        })
        .collect()
}

async fn answer(first: Duration, gaps: &[Duration]) -> Result<Completion, Failure> {
    tokio::time::sleep(first).await;
    let mut pieces = vec![Instant::now()];
    for &gap in gaps {
        tokio::time::sleep(gap).await;
        pieces.push(Instant::now());
    }
    let tokens = pieces.len() as u64;
    let ended = Some(Instant::now());
    Ok(Completion {
        pieces,
        ended,
        prompt_tokens: Some(10),
        output_tokens: Some(tokens),
    })
}

fn about(actual: Option<f64>, expected: f64) {
    let actual = actual.expect("something was recorded");
    // Timers are a millisecond coarse, the histogram three digits.
    assert!(
        (actual - expected).abs() <= 2.0 + expected * 2e-3,
        "{actual} is not about {expected}"
    );
}

#[tokio::test(start_paused = true)]
async fn counts_and_times_are_those_of_the_answers() {
    let objective = Objective {
        first_token: Some(60 * MS),
        inter_token: Some(12 * MS),
    };
    let send = |_: Arrival| async { answer(50 * MS, &[10 * MS, 10 * MS, 10 * MS]).await };
    let mut seen = 0;
    let all = drive(
        &every(20 * MS, 30),
        99,
        objective,
        send,
        std::future::pending(),
        |_| seen += 1,
    )
    .await;
    assert_eq!((all.completed, all.good, seen), (30, 30, 30));
    assert_eq!(
        (
            all.prompt_tokens,
            all.output_tokens,
            all.inter_token.count()
        ),
        (300, 120, 90)
    );
    about(all.first_token.percentile_ms(50.0), 50.0);
    about(all.inter_token.percentile_ms(99.0), 10.0);
    about(all.end_to_end.max_ms(), 80.0);
    about(Some(all.elapsed.as_secs_f64() * 1e3), 29.0 * 20.0 + 80.0);
}

/// Preparing takes place before a request is due, sending when it is.
#[tokio::test(start_paused = true)]
async fn requests_are_prepared_ahead_and_sent_when_due() {
    let start = Instant::now();
    let (prepared, sent) = (
        Arc::new(Mutex::new(Vec::new())),
        Arc::new(Mutex::new(Vec::new())),
    );
    let send = |_: Arrival| {
        let sent = Arc::clone(&sent);
        prepared.try_lock().unwrap().push(start.elapsed());
        async move {
            sent.lock().await.push(start.elapsed());
            answer(MS, &[]).await
        }
    };
    drive(
        &every(100 * MS, 3),
        99,
        Objective::default(),
        send,
        std::future::pending(),
        |_| (),
    )
    .await;
    let close = |times: &[Duration], expected: [u32; 3]| {
        times
            .iter()
            .zip(expected)
            .all(|(time, ms)| time.abs_diff(ms * MS) <= 2 * MS)
    };
    assert!(close(&prepared.lock().await, [0, 0, 100]), "{prepared:?}");
    assert!(close(&sent.lock().await, [0, 100, 200]), "{sent:?}");
}

/// A server that answers one request at a time, 100 ms each, while one arrives every 50 ms: the
/// i-th answer is 100 + 50 i ms late. A closed loop would report 100 ms for all.
#[tokio::test(start_paused = true)]
async fn waiting_behind_others_counts() {
    let server = Arc::new(Mutex::new(()));
    let send = |_: Arrival| {
        let server = Arc::clone(&server);
        async move {
            let _one_at_a_time = server.lock().await;
            answer(100 * MS, &[]).await
        }
    };
    let objective = Objective {
        first_token: Some(200 * MS),
        inter_token: None,
    };
    let all = drive(
        &every(50 * MS, 20),
        99,
        objective,
        send,
        std::future::pending(),
        |_| (),
    )
    .await;
    about(all.first_token.max_ms(), 100.0 + 50.0 * 19.0);
    about(all.first_token.percentile_ms(50.0), 100.0 + 50.0 * 9.0);
    assert!(
        (2..=3).contains(&all.good),
        "the first three are within 200 ms, the third just: {}",
        all.good
    );
}

#[tokio::test(start_paused = true)]
async fn failures_are_counted_by_kind_and_are_not_good() {
    let send = |arrival: Arrival| async move {
        match arrival.at.as_millis() % 3 {
            0 => Err(Failure::Status {
                status: 429,
                message: "queue full".into(),
            }),
            1 => Err(Failure::Timeout),
            _ => answer(MS, &[]).await,
        }
    };
    let all = drive(
        &every(MS, 9),
        99,
        Objective::default(),
        send,
        std::future::pending(),
        |_| (),
    )
    .await;
    let counts: Vec<(&str, u64)> = all
        .failures
        .iter()
        .map(|(kind, failures)| (kind.as_str(), failures.count))
        .collect();
    assert_eq!(counts, [("http_429", 3), ("timeout", 3)]);
    assert_eq!(all.failures["http_429"].first, "HTTP 429: queue full");
    assert_eq!(
        (
            all.completed,
            all.good,
            all.first_token.count(),
            all.finished()
        ),
        (3, 3, 3, 9)
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_is_bounded_and_the_rest_not_sent() {
    let send = |_: Arrival| async { answer(1000 * MS, &[]).await };
    let all = drive(
        &every(MS, 10),
        4,
        Objective::default(),
        send,
        std::future::pending(),
        |_| (),
    )
    .await;
    assert_eq!(
        (
            all.completed,
            all.failures["not_sent"].count,
            all.send_delay.count()
        ),
        (4, 6, 4)
    );
}

#[tokio::test(start_paused = true)]
async fn stopping_keeps_what_was_measured() {
    let send = |_: Arrival| async { answer(100 * MS, &[]).await };
    let stop = tokio::time::sleep(150 * MS);
    let all = drive(
        &every(40 * MS, 100),
        99,
        Objective::default(),
        send,
        stop,
        |_| (),
    )
    .await;
    assert_eq!((all.completed, all.abandoned), (2, 2));
    about(Some(all.elapsed.as_secs_f64() * 1e3), 150.0);
}
