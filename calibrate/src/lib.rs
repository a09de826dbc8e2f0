//! Trains the retention scorer of a model on an ordinary machine, forward-only.
//!
//! ```text
//! documents ▸ pass 1: read the context, capture hidden states x
//!           ▸ pass 2: repeat the context; target y = ln(max attention each key receives)   (per layer, KV head, key)
//!           ▸ normal equations of (x, y) per layer ▸ ridge regression ▸ held-out report ▸ indexer file
//! ```
//! Source of the target: KVzip's reconstruction score (method section 9); linear scorers per KV head are enough once the
//! targets are per head (method section 6.7). The model's weights are never touched and nothing is backpropagated.
//!
//! The sums are additive over documents, so training needs no memory for hidden states and can be resumed.
#![forbid(unsafe_code)]

pub mod collect;
pub mod corpus;
pub mod fit;
pub mod report;

use std::path::PathBuf;

/// Why a calibration cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the corpus cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Reason.
        source: std::io::Error,
    },
    /// The corpus has too little text.
    #[error("the corpus holds {found} tokens of text, at least {needed} are needed; add .txt or .md files")]
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
    Engine(#[from] palimpsest_worker::Error),
    /// The regression has no solution: the hidden states do not vary enough.
    #[error("layer {layer}: the normal equations are singular; use more or more varied text")]
    Singular {
        /// Decoder layer.
        layer: usize,
    },
    /// The arena is too small for a document twice.
    #[error("documents of {tokens} tokens need {needed} MiB of cache; raise --kv-memory-mib or lower --tokens")]
    Arena {
        /// Tokens of a document.
        tokens: usize,
        /// MiB needed.
        needed: usize,
    },
}

/// Result of a calibration step.
pub type Result<T> = std::result::Result<T, Error>;
