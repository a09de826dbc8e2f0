//! Why an evaluation cannot go on.

use std::path::PathBuf;

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
