//! What was typed. Every flag of a service has an environment twin. Nothing behind this module
//! knows of it: each command takes a plain configuration.

mod address;
mod bench;
mod calibrate;
mod chat;
mod cluster;
mod config;
mod eval;
mod front;
mod generate;
mod intake;
mod load;
mod model;
mod number;
mod pace;
mod responses;
mod session;
mod sessions;
mod snapshots;
#[cfg(test)]
mod tests;
mod web;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use palimpsest_models::fetch::DEFAULT_MODEL;

pub use self::bench::*;
pub use self::calibrate::*;
pub use self::chat::*;
pub use self::cluster::*;
pub use self::config::*;
pub use self::eval::*;
pub use self::front::*;
pub use self::generate::*;
pub use self::load::*;
pub use self::model::*;
pub use self::session::*;
use crate::{pull, quickstart};

/// LLM inference with a bounded KV cache.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
pub struct Cli {
    /// Log filter, such as `info` or `palimpsest_coordinator=debug`.
    #[arg(
        long,
        global = true,
        env = "PALIMPSEST_LOG",
        default_value = "warn",
        help_heading = "Logs"
    )]
    pub log: String,
    /// Logs as JSON lines.
    #[arg(
        long,
        global = true,
        env = "PALIMPSEST_LOG_JSON",
        help_heading = "Logs"
    )]
    pub log_json: bool,
    /// Configuration file of serve, coordinator and worker: TOML whose keys are names of flags. Not
    /// given: palimpsest.toml in the working directory, else in palimpsest/ of the user's
    /// configuration. An empty name: none.
    #[arg(
        long,
        global = true,
        env = "PALIMPSEST_CONFIG",
        value_name = "FILE",
        help_heading = "Configuration"
    )]
    pub config: Option<OsString>,
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch the default model, serve it in this process and ask a question about a long document.
    Quickstart(QuickstartArgs),
    /// Fetch a model into the cache directory.
    Pull(PullArgs),
    /// Serve a model over gRPC, all in one process.
    Serve(Box<ServeArgs>),
    /// Serve a model whose ranks are processes, started with `palimpsest worker`.
    Coordinator(Box<CoordinatorArgs>),
    /// Run one rank of a worker group.
    Worker(Box<WorkerArgs>),
    /// Talk to a model in the terminal.
    Chat(Box<ChatArgs>),
    /// Ask a running server.
    Generate(Box<GenerateArgs>),
    /// Keep a conversation or a document on a running server, and go on from it.
    Session(SessionArgs),
    /// Ask a server or a rank for its health, as a probe does: exit code 0 when it serves.
    Health(HealthArgs),
    /// Measure this engine.
    Bench(BenchArgs),
    /// Train the indexer of a model from text.
    Calibrate(Box<CalibrateArgs>),
    /// Measure retrieval and perplexity under eviction.
    Eval(Box<EvalArgs>),
    /// Say what a model file or directory holds.
    Inspect(InspectArgs),
    /// Look at the settings of services.
    Config(ConfigArgs),
    /// Print what a shell needs to complete this program's options.
    Completions(CompletionsArgs),
}

/// A shell.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  palimpsest completions bash > ~/.local/share/bash-completion/completions/palimpsest
  palimpsest completions zsh > ~/.zfunc/_palimpsest")]
pub struct CompletionsArgs {
    /// Which one.
    pub shell: clap_complete::Shell,
}

/// A question about a long document, answered in this process.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  palimpsest quickstart
  palimpsest quickstart --document report.txt --question 'What was decided?'")]
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

impl QuickstartArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> quickstart::Config {
        quickstart::Config {
            model: self.model.config(),
            kv: self.kv.wire(),
            tp: self.tp.into(),
            document: self.document,
            question: self.question,
            max_tokens: self.max_tokens,
        }
    }
}

/// A model to fetch, or a list of those that are here.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  palimpsest pull
  palimpsest pull Qwen/Qwen2.5-0.5B-Instruct
  palimpsest pull unsloth/Qwen3-8B-GGUF:Q4_K_M
  palimpsest pull --list

Variables of the environment are those of the hub's own programs: HF_ENDPOINT, HF_TOKEN, HF_HOME, \
                        HF_HUB_CACHE, HF_HUB_OFFLINE.")]
pub struct PullArgs {
    /// Name of a model: of a hub (owner/name, owner/name:QUANTISATION,
    /// owner/name:QUANTISATION@REVISION) or a known one.
    #[arg(default_value = DEFAULT_MODEL)]
    pub model: String,
    /// Print the models that are here, and fetch nothing.
    #[arg(long, conflicts_with = "model")]
    pub list: bool,
    /// The list as JSON.
    #[arg(long, requires = "list")]
    pub json: bool,
}

impl PullArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> pull::Config {
        match self {
            Self {
                list: true, json, ..
            } => pull::Config::List { json },
            Self { model, .. } => pull::Config::Fetch { model },
        }
    }
}

/// A file to look into.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A model file or directory, or an indexer file.
    pub path: PathBuf,
    /// JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}
