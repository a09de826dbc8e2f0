//! What was typed. Every flag of a service has an environment twin.

mod cluster;
mod model;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
pub use cluster::*;
pub use model::*;

/// LLM inference with a bounded KV cache.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
pub struct Cli {
    /// Log filter, such as `info` or `palimpsest_coordinator=debug`.
    #[arg(long, global = true, env = "PALIMPSEST_LOG", default_value = "warn")]
    pub log: String,
    /// Logs as JSON lines.
    #[arg(long, global = true, env = "PALIMPSEST_LOG_JSON")]
    pub log_json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch the default model, serve it in this process and ask a question about a long document.
    Quickstart(QuickstartArgs),
    /// Fetch a model into the cache directory.
    Pull(PullArgs),
    /// Serve a model over gRPC, all in one process.
    Serve(ServeArgs),
    /// Serve a model whose ranks are processes, started with `palimpsest worker`.
    Coordinator(CoordinatorArgs),
    /// Run one rank of a worker group.
    Worker(WorkerArgs),
    /// Ask a running server.
    Generate(GenerateArgs),
    /// Ask a server or a rank for its health, as a probe does: exit code 0 when it serves.
    Health(HealthArgs),
    /// Measure this engine.
    Bench(BenchArgs),
    /// Train the indexer of a model from text.
    Calibrate(CalibrateArgs),
    /// Measure retrieval and perplexity under eviction.
    Eval(Box<crate::eval::EvalArgs>),
    /// Say what a model file or directory holds.
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
pub struct QuickstartArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub kv: KvArgs,
    /// Ranks that share the model, as threads of this process: tensor parallelism.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub tp: u8,
    /// Your own document instead of the built-in one.
    #[arg(long)]
    pub document: Option<PathBuf>,
    /// Your own question about it.
    #[arg(long, requires = "document")]
    pub question: Option<String>,
    /// Tokens of the answer at most.
    #[arg(long, default_value_t = 48)]
    pub max_tokens: u32,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Server to ask.
    #[arg(
        long,
        env = "PALIMPSEST_SERVER",
        default_value = "http://127.0.0.1:50051"
    )]
    pub server: String,
    /// Sent as a bearer token.
    #[arg(long, env = "PALIMPSEST_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    #[command(flatten)]
    pub tls: ClientTlsArgs,
    /// Prompt; with a file, the text that follows it.
    #[arg(long, required_unless_present = "prompt_file")]
    pub prompt: Option<String>,
    /// File with the prompt or its beginning, `-` for standard input.
    #[arg(long)]
    pub prompt_file: Option<PathBuf>,
    /// Send the text as it is, without the model's chat template.
    #[arg(long)]
    pub raw: bool,
    /// Text that the answer must begin with.
    #[arg(long, conflicts_with = "raw", default_value = "")]
    pub answer_prefix: String,
    #[command(flatten)]
    pub kv: KvArgs,
    /// Tokens to generate at most.
    #[arg(long)]
    pub max_tokens: Option<u32>,
    /// 0 is greedy.
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Sample among the best K tokens.
    #[arg(long, default_value_t = 0)]
    pub top_k: u32,
    /// Sample among the best tokens that together reach this probability.
    #[arg(long)]
    pub top_p: Option<f32>,
    /// Seed of the draws.
    #[arg(long)]
    pub seed: Option<u64>,
    /// End the answer at this text; may be given several times.
    #[arg(long)]
    pub stop: Vec<String>,
    /// Seconds until the request is given up.
    #[arg(long)]
    pub timeout: Option<f64>,
    /// One JSON object per event on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub kind: BenchKind,
}

#[derive(Debug, Subcommand)]
pub enum BenchKind {
    /// Time to read a prompt of each length.
    Prefill(BenchRun),
    /// Time per generated token after a context of each length.
    Decode(BenchRun),
    /// Any OpenAI-compatible server, under requests that arrive at random.
    Load(Box<crate::load::LoadArgs>),
}

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

#[derive(Debug, Args)]
pub struct CalibrateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Directory with .txt and .md files to learn from.
    #[arg(long)]
    pub corpus: PathBuf,
    /// Indexer file to write.
    #[arg(long)]
    pub out: PathBuf,
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
    /// larger one.
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

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A model file or directory, or an indexer file.
    pub path: PathBuf,
    /// JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}
