//! `bench prefill` and `bench decode`.

use clap::{Args, Subcommand};

use super::{KvArgs, LoadArgs, ModelArgs};
use crate::bench::{Config, Kind};

/// What to measure.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub kind: BenchKind,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum BenchKind {
    /// Time to read a prompt of each length.
    Prefill(BenchRun),
    /// Time per generated token after a context of each length.
    Decode(BenchRun),
    /// Any OpenAI-compatible server, under requests that arrive at random.
    Load(Box<LoadArgs>),
}

/// A measurement of this engine.
#[derive(Debug, Args)]
pub struct BenchRun {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub kv: KvArgs,
    /// Context lengths.
    #[arg(long, value_delimiter = ',', default_value = "512,2048,8192")]
    pub depths: Vec<usize>,
    /// Tokens that are timed when decoding.
    #[arg(long, default_value_t = 64)]
    pub tokens: usize,
    /// Sequences that decode together.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub sequences: u32,
    /// Decode after a context that was not computed: the same time per token, and no wait for a
    /// prefill. For contexts that fit the budget.
    #[arg(long)]
    pub assume_context: bool,
    /// Measurements of each point; the median is reported.
    #[arg(long, default_value_t = 1)]
    pub repeat: usize,
    /// JSON lines instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Seconds of every stride, too (prefill).
    #[arg(long)]
    pub strides: bool,
}

impl BenchRun {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self, kind: Kind) -> Config {
        Config {
            kind,
            model: self.model.config(),
            kv: self.kv.wire(),
            depths: self.depths,
            tokens: self.tokens,
            sequences: self.sequences,
            assume_context: self.assume_context,
            repeat: self.repeat.max(1),
            json: self.json,
            strides: self.strides,
        }
    }
}
