//! What a run found: a table for people, one JSON object for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::measure::{Latencies, Measurement};

/// Sending later than this at p99 means that the generator, not the server, shaped the load.
const BEHIND_MS: f64 = 10.0;
const PERCENTILES: [f64; 3] = [50.0, 90.0, 99.0];

/// What was asked of the generator, for the head of the report.
#[derive(Debug, Clone)]
pub struct Setting {
    pub url: String,
    pub model: String,
    pub rate: f64,
    /// Arrivals of the schedule.
    pub requests: usize,
    /// Time of the last arrival in seconds.
    pub last_arrival_seconds: f64,
    pub seed: u64,
    pub prompt_tokens: String,
    pub output_tokens: String,
    pub tokens_per_word: f64,
    pub slo_ttft_ms: Option<f64>,
    pub slo_itl_ms: Option<f64>,
    /// Merged into each request, as given.
    pub body: Option<String>,
}

/// A finished run.
#[derive(Debug)]
pub struct Report<'a> {
    pub setting: &'a Setting,
    pub measured: &'a Measurement,
}

impl Report<'_> {
    fn latencies(&self) -> [(&'static str, &'static str, &Latencies); 5] {
        let m = self.measured;
        [
            ("time_to_first_token", "time to first token", &m.first_token),
            ("inter_token", "inter-token", &m.inter_token),
            ("longest_gap", "longest gap of a request", &m.longest_gap),
            ("end_to_end", "end to end", &m.end_to_end),
            ("send_delay", "sent late by", &m.send_delay),
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
        if let Some((count, _)) = m.failures.get("not_sent") {
            warnings.push(format!(
                "{count} requests were not sent: raise --max-in-flight, or the rate is too high"
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
            json!({"count": l.count(), "mean": l.mean_ms(), "p50": p50, "p90": p90, "p99": p99, "max": l.max_ms()})
        };
        let latencies: serde_json::Map<String, Value> = self
            .latencies()
            .into_iter()
            .map(|(key, _, l)| (format!("{key}_ms"), latency(l)))
            .collect();
        let failures: serde_json::Map<String, Value> = m
            .failures
            .iter()
            .map(|(kind, (count, first))| (kind.clone(), json!({"count": count, "first": first})))
            .collect();
        json!({
            "kind": "load", "url": s.url, "model": s.model, "rate": s.rate, "seed": s.seed,
            "prompt_tokens_asked": s.prompt_tokens, "output_tokens_asked": s.output_tokens,
            "tokens_per_word": s.tokens_per_word, "body": s.body,
            "slo_ttft_ms": s.slo_ttft_ms, "slo_itl_ms": s.slo_itl_ms,
            "requests": s.requests, "completed": m.completed, "good": m.good, "abandoned": m.abandoned,
            "elapsed_seconds": m.elapsed.as_secs_f64(), "last_arrival_seconds": s.last_arrival_seconds,
            "completed_per_second": self.per_second(m.completed),
            "goodput_per_second": self.per_second(m.good), "good_share": self.good_share(),
            "prompt_tokens": m.prompt_tokens, "output_tokens": m.output_tokens,
            "output_tokens_per_second": self.per_second(m.output_tokens),
            "uncounted": m.uncounted, "latency": latencies, "failures": failures, "warnings": self.warnings(),
        })
    }

    /// The table.
    pub fn text(&self) -> String {
        let (s, m) = (self.setting, self.measured);
        let mut text = format!(
            "{} requests to {} at {} ({}/s, Poisson, seed {})\nprompts {}, answers {} tokens\n\n",
            s.requests, s.model, s.url, s.rate, s.seed, s.prompt_tokens, s.output_tokens
        );
        let _ = writeln!(
            text,
            "{:<26}{:>10}{:>10}{:>10}{:>10}",
            "milliseconds", "p50", "p90", "p99", "max"
        );
        for (_, name, latencies) in self.latencies() {
            let _ = write!(text, "{name:<26}");
            let values = PERCENTILES.map(|percent| latencies.percentile_ms(percent));
            for value in values.into_iter().chain([latencies.max_ms()]) {
                let _ = write!(
                    text,
                    "{:>10}",
                    value.map_or("-".into(), |value| format!("{value:.1}"))
                );
            }
            text.push('\n');
        }
        let failed: u64 = m.failures.values().map(|(count, _)| count).sum();
        let _ = writeln!(
            text,
            "\n{} completed, {failed} failed in {:.1} s: {:.2} requests/s, {:.1} output tokens/s",
            m.completed,
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
        for (kind, (count, first)) in &m.failures {
            let _ = writeln!(text, "failed {count:>6}  {kind:<14} {first}");
        }
        for warning in self.warnings() {
            let _ = writeln!(text, "warning: {warning}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::super::client::{Completion, Failure};
    use super::super::measure::{Objective, Outcome};
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn setting() -> Setting {
        Setting {
            url: "http://127.0.0.1:8000".into(),
            model: "m".into(),
            rate: 4.0,
            requests: 3,
            last_arrival_seconds: 0.5,
            seed: 7,
            prompt_tokens: "fixed:10".into(),
            output_tokens: "fixed:3".into(),
            tokens_per_word: 1.3,
            slo_ttft_ms: Some(100.0),
            slo_itl_ms: None,
            body: None,
        }
    }

    /// Two answers, one of them late, and a refusal; in one second.
    fn measured() -> Measurement {
        let mut measured = Measurement::new(Objective {
            first_token: Some(100 * MS),
            inter_token: None,
        });
        let scheduled = Instant::now();
        for first in [50, 200] {
            let pieces = vec![scheduled + first * MS, scheduled + (first + 20) * MS];
            let ended = pieces.last().copied();
            let result = Ok(Completion {
                pieces,
                ended,
                prompt_tokens: Some(10),
                output_tokens: Some(2),
            });
            measured.add(Outcome {
                scheduled,
                sent: scheduled,
                result,
            });
        }
        let result = Err(Failure::Status {
            status: 429,
            message: "queue full".into(),
        });
        measured.add(Outcome {
            scheduled,
            sent: scheduled,
            result,
        });
        measured.elapsed = Duration::from_secs(1);
        measured
    }

    #[test]
    fn json_has_every_figure() {
        let (setting, measured) = (setting(), measured());
        let json = Report {
            setting: &setting,
            measured: &measured,
        }
        .json();
        assert_eq!(json["goodput_per_second"], 1.0);
        assert_eq!(json["completed_per_second"], 2.0);
        assert_eq!(json["output_tokens_per_second"], 4.0);
        assert_eq!(json["failures"]["http_429"]["count"], 1);
        assert_eq!(json["latency"]["inter_token_ms"]["count"], 2);
        let p99 = json["latency"]["time_to_first_token_ms"]["p99"]
            .as_f64()
            .expect("a number");
        assert!((p99 - 200.0).abs() < 0.5, "{p99}");
        assert_eq!(json["warnings"], json!([]));
    }

    #[test]
    fn the_table_says_the_same() {
        let (setting, measured) = (setting(), measured());
        let text = Report {
            setting: &setting,
            measured: &measured,
        }
        .text();
        for part in [
            "2 completed, 1 failed in 1.0 s: 2.00 requests/s, 4.0 output tokens/s",
            "goodput 1.00 requests/s, 33.3 % of all (first token <= 100 ms)",
            "failed      1  http_429       HTTP 429: queue full",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("warning"));
    }

    #[test]
    fn nothing_measured_prints_dashes_and_nulls() {
        let (setting, measured) = (setting(), Measurement::new(Objective::default()));
        let report = Report {
            setting: &setting,
            measured: &measured,
        };
        assert!(report.text().contains('-'));
        assert_eq!(
            report.json()["latency"]["end_to_end_ms"]["p50"],
            Value::Null
        );
        assert_eq!(report.json()["goodput_per_second"], 0.0);
    }

    #[test]
    fn a_late_generator_is_named() {
        let (setting, mut measured) = (setting(), measured());
        let scheduled = Instant::now();
        let sent = scheduled + 50 * MS;
        measured.add(Outcome {
            scheduled,
            sent,
            result: Err(Failure::Timeout),
        });
        let report = Report {
            setting: &setting,
            measured: &measured,
        };
        assert!(
            report.text().contains("the generator fell behind"),
            "{}",
            report.text()
        );
        assert_eq!(report.json()["warnings"].as_array().map(Vec::len), Some(1));
    }
}
