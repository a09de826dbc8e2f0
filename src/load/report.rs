//! What a run was like: percentiles, goodput, failures.

use super::client::Timed;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a request must keep to count as good.
#[derive(Debug, Clone, Copy)]
pub struct Slo {
    /// Time to the first token.
    pub first_token: Duration,
    /// Mean time between tokens of a request.
    pub inter_token: Duration,
}

/// All requests of a run.
pub struct Report {
    first_token: Histogram<u64>,
    inter_token: Histogram<u64>,
    total: Histogram<u64>,
    failures: BTreeMap<String, u64>,
    requests: u64,
    good: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    seconds: f64,
    slo: Slo,
    /// Latest that a request was sent after it was due.
    pub latest: Duration,
}

/// Percentiles that are printed.
const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("max", 100.0)];

impl Report {
    /// Takes in the requests of a run of `seconds`.
    ///
    /// # Errors
    /// Never in practice: the histograms' bounds are constants.
    pub fn new(timed: &[Timed], seconds: f64, slo: Slo) -> anyhow::Result<Self> {
        // Microseconds up to a day, three digits.
        let histogram = || Histogram::new_with_bounds(1, 24 * 3600 * 1_000_000, 3);
        let mut report = Self {
            first_token: histogram()?,
            inter_token: histogram()?,
            total: histogram()?,
            failures: BTreeMap::new(),
            requests: timed.len() as u64,
            good: 0,
            prompt_tokens: 0,
            output_tokens: 0,
            seconds,
            slo,
            latest: Duration::ZERO,
        };
        timed.iter().for_each(|one| report.take(one));
        Ok(report)
    }

    fn take(&mut self, timed: &Timed) {
        if let Some(error) = &timed.error {
            *self.failures.entry(error.clone()).or_default() += 1;
            return;
        }
        let record =
            |histogram: &mut Histogram<u64>, time: Duration| histogram.saturating_record(time.as_micros() as u64);
        record(&mut self.total, timed.total);
        timed.gaps.iter().for_each(|&gap| record(&mut self.inter_token, gap));
        let first = timed.first_token.unwrap_or(timed.total);
        record(&mut self.first_token, first);
        self.prompt_tokens += timed.prompt_tokens;
        self.output_tokens += timed.output_tokens;
        let mean = timed.gaps.iter().sum::<Duration>() / timed.gaps.len().max(1) as u32;
        self.good += u64::from(first <= self.slo.first_token && mean <= self.slo.inter_token);
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let percentiles = |histogram: &Histogram<u64>| {
            let at = |&(name, p): &(&str, f64)| (name.to_owned(), json!(histogram.value_at_percentile(p) as f64 / 1e6));
            Value::Object(PERCENTILES.iter().map(at).collect())
        };
        json!({
            "requests": self.requests, "failed": self.failures, "seconds": self.seconds,
            "prompt_tokens": self.prompt_tokens, "output_tokens": self.output_tokens,
            "output_tokens_per_second": self.output_tokens as f64 / self.seconds,
            "good_requests_per_second": self.good as f64 / self.seconds,
            "slo": {"first_token": self.slo.first_token.as_secs_f64(), "inter_token": self.slo.inter_token.as_secs_f64()},
            "first_token_seconds": percentiles(&self.first_token),
            "inter_token_seconds": percentiles(&self.inter_token),
            "total_seconds": percentiles(&self.total),
            "sent_late_seconds": self.latest.as_secs_f64(),
        })
    }

    /// For people.
    pub fn table(&self) -> String {
        let failed: u64 = self.failures.values().sum();
        let mut text = format!(
            "{} requests in {:.1} s, {failed} failed; {} prompt and {} output tokens, {:.1} output tokens/s\n",
            self.requests,
            self.seconds,
            self.prompt_tokens,
            self.output_tokens,
            self.output_tokens as f64 / self.seconds
        );
        text += &format!(
            "goodput {:.2} requests/s (first token within {:?}, {:?} between tokens)\n\n",
            self.good as f64 / self.seconds,
            self.slo.first_token,
            self.slo.inter_token
        );
        text += "ms                    p50       p90       p99       max\n";
        for (name, histogram) in
            [("first token", &self.first_token), ("between tokens", &self.inter_token), ("whole request", &self.total)]
        {
            text += &format!("{name:15}");
            for (_, percentile) in PERCENTILES {
                text += &format!("{:10.1}", histogram.value_at_percentile(percentile) as f64 / 1e3);
            }
            text.push('\n');
        }
        for (error, count) in &self.failures {
            text += &format!("failed: {count} × {error}\n");
        }
        if self.latest > Duration::from_millis(100) {
            text += &format!("this program fell behind by up to {:?}: the figures are of a busy client\n", self.latest);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_as_neither_good_nor_fast() {
        let ms = Duration::from_millis;
        let good = Timed {
            first_token: Some(ms(100)),
            gaps: vec![ms(10), ms(30)],
            total: ms(140),
            output_tokens: 3,
            ..Default::default()
        };
        let slow = Timed { first_token: Some(ms(900)), ..good.clone() };
        let failed = Timed { error: Some("429".into()), ..Timed::default() };
        let slo = Slo { first_token: ms(500), inter_token: ms(20) };
        let report = Report::new(&[good.clone(), slow, failed.clone(), failed, good], 2.0, slo).unwrap();
        let json = report.json();
        assert_eq!((&json["requests"], &json["failed"]["429"]), (&json!(5), &json!(2)));
        assert_eq!(json["good_requests_per_second"], 1.0);
        assert_eq!(json["output_tokens"], 9);
        let p50 = json["first_token_seconds"]["p50"].as_f64().unwrap();
        assert!((0.0999..0.1002).contains(&p50), "{p50}");
        assert!(report.table().contains("failed: 2 × 429"));
    }
}
