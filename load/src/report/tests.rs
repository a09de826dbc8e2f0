//! The figures of a small run, as JSON and as a table.

use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::answer::{Completion, Failure};
use crate::measure::{Objective, Outcome};

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
