//! The run itself: sends every request at its time, whether or not the ones before it were
//! answered.
//!
//! Latency counts from the time a request was scheduled for, not from when it could be sent. A
//! server that stalls would otherwise hold the generator back and look better the worse it is
//! ("coordinated omission", Gil Tene).

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::answer::{Completion, Failure};
use crate::measure::{Measurement, Objective, Outcome};
use crate::schedule::Arrival;

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
                    measurement.add(Outcome {
                        scheduled,
                        sent: scheduled,
                        result: Err(Failure::NotSent),
                    });
                    on_outcome(&measurement);
                }
                next = waiting.next();
            }
            Some(joined) = in_flight.join_next() => {
                let outcome = joined.expect("a request does not panic, and none is aborted here");
                measurement.add(outcome);
                on_outcome(&measurement);
            }
        }
    }
    measurement.abandoned = in_flight.len() as u64;
    measurement.elapsed = start.elapsed();
    measurement
}

#[cfg(test)]
mod tests;
