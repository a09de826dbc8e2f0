//! What is trained, from what, and where it stands.

use std::path::PathBuf;

use palimpsest_calibrate::corpus::Turns;
use palimpsest_engine::offline::reconstruction::Target;
use palimpsest_models::Model;

use crate::model::ModelConfig;

/// What to train, and from what.
#[derive(Debug)]
pub struct Config {
    /// The model.
    pub model: ModelConfig,
    /// What of it.
    pub parts: Parts,
    /// Directory with texts to learn from; those that this program has in it when `None`.
    pub corpus: Option<PathBuf>,
    /// Indexer file to write; where the next start looks for it when `None`.
    pub out: Option<PathBuf>,
    /// Directory that keeps what was read of the documents; one beside the output, deleted in the
    /// end, when `None`.
    pub samples: Option<PathBuf>,
    /// Documents.
    pub documents: usize,
    /// Tokens of a document.
    pub tokens: usize,
    /// One document in this many is held out for the report.
    pub holdout: usize,
    /// Strength of the ridge penalty.
    pub ridge: f64,
    /// What scorers learn to predict.
    pub target: Target,
    /// Documents that scorers are tuned on; by the model's size when `None`.
    pub tune: Option<usize>,
    /// How fast tuning changes the scorers, at its highest.
    pub tune_rate: f32,
    /// Indexer files to tune instead of fitting scorers.
    pub start: Vec<PathBuf>,
    /// Seed of the documents.
    pub seed: u64,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// Scorers, the pairwise indexer, and the memory.
    All,
    /// The scorers of the policy `retention`.
    Scorers,
}

/// Texts to learn from, and how they become tokens.
pub(super) struct Corpus<'a> {
    pub(super) text: &'a str,
    pub(super) tokenizer: &'a tokenizers::Tokenizer,
    /// What the chat template puts around a text.
    pub(super) turns: Turns,
}

/// What a tuning is told.
#[cfg_attr(
    not(feature = "calibrate"),
    expect(dead_code, reason = "only a tuning looks at it")
)]
pub(super) struct Job<'a> {
    pub(super) config: &'a Config,
    /// Documents.
    pub(super) steps: usize,
    pub(super) model: &'a Model,
    pub(super) corpus: &'a Corpus<'a>,
    /// Where an interrupted tuning goes on.
    pub(super) state: PathBuf,
}
