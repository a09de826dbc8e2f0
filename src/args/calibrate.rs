//! `calibrate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use palimpsest_engine::offline::reconstruction::Target;

use super::ModelArgs;
use crate::calibrate::{self, Parts};

/// A calibration.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Directory with .txt and .md files to learn from. Without it, the texts that this program has
    /// in it: its own book.
    #[arg(long)]
    pub corpus: Option<PathBuf>,
    /// Indexer file to write. Without it, a file of the cache directory, where the next start of
    /// this model finds it.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Fit the scorers of the policy `retention` and nothing else, on a third of the documents: for
    /// minutes instead of an hour.
    #[arg(long, conflicts_with_all = ["documents", "tune", "start"])]
    pub fast: bool,
    /// Directory for what was read of the documents (some GB), kept for the next calibration.
    /// Without it, a directory beside the output that is deleted when all went well; a calibration
    /// that was interrupted goes on from there.
    #[arg(long)]
    pub samples: Option<PathBuf>,
    /// Documents.
    #[arg(long, default_value_t = 48)]
    pub documents: usize,
    /// Tokens of a document.
    #[arg(long, default_value_t = 1200)]
    pub tokens: usize,
    /// One document in this many is held out for the report.
    #[arg(long, default_value_t = 8)]
    pub holdout: usize,
    /// Strength of the ridge penalty.
    #[arg(long, default_value_t = 3.0)]
    pub ridge: f64,
    /// What scorers learn to predict: the largest attention of a repetition, or that weighed by
    /// each token's surprisal.
    #[arg(long, value_enum, default_value = "attention")]
    pub target: TargetArg,
    /// Documents that the fitted scorers are then tuned on end to end, so that they keep what
    /// answers and text need: short ones first, a third of a minute each for a model of 135M
    /// weights on two cores, then long ones, a minute each, and 4 bytes of memory for each weight.
    /// 0: they stay as fitted. Without it, 104 for a model of up to a billion weights, 0 for a
    /// larger one. Tuning is in programs that were built with the feature `calibrate`; others only
    /// fit.
    #[arg(long)]
    pub tune: Option<usize>,
    /// How fast tuning changes the scorers, at its highest.
    #[arg(long, default_value_t = 3e-3)]
    pub tune_rate: f32,
    /// Indexer files to tune instead of fitting scorers; of several, the mean of their scorers.
    #[arg(long, num_args = 1..)]
    pub start: Vec<PathBuf>,
    /// Seed of the documents.
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

impl CalibrateArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> calibrate::Config {
        let plain = calibrate::Config {
            model: self.model.config(),
            parts: Parts::All,
            corpus: self.corpus,
            out: self.out,
            samples: self.samples,
            documents: self.documents,
            tokens: self.tokens,
            holdout: self.holdout,
            ridge: self.ridge,
            target: match self.target {
                TargetArg::Attention => Target::Attention,
                TargetArg::Surprisal => Target::Surprisal,
            },
            tune: self.tune,
            tune_rate: self.tune_rate,
            start: self.start,
            seed: self.seed,
        };
        if self.fast { plain.faster() } else { plain }
    }
}

/// What scorers learn to predict.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TargetArg {
    Attention,
    Surprisal,
}
