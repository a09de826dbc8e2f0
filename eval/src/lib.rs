//! Offline evaluation of a rank: retrieval tasks after RULER, LongBench, and next-token loss on
//! prose, over lengths, budgets, policies, memories and head budgets.
//!
//! ```text
//! tasks ▸ prompt (context | question | answer) ▸ measure on an OfflineSequence ▸ samples.jsonl ▸ cells ▸ table.md, *.svg
//! ```
//! Everything is a function of the seed: sample `i` of a task and length is the same text for every
//! policy and budget, so differences between cells are paired. A run that was cut off goes on where
//! it stopped.
//!
//! LongBench is read from its own files and measured the same way.
//!
//! Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?", 2024.
#![forbid(unsafe_code)]

pub mod caches;
pub mod contracts;
pub mod draws;
pub mod grid;
pub mod haystack;
pub mod headline;
pub mod longbench;
pub mod measure;
pub mod oracle;
pub mod perplexity;
pub mod plot;
pub mod prompt;
pub mod report;
pub mod sample;
pub mod show;
pub mod stats;
pub mod store;
pub mod tasks;

use std::path::PathBuf;

pub use contracts::{Budget, CacheShape};
pub use grid::{Cell, CellResult, GridSpec, Outcome, run_grid};

/// Result of an evaluation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an evaluation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rank refused or failed.
    #[error(transparent)]
    Worker(#[from] palimpsest_engine::error::Error),
    /// The tokenizer or the chat template refused a text.
    #[error("the model's text side: {0}")]
    Text(String),
    /// The prompt does not fit the wanted length.
    #[error(
        "a context of {length} tokens is too short: what must be in it takes {needed}; ask for a \
         greater length"
    )]
    TooShort {
        /// Tokens wanted.
        length: usize,
        /// Tokens of instruction and needles.
        needed: usize,
    },
    /// The text is too short.
    #[error("the text has {found} {unit}, {needed} are needed; give a longer one with --text")]
    Prose {
        /// What there is.
        found: usize,
        /// What it takes.
        needed: usize,
        /// What is counted.
        unit: &'static str,
    },
    /// The grid asks what cannot be.
    #[error("{0}")]
    Spec(String),
    /// The model's output is not a number.
    #[error("the model's output is not a number; its weights may be damaged")]
    NotANumber,
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line of an earlier run cannot be read.
    #[error("{path}, line {line}: {message}; move the file away or choose another --out")]
    Record {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
}

/// Between text and token ids. The caller implements it, so that this crate needs no tokenizer of
/// its own.
pub trait TextSide {
    /// Token ids of `text`; markers of the chat template become control tokens, nothing is added
    /// around the text.
    ///
    /// # Errors
    /// [`Error::Text`].
    fn encode(&self, text: &str) -> Result<Vec<u32>>;
    /// Text of the ids, without control tokens.
    fn decode(&self, ids: &[u32]) -> String;
    /// A conversation of one user message, up to and including the forced beginning of the answer.
    ///
    /// # Errors
    /// [`Error::Text`].
    fn chat(&self, user: &str, answer_prefix: &str) -> Result<String>;
    /// Whether generation ends with this token.
    fn ends(&self, id: u32) -> bool;
}

/// Receives samples done and samples in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);
