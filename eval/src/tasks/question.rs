//! A question: what a task becomes for one sample, and how its answer is judged.

use super::filler::Filler;
use super::haystack::Needle;
use super::metrics::Metric;

/// How an answer is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judge {
    /// All answers must be there; the score is the share that is.
    All,
    /// One of them must.
    Any,
    /// LongBench's: the best score against one of them.
    Long {
        /// Metric.
        metric: Metric,
        /// Whether only the first line counts.
        first_line: bool,
        /// Classes of a question of classes.
        classes: Vec<String>,
    },
}

impl Judge {
    /// Whether text at the end of an answer can lower its score, so that the whole answer must be
    /// decoded.
    pub fn needs_all(&self) -> bool {
        matches!(self, Self::Long { .. })
    }
}

/// A task made concrete: everything but the length of its haystack.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// Before the haystack.
    pub instruction: String,
    /// The haystack without needles.
    pub filler: Filler<'a>,
    /// What is hidden in it.
    pub needles: Vec<Needle>,
    /// After the haystack.
    pub question: String,
    /// Forced beginning of the answer.
    pub answer_prefix: String,
    /// Strings that the answer must contain.
    pub answers: Vec<String>,
    /// How it is judged.
    pub judge: Judge,
    /// Whether the prompt is a chat message; otherwise the model goes on with the text.
    pub chat: bool,
    /// The answer whose likelihood is measured, as it would continue the prefix.
    pub expected: String,
}

impl Question<'_> {
    /// From 0 to 1. For [`Judge::All`] and [`Judge::Any`] RULER's string match: what `text`
    /// contains, whatever its case.
    pub fn score(&self, text: &str) -> f64 {
        let found = || {
            let text = text.to_lowercase();
            self.answers
                .iter()
                .filter(|a| text.contains(&a.to_lowercase()))
                .count()
        };
        match &self.judge {
            Judge::All => found() as f64 / self.answers.len().max(1) as f64,
            Judge::Any => f64::from(u8::from(found() > 0)),
            Judge::Long {
                metric,
                first_line,
                classes,
            } => {
                let first = || {
                    text.trim_start_matches('\n')
                        .split('\n')
                        .next()
                        .unwrap_or("")
                };
                let text = if *first_line { first() } else { text };
                self.answers
                    .iter()
                    .map(|truth| metric.score(text, truth, classes))
                    .fold(0.0, f64::max)
            }
        }
    }
}

/// Which question of a task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Seed of the grid.
    pub seed: u64,
    /// Sample.
    pub index: usize,
    /// Where needles are, from 0 to 1; `None`: at random.
    pub depth: Option<f64>,
    /// Tokens of the context. Only word lists depend on it.
    pub length: usize,
    /// Which of the task's keys is asked for. The context does not depend on it.
    pub key: usize,
}
