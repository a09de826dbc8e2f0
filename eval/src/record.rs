//! The data of a run: what was set, what each sample gave, what the samples of a cell give
//! together.
//!
//! Retrieval has a [`Setting`] (the question) and a [`CacheShape`] (the cache), which are a
//! [`Cell`]; its samples are [`SampleResult`]s, lines of `samples.jsonl`, and [`CellResult`] is
//! their mean. Next-token loss has [`LossCell`], [`LossSample`] (lines of `perplexity.jsonl`) and
//! [`LossResult`]. Fields are in the order in which the lines have them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::contracts::CacheShape;
use crate::stats::{mean_and_error, wilson};
use crate::tasks::Task;

/// Whether the question is known when the context is evicted. Results of different protocols do not
/// compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// It is not.
    Agnostic,
    /// It stands before the context.
    QuestionFirst,
    /// It ends the context, so that policies that look at the last queries see those of the
    /// question.
    #[serde(alias = "aware")]
    QuestionLast,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 3] = [Self::Agnostic, Self::QuestionFirst, Self::QuestionLast];

    /// Its name in records, tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agnostic => "agnostic",
            Self::QuestionFirst => "question-first",
            Self::QuestionLast => "question-last",
        }
    }
}

/// When an answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Greedy decoding gives the expected answer token by token. Read off the teacher-forced pass.
    Exact,
    /// RULER's string match on the greedily decoded text, see [`crate::tasks::Question::score`].
    #[serde(alias = "recall")]
    Match,
}

impl Metric {
    /// Its name in records, tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Match => "match",
        }
    }
}

/// Everything but the cache that a sample depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Model and indexer.
    pub model: String,
    /// Task.
    pub task: Task,
    /// Tokens of the context.
    pub length: usize,
    /// Percent.
    pub depth: Option<u32>,
    /// Protocol.
    pub protocol: Protocol,
    /// Metric.
    pub metric: Metric,
    /// Seed.
    pub seed: u64,
    /// Digest of the text or the questions that the task is made of.
    pub text: String,
    /// See [`Task::revision`].
    #[serde(default)]
    pub revision: u32,
    /// Questions on one context.
    #[serde(default = "one")]
    pub questions: usize,
    /// Tokens between boundaries.
    pub stride: usize,
    /// Tokens decoded at most.
    pub max_tokens: usize,
}

fn one() -> usize {
    1
}

/// One point of the grid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// What is asked.
    #[serde(flatten)]
    pub setting: Setting,
    /// What the sequence may hold.
    #[serde(flatten)]
    pub cache: CacheShape,
}

/// One sample of a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleResult {
    /// Its cell.
    #[serde(flatten)]
    pub cell: Cell,
    /// Which sample.
    pub index: usize,
    /// From 0 to 1, by the cell's metric.
    pub score: f64,
    /// Whether the expected answer would be decoded token by token, whatever the metric.
    #[serde(default)]
    pub exact: bool,
    /// Mean log-likelihood per token of the expected answer, nats.
    pub loglik: f64,
    /// Mean entries per KV head when the answer begins, everything counted.
    pub held: f64,
    /// `held` as a share of the prompt.
    pub share: f64,
    /// Tokens before the answer.
    pub prompt_tokens: usize,
    /// Of these, tokens after the last boundary.
    pub tail_tokens: usize,
    /// Entries of the contract.
    pub contract_budget: Option<u32>,
    /// Window of the contract.
    pub contract_window: u32,
    /// Memory of the contract.
    pub contract_memory_slots: u32,
    /// The answer that was expected.
    pub expected: String,
    /// What was decoded, where something was.
    pub decoded: Option<String>,
    /// Seconds: reading the prompt, the expected answer, decoding.
    pub seconds: [f64; 3],
}

/// A cell's samples together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// The cell.
    #[serde(flatten)]
    pub cell: Cell,
    /// Samples.
    pub n: usize,
    /// Mean score.
    pub accuracy: f64,
    /// Its 95 % Wilson interval.
    pub accuracy_low: f64,
    /// Its upper end.
    pub accuracy_high: f64,
    /// Mean over samples of the log-likelihood per answer token, nats.
    pub loglik: f64,
    /// Its standard error.
    pub loglik_error: Option<f64>,
    /// Mean share held.
    pub share: f64,
}

impl CellResult {
    /// Aggregates a cell's samples.
    pub fn of(cell: &Cell, samples: &[&SampleResult]) -> Self {
        let n = samples.len();
        let mean = |of: fn(&SampleResult) -> f64| {
            mean_and_error(&samples.iter().map(|s| of(s)).collect::<Vec<_>>())
        };
        let accuracy = mean(|s| s.score).0;
        let (accuracy_low, accuracy_high) = wilson(accuracy, n);
        let (loglik, loglik_error) = mean(|s| s.loglik);
        let share = mean(|s| s.share).0;
        Self {
            cell: cell.clone(),
            n,
            accuracy,
            accuracy_low,
            accuracy_high,
            loglik,
            loglik_error,
            share,
        }
    }
}

/// What a window of prose is read under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossCell {
    /// Model and indexer.
    pub model: String,
    /// Tokens of the window.
    pub length: usize,
    /// First token of the windows counts from 0; how many there are decides where they are.
    pub windows: usize,
    /// Digest of the text.
    pub text: String,
    /// Tokens between boundaries.
    pub stride: usize,
    /// What the sequence may hold.
    #[serde(flatten)]
    pub cache: CacheShape,
}

/// Loss of the tokens at positions `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// First position predicted.
    pub start: usize,
    /// Position after the last.
    pub end: usize,
    /// Mean loss per token, nats.
    pub loss: f64,
}

/// First bucket of positions; each further one is as wide as all before it.
const FIRST_BUCKET: usize = 256;

/// Positions of the buckets of a window: 0-256, 256-512, 512-1024, and so on.
pub fn buckets(length: usize) -> Vec<Range<usize>> {
    let mut buckets = Vec::new();
    let (mut start, mut end) = (0, FIRST_BUCKET);
    while start < length {
        buckets.push(start..end.min(length));
        (start, end) = (end, end * 2);
    }
    buckets
}

/// One window under one cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossSample {
    /// Its cell.
    #[serde(flatten)]
    pub cell: LossCell,
    /// Which window.
    pub index: usize,
    /// Loss by position.
    pub buckets: Vec<Bucket>,
    /// Mean entries per KV head at the end of the window, latent memory included.
    pub held: f64,
}

/// A bucket's windows together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossResult {
    /// The cell.
    #[serde(flatten)]
    pub cell: LossCell,
    /// Positions.
    pub start: usize,
    /// End of the positions.
    pub end: usize,
    /// Windows.
    pub n: usize,
    /// Mean loss, nats per token.
    pub loss: f64,
    /// Its standard error over windows.
    pub loss_error: Option<f64>,
    /// Mean loss above the full cache's, window by window; only where that was measured.
    pub above_full: Option<f64>,
    /// Its standard error.
    pub above_full_error: Option<f64>,
    /// Windows that the full cache has, too.
    pub above_full_n: usize,
}

#[cfg(test)]
pub(crate) mod tests {
    use palimpsest_kernels::KvType;

    use super::*;
    use crate::caches::tests::caches;

    #[test]
    fn records_round_trip() {
        let cache = caches()
            .shapes(KvType::F16, &|_| true)
            .expect("a grid")
            .pop()
            .expect("a shape");
        let cell = Cell {
            setting: setting(),
            cache,
        };
        let json = serde_json::to_string(&cell).expect("JSON");
        assert_eq!(serde_json::from_str::<Cell>(&json).expect("a cell"), cell);
        let before = json.replace(r#","kv_type":"f16""#, "");
        assert_ne!(before, json);
        assert_eq!(
            serde_json::from_str::<Cell>(&before).expect("a record of before there were others"),
            cell
        );
    }

    #[test]
    fn protocols_keep_their_names() {
        for protocol in Protocol::ALL {
            let json = serde_json::to_string(&protocol).expect("JSON");
            assert_eq!(json, format!("\"{}\"", protocol.name()));
        }
    }

    #[test]
    fn buckets_cover_every_position_once() {
        assert_eq!(buckets(1500), [0..256, 256..512, 512..1024, 1024..1500]);
        let whole = buckets(256);
        assert_eq!((whole.len(), &whole[0]), (1, &(0..256)));
        for length in [2, 255, 257, 4096] {
            let covered: usize = buckets(length).iter().map(Range::len).sum();
            assert_eq!(covered, length);
        }
    }

    pub(crate) fn setting() -> Setting {
        Setting {
            model: "m".into(),
            task: Task::Vt(2),
            length: 512,
            depth: Some(50),
            protocol: Protocol::QuestionLast,
            metric: Metric::Match,
            seed: u64::MAX,
            text: "ff".into(),
            revision: Task::Vt(2).revision(),
            questions: 1,
            stride: 256,
            max_tokens: 64,
        }
    }

    pub(crate) fn sample_of(cell: Cell, score: f64) -> SampleResult {
        SampleResult {
            cell,
            index: 0,
            score,
            exact: false,
            loglik: -1.0,
            held: 100.0,
            share: 0.1,
            prompt_tokens: 1000,
            tail_tokens: 10,
            contract_budget: None,
            contract_window: 0,
            contract_memory_slots: 0,
            expected: String::new(),
            decoded: None,
            seconds: [0.0; 3],
        }
    }
}
