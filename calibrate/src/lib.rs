//! Trains what a model's bounded cache needs, on an ordinary machine.
//!
//! ```text
//! documents ▸ read: hidden states x, queries, keys and values of every layer
//!           ▸ repeat: target y = ln(largest attention a key receives), by layer and KV head
//!           ▸ samples on disk ▸ fits, a layer at a time ▸ held-out report ▸ indexer file
//! ```
//! [`corpus`] makes documents, [`collect`] reads them, [`store`] keeps what was read, [`run`] does
//! all of it. What is trained:
//!
//! - [`fit`]: linear scorers (policy `retention`) by ridge regression. A linear function is enough
//!   once there is a target for each KV head by itself.
//! - [`query`]: the pairwise indexer of IndexMem (arXiv 2605.25475).
//! - [`associative`]: that paper's memory. This and the pairwise indexer are trained by gradients
//!   of their own few parameters, and nothing is propagated back through the model.
//! - `tune`, where it is built in: the linear scorers once more, end to end, with soft eviction in
//!   the model's forward pass.
//!
//! The model's weights are never touched. Everything is deterministic by seed, up to the
//! processor's vector width. A calibration that was interrupted goes on: samples of documents that
//! were read stay on disk.
#![forbid(unsafe_code)]

pub mod associative;
pub mod collect;
pub mod corpus;
pub mod draws;
pub mod fit;
pub mod gradient;
mod per_layer;
pub mod query;
pub mod report;
pub mod run;
pub mod store;
#[cfg(feature = "tune")]
pub mod tune;

use std::path::PathBuf;

/// Why a calibration cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the corpus or a sample cannot be read or written.
    #[error("cannot read or write {}: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Reason.
        source: std::io::Error,
    },
    /// The corpus has too little text.
    #[error(
        "the corpus holds {found} tokens of text, at least {needed} are needed; add .txt or .md \
         files"
    )]
    TooShort {
        /// Tokens found.
        found: usize,
        /// Tokens needed.
        needed: usize,
    },
    /// The model's tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] palimpsest_engine::Error),
    /// Files that have no mean.
    #[error(
        "some of the indexers have one scorer for each KV head, others two: start from those of \
         one kind"
    )]
    Scorers,
    /// The autograd library failed.
    #[cfg(feature = "tune")]
    #[error("tuning: {0}")]
    Tensor(#[from] candle_core::Error),
    /// Tuning has its own decoder, which does not know all that the engine's does.
    #[error("tuning does not know {0}, which this model has: fit its scorers only, with --tune 0")]
    Family(&'static str),
    /// The regression has no solution: the hidden states do not vary enough.
    #[error("layer {layer}: the normal equations are singular; use more or more varied text")]
    Singular {
        /// Decoder layer.
        layer: usize,
    },
    /// A stored sample cannot be read or written.
    #[error("{} is no sample: {reason}; delete it", path.display())]
    Sample {
        /// File.
        path: PathBuf,
        /// Reason.
        reason: String,
    },
    /// The state of a tuning cannot be kept.
    #[error("the state of the tuning does not fit into {}: {reason}", path.display())]
    State {
        /// File.
        path: PathBuf,
        /// Reason.
        reason: String,
    },
    /// The arena is too small for a document twice.
    #[error(
        "documents of {tokens} tokens need {needed} MiB of cache; raise --kv-memory-mib or lower \
         --tokens"
    )]
    Arena {
        /// Tokens of a document.
        tokens: usize,
        /// MiB needed.
        needed: usize,
    },
}

/// Result of a calibration step.
pub type Result<T> = std::result::Result<T, Error>;
