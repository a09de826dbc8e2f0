//! What a run found: a table for people, one JSON object for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::measure::{Failures, Latencies, Measurement};

/// Sending later than this at p99 means that the generator, not the server, shaped the load.
const BEHIND_MS: f64 = 10.0;
const PERCENTILES: [f64; 3] = [50.0, 90.0, 99.0];

/// What was asked of the generator, for the head of the report.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The server.
    pub url: String,
    /// The model that was asked for.
    pub model: String,
    /// Mean arrivals per second.
    pub rate: f64,
    /// Arrivals of the schedule.
    pub requests: usize,
    /// Time of the last arrival in seconds.
    pub last_arrival_seconds: f64,
    /// Seed of times, lengths and prompts.
    pub seed: u64,
    /// Distribution of the prompts' lengths.
    pub prompt_tokens: String,
    /// Distribution of the answers' lengths.
    pub output_tokens: String,
    /// Tokens of a word of the text.
    pub tokens_per_word: f64,
    /// Limit of the time to first token, in milliseconds.
    pub slo_ttft_ms: Option<f64>,
    /// Limit of the mean time between tokens, in milliseconds.
    pub slo_itl_ms: Option<f64>,
    /// Merged into each request, as given.
    pub body: Option<String>,
}

/// A finished run.
#[derive(Debug)]
pub struct Report<'a> {
    /// What was asked of the generator.
    pub setting: &'a Setting,
    /// What it found.
    pub measured: &'a Measurement,
}

/// One row of the table of latencies.
struct Row<'a> {
    /// Its name in JSON, without the unit.
    key: &'static str,
    /// Its name for people.
    name: &'static str,
    latencies: &'a Latencies,
}

impl Report<'_> {
    fn rows(&self) -> [Row<'_>; 5] {
        let m = self.measured;
        let row = |key, name, latencies| Row {
            key,
            name,
            latencies,
        };
        [
            row("time_to_first_token", "time to first token", &m.first_token),
            row("inter_token", "inter-token", &m.inter_token),
            row("longest_gap", "longest gap of a request", &m.longest_gap),
            row("end_to_end", "end to end", &m.end_to_end),
            row("send_delay", "sent late by", &m.send_delay),
        ]
    }

    /// `count` per second of the run.
    fn per_second(&self, count: u64) -> f64 {
        let seconds = self.measured.elapsed.as_secs_f64();
        if seconds > 0.0 {
            count as f64 / seconds
        } else {
            0.0
        }
    }

    /// Share of the requests that were due and have an outcome; those that failed are not good.
    fn good_share(&self) -> f64 {
        self.measured.good as f64 / (self.measured.finished() as f64).max(1.0)
    }

    /// What a reader must know before trusting the figures.
    pub fn warnings(&self) -> Vec<String> {
        let m = self.measured;
        let mut warnings = Vec::new();
        if let Some(late) = m
            .send_delay
            .percentile_ms(99.0)
            .filter(|late| *late > BEHIND_MS)
        {
            warnings.push(format!(
                "the generator fell behind: 1 request in 100 was sent {late:.0} ms late or more. \
                 The latencies include this. Use a quieter machine or a lower rate."
            ));
        }
        if let Some(failures) = m.failures.get("not_sent") {
            warnings.push(format!(
                "{} requests were not sent: raise --max-in-flight, or the rate is too high",
                failures.count
            ));
        }
        if m.uncounted > 0 {
            let uncounted = m.uncounted;
            warnings.push(format!(
                "{uncounted} answers came without a count of tokens: pieces are counted instead"
            ));
        }
        if m.abandoned > 0 {
            warnings.push(format!(
                "stopped early; {} requests in flight are not in the figures",
                m.abandoned
            ));
        }
        warnings
    }

    /// One object; times in milliseconds, absent percentiles are null.
    pub fn json(&self) -> Value {
        let (s, m) = (self.setting, self.measured);
        let latency = |l: &Latencies| {
            let [p50, p90, p99] = PERCENTILES.map(|percent| l.percentile_ms(percent));
            json!({
                "count": l.count(), "mean": l.mean_ms(), "p50": p50, "p90": p90, "p99": p99,
                "max": l.max_ms(),
            })
        };
        let latencies: serde_json::Map<String, Value> = self
            .rows()
            .into_iter()
            .map(|row| (format!("{}_ms", row.key), latency(row.latencies)))
            .collect();
        let failures: serde_json::Map<String, Value> = m
            .failures
            .iter()
            .map(|(kind, Failures { count, first })| {
                (kind.clone(), json!({"count": count, "first": first}))
            })
            .collect();
        json!({
            "kind": "load", "url": s.url, "model": s.model, "rate": s.rate, "seed": s.seed,
            "prompt_tokens_asked": s.prompt_tokens, "output_tokens_asked": s.output_tokens,
            "tokens_per_word": s.tokens_per_word, "body": s.body,
            "slo_ttft_ms": s.slo_ttft_ms, "slo_itl_ms": s.slo_itl_ms,
            "requests": s.requests, "completed": m.completed, "good": m.good,
            "abandoned": m.abandoned, "elapsed_seconds": m.elapsed.as_secs_f64(),
            "last_arrival_seconds": s.last_arrival_seconds,
            "completed_per_second": self.per_second(m.completed),
            "goodput_per_second": self.per_second(m.good), "good_share": self.good_share(),
            "prompt_tokens": m.prompt_tokens, "output_tokens": m.output_tokens,
            "output_tokens_per_second": self.per_second(m.output_tokens),
            "uncounted": m.uncounted, "latency": latencies, "failures": failures,
            "warnings": self.warnings(),
        })
    }

    /// The table.
    pub fn text(&self) -> String {
        let (s, m) = (self.setting, self.measured);
        let mut text = format!(
            "{} requests to {} at {} ({}/s, Poisson, seed {})\nprompts {}, answers {} tokens\n\n",
            s.requests, s.model, s.url, s.rate, s.seed, s.prompt_tokens, s.output_tokens
        );
        self.write_latencies(&mut text);
        self.write_throughput(&mut text);
        for (kind, Failures { count, first }) in &m.failures {
            let _ = writeln!(text, "failed {count:>6}  {kind:<14} {first}");
        }
        for warning in self.warnings() {
            let _ = writeln!(text, "warning: {warning}");
        }
        text
    }

    fn write_latencies(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "{:<26}{:>10}{:>10}{:>10}{:>10}",
            "milliseconds", "p50", "p90", "p99", "max"
        );
        for Row {
            name, latencies, ..
        } in self.rows()
        {
            let _ = write!(text, "{name:<26}");
            let values = PERCENTILES.map(|percent| latencies.percentile_ms(percent));
            for value in values.into_iter().chain([latencies.max_ms()]) {
                let value = value.map_or("-".into(), |value| format!("{value:.1}"));
                let _ = write!(text, "{value:>10}");
            }
            text.push('\n');
        }
    }

    fn write_throughput(&self, text: &mut String) {
        let (s, m) = (self.setting, self.measured);
        let _ = writeln!(
            text,
            "\n{} completed, {} failed in {:.1} s: {:.2} requests/s, {:.1} output tokens/s",
            m.completed,
            m.failed(),
            m.elapsed.as_secs_f64(),
            self.per_second(m.completed),
            self.per_second(m.output_tokens)
        );
        let mean = |total: u64| total as f64 / m.completed.max(1) as f64;
        let (prompt, output) = (mean(m.prompt_tokens), mean(m.output_tokens));
        let _ = writeln!(
            text,
            "mean prompt {prompt:.1} tokens, mean answer {output:.1} tokens"
        );

        let limits = [
            ("first token", s.slo_ttft_ms),
            ("inter-token mean", s.slo_itl_ms),
        ];
        let limits: Vec<String> = limits
            .iter()
            .filter_map(|(name, ms)| ms.map(|ms| format!("{name} <= {ms} ms")))
            .collect();
        if !limits.is_empty() {
            let (rate, share) = (self.per_second(m.good), self.good_share() * 100.0);
            let _ = writeln!(
                text,
                "goodput {rate:.2} requests/s, {share:.1} % of all ({})",
                limits.join(", ")
            );
        }
    }
}

#[cfg(test)]
mod tests;
