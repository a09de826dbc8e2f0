//! The run itself: sends every request at its time, whether or not the ones before it were
//! answered.
//!
//! Latency counts from the time a request was scheduled for, not from when it could be sent. A
//! server that stalls would otherwise hold the generator back and look better the worse it is
//! ("coordinated omission", Gil Tene).

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::client::{Completion, Failure};
use super::schedule::Arrival;

/// A year. `Histogram::saturating_record` would not do: it does not grow the histogram first.
const MAX_MICROS: u64 = 365 * 24 * 3600 * 1_000_000;

/// What a request should keep to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Objective {
    /// Time to first token.
    pub first_token: Option<Duration>,
    /// Mean time between the tokens of one request.
    pub inter_token: Option<Duration>,
}

/// Microseconds, three digits, any range.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    fn new() -> Self {
        Self(Histogram::new(3).expect("three digits are within 0 to 5"))
    }

    fn add(&mut self, latency: Duration) {
        let micros =
            u64::try_from(latency.as_micros()).map_or(MAX_MICROS, |micros| micros.min(MAX_MICROS));
        self.0
            .record(micros)
            .expect("the histogram grows up to this limit");
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Milliseconds at `percent`; nothing when nothing was recorded.
    pub fn percentile_ms(&self, percent: f64) -> Option<f64> {
        (self.count() > 0).then(|| self.0.value_at_percentile(percent) as f64 / 1e3)
    }

    /// Mean in milliseconds.
    pub fn mean_ms(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.0.mean() / 1e3)
    }

    /// Largest in milliseconds.
    pub fn max_ms(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.0.max() as f64 / 1e3)
    }
}

/// How one request went.
#[derive(Debug)]
pub struct Outcome {
    /// When it should have been sent.
    pub scheduled: Instant,
    /// When it was.
    pub sent: Instant,
    pub result: Result<Completion, Failure>,
}

/// Everything that is reported.
#[derive(Debug)]
pub struct Measurement {
    objective: Objective,
    /// From the scheduled time to the first text.
    pub first_token: Latencies,
    /// Between two pieces of text that follow each other, all requests together.
    pub inter_token: Latencies,
    /// Longest such gap of each request.
    pub longest_gap: Latencies,
    /// From the scheduled time to the end of the stream.
    pub end_to_end: Latencies,
    /// From the scheduled time to the sending: the generator's own fault.
    pub send_delay: Latencies,
    /// Failures by kind: how many, and what the first one said.
    pub failures: BTreeMap<String, (u64, String)>,
    /// Complete answers.
    pub completed: u64,
    /// Complete answers within the objective.
    pub good: u64,
    pub prompt_tokens: u64,
    pub output_tokens: u64,
    /// Answers whose tokens the server did not count; their pieces are counted instead.
    pub uncounted: u64,
    /// From the start of the run to the end of the last request.
    pub elapsed: Duration,
    /// The run was stopped from outside; what was in flight is not in the figures.
    pub abandoned: u64,
}

impl Measurement {
    /// Nothing measured yet.
    pub fn new(objective: Objective) -> Self {
        Self {
            objective,
            first_token: Latencies::new(),
            inter_token: Latencies::new(),
            longest_gap: Latencies::new(),
            end_to_end: Latencies::new(),
            send_delay: Latencies::new(),
            failures: BTreeMap::new(),
            completed: 0,
            good: 0,
            prompt_tokens: 0,
            output_tokens: 0,
            uncounted: 0,
            elapsed: Duration::ZERO,
            abandoned: 0,
        }
    }

    /// Takes one request's outcome.
    pub fn add(&mut self, outcome: Outcome) {
        let Outcome {
            scheduled,
            sent,
            result,
        } = outcome;
        match result {
            Ok(completion) => {
                self.send_delay.add(sent - scheduled);
                self.add_completion(scheduled, &completion);
            }
            Err(failure) => {
                if failure != Failure::NotSent {
                    self.send_delay.add(sent - scheduled);
                }
                let (count, _) = self
                    .failures
                    .entry(failure.kind())
                    .or_insert_with(|| (0, failure.to_string()));
                *count += 1;
            }
        }
    }

    fn add_completion(&mut self, scheduled: Instant, completion: &Completion) {
        let (Some(&first), Some(&last)) = (completion.pieces.first(), completion.pieces.last())
        else {
            return;
        };
        let pieces = completion.pieces.len() as u64;
        self.completed += 1;
        self.uncounted += u64::from(completion.output_tokens.is_none());
        self.prompt_tokens += completion.prompt_tokens.unwrap_or(0);
        let tokens = completion.output_tokens.unwrap_or(pieces);
        self.output_tokens += tokens;
        let to_first = first - scheduled;
        self.first_token.add(to_first);
        self.end_to_end
            .add(completion.ended.unwrap_or(last) - scheduled);
        let gaps = completion.pieces.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.clone().for_each(|gap| self.inter_token.add(gap));
        if let Some(longest) = gaps.max() {
            self.longest_gap.add(longest);
        }
        // The tokens of the first piece came at once, so the others share the time after it.
        let following = u32::try_from(tokens.max(pieces) - 1).unwrap_or(u32::MAX);
        let mean_gap = if following == 0 {
            Duration::ZERO
        } else {
            (last - first) / following
        };
        let keeps =
            |limit: Option<Duration>, value: Duration| limit.is_none_or(|limit| value <= limit);
        let good = keeps(self.objective.first_token, to_first)
            && keeps(self.objective.inter_token, mean_gap);
        self.good += u64::from(good);
    }

    /// Requests whose outcome is known.
    pub fn finished(&self) -> u64 {
        self.completed + self.failures.values().map(|(count, _)| count).sum::<u64>()
    }
}

/// Sends `arrivals` at their times through `send`, at most `max_in_flight` at once, until all have
/// an outcome or `stop` resolves. `on_outcome` sees the figures grow.
///
/// `send` is called ahead of time, for the work that a request takes before it can go; the future
/// that it returns is polled when the request is due.
///
/// An arrival that would exceed `max_in_flight` is counted as not sent: waiting would close the
/// loop.
pub async fn drive<F, Fut>(
    arrivals: &[Arrival],
    max_in_flight: usize,
    objective: Objective,
    send: F,
    stop: impl Future<Output = ()>,
    mut on_outcome: impl FnMut(&Measurement),
) -> Measurement
where
    F: Fn(Arrival) -> Fut,
    Fut: Future<Output = Result<Completion, Failure>> + Send + 'static,
{
    tokio::pin!(stop);
    let start = Instant::now();
    let mut measurement = Measurement::new(objective);
    let mut in_flight = JoinSet::new();
    let mut waiting = arrivals
        .iter()
        .map(|&arrival| (start + arrival.at, send(arrival)));
    let mut next = waiting.next();
    while next.is_some() || !in_flight.is_empty() {
        let due = next.as_ref().map_or(start, |(scheduled, _)| *scheduled);
        tokio::select! {
            () = &mut stop => break,
            () = sleep_until(due), if next.is_some() => {
                let Some((scheduled, answer)) = next.take() else { continue };
                if in_flight.len() < max_in_flight {
                    in_flight.spawn(async move {
                        let sent = Instant::now();
                        Outcome { scheduled, sent, result: answer.await }
                    });
                } else {
                    measurement.add(Outcome { scheduled, sent: scheduled, result: Err(Failure::NotSent) });
                    on_outcome(&measurement);
                }
                next = waiting.next();
            }
            Some(joined) = in_flight.join_next() => {
                measurement.add(joined.expect("requests do not panic and are not aborted before the end"));
                on_outcome(&measurement);
            }
        }
    }
    measurement.abandoned = in_flight.len() as u64;
    measurement.elapsed = start.elapsed();
    measurement
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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

    #[test]
    fn lateness_of_the_generator_is_in_the_latency_and_shown() {
        let mut measurement = Measurement::new(Objective::default());
        let scheduled = Instant::now();
        let sent = scheduled + 30 * MS;
        let completion = Completion {
            pieces: vec![sent + 5 * MS],
            ..Completion::default()
        };
        measurement.add(Outcome {
            scheduled,
            sent,
            result: Ok(completion),
        });
        about(measurement.first_token.max_ms(), 35.0);
        about(measurement.send_delay.max_ms(), 30.0);
        assert_eq!((measurement.uncounted, measurement.output_tokens), (1, 1));
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
            .map(|(kind, (count, _))| (kind.as_str(), *count))
            .collect();
        assert_eq!(counts, [("http_429", 3), ("timeout", 3)]);
        assert_eq!(all.failures["http_429"].1, "HTTP 429: queue full");
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
                all.failures["not_sent"].0,
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
}
