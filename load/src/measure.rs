//! What a run measured: latencies of complete answers, counts of the others.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;

use crate::answer::{Completion, Failure};

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

/// A histogram of times: microseconds with three significant digits, up to a year.
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
    /// The answer, or why there is none.
    pub result: Result<Completion, Failure>,
}

/// Failures of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    /// How many requests failed in this way.
    pub count: u64,
    /// What the first of them said.
    pub first: String,
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
    /// Failures by kind, see [`Failure::kind`].
    pub failures: BTreeMap<String, Failures>,
    /// Complete answers.
    pub completed: u64,
    /// Complete answers within the objective.
    pub good: u64,
    /// Tokens of all prompts that were answered, as the server counted them.
    pub prompt_tokens: u64,
    /// Tokens of all complete answers.
    pub output_tokens: u64,
    /// Answers whose tokens the server did not count; their pieces are counted instead.
    pub uncounted: u64,
    /// From the start of the run to the end of the last request.
    pub elapsed: Duration,
    /// Requests in flight when the run was stopped from outside; they are not in the figures.
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
                let failures = self
                    .failures
                    .entry(failure.kind())
                    .or_insert_with(|| Failures {
                        count: 0,
                        first: failure.to_string(),
                    });
                failures.count += 1;
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
        self.completed + self.failed()
    }

    /// Requests without a complete answer.
    pub fn failed(&self) -> u64 {
        self.failures.values().map(|failures| failures.count).sum()
    }
}

#[cfg(test)]
mod tests;
