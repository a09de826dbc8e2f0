//! Commands that ask a running server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use palimpsest_proto::v1;

use super::{ClientTlsArgs, KvArgs};
use crate::client::Server;
use crate::{generate, health};

/// A request to a running server.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  palimpsest generate --prompt 'Why is the sky blue?'
  palimpsest generate --prompt-file report.txt --prompt 'What was decided?' --kv-budget 2048
  cat report.txt | palimpsest generate --prompt-file - --prompt 'Summarise this.' --json")]
pub struct GenerateArgs {
    /// Server to ask; http:// may be left out.
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
    /// What the model is told before the prompt.
    #[arg(long, conflicts_with = "raw")]
    pub system: Option<String>,
    /// Text that the answer must begin with.
    #[arg(long, conflicts_with = "raw", default_value = "")]
    pub answer_prefix: String,
    #[command(flatten)]
    pub kv: KvArgs,
    /// Tokens to generate at most.
    #[arg(long)]
    pub max_tokens: Option<u32>,
    /// 0 is greedy.
    #[arg(long, allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Sample among the best K tokens.
    #[arg(long, default_value_t = 0)]
    pub top_k: u32,
    /// Sample among the best tokens that together reach this probability.
    #[arg(long, allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Seed of the draws.
    #[arg(long)]
    pub seed: Option<u64>,
    /// End the answer at this text; may be given several times.
    #[arg(long)]
    pub stop: Vec<String>,
    /// Seconds until the request is given up.
    #[arg(long, allow_negative_numbers = true)]
    pub timeout: Option<f64>,
    /// One JSON object per event on standard output.
    #[arg(long)]
    pub json: bool,
}

impl GenerateArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> anyhow::Result<generate::Config> {
        let timeout = self
            .timeout
            .map(|seconds| Duration::try_from_secs_f64(seconds).context("--timeout is not a time"))
            .transpose()?;
        Ok(generate::Config {
            server: Server {
                address: self.server,
                tls: self.tls.files(),
            },
            api_key: self.api_key,
            prompt: self.prompt,
            prompt_file: self.prompt_file,
            answer_prefix: self.answer_prefix,
            system: self.system,
            raw: self.raw,
            kv: self.kv.wire(),
            sampling: v1::Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                seed: self.seed,
                ..Default::default()
            },
            stopping: v1::Stopping {
                max_tokens: self.max_tokens,
                stop: self.stop,
                ..Default::default()
            },
            timeout,
            json: self.json,
            session_id: String::new(),
        })
    }
}

/// A probe.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Server or rank to ask; http:// may be left out.
    #[arg(default_value = "http://127.0.0.1:50051", env = "PALIMPSEST_SERVER")]
    pub server: String,
    /// Service, such as palimpsest.v1.Inference; the whole process when not given.
    #[arg(long, default_value = "")]
    pub service: String,
    /// Seconds to wait for the answer.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

impl HealthArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> health::Config {
        health::Config {
            server: Server {
                address: self.server,
                tls: self.tls.files(),
            },
            service: self.service,
            timeout: Duration::from_secs(self.timeout),
        }
    }
}
