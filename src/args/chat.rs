//! A conversation in the terminal.

use std::path::PathBuf;

use clap::Args;
use palimpsest_proto::v1;

use super::{ClientTlsArgs, KvArgs, ModelArgs};
use crate::chat::{Config, Place};
use crate::client::Server;

/// A conversation in the terminal.
#[derive(Debug, Args)]
#[command(after_help = "In the conversation, /help lists the commands.

Examples:
  palimpsest chat
  palimpsest chat --kv-budget 512 --system 'Answer in one sentence.'
  palimpsest chat --server 127.0.0.1:50051")]
pub struct ChatArgs {
    /// A running server to talk to; http:// may be left out. Without it a model runs in this
    /// process.
    #[arg(long, env = "PALIMPSEST_SERVER")]
    pub server: Option<String>,
    /// Sent as a bearer token.
    #[arg(long, env = "PALIMPSEST_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    #[command(flatten)]
    pub tls: ClientTlsArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub kv: KvArgs,
    /// What the model is told before the conversation.
    #[arg(long)]
    pub system: Option<String>,
    /// Tokens of an answer at most.
    #[arg(long, default_value_t = 1024)]
    pub max_tokens: u32,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.7, allow_negative_numbers = true)]
    pub temperature: f32,
    /// Sample among the best tokens that together reach this probability.
    #[arg(long, default_value_t = 0.95, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Seed of the draws.
    #[arg(long)]
    pub seed: Option<u64>,
    /// File that keeps what was typed, for the arrow keys of the next conversation. Not kept when
    /// not given.
    #[arg(long, env = "PALIMPSEST_CHAT_HISTORY", value_name = "FILE")]
    pub history: Option<PathBuf>,
}

impl ChatArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> Config {
        let place = match self.server {
            Some(address) => Place::Server {
                server: Server {
                    address,
                    tls: self.tls.files(),
                },
                api_key: self.api_key,
            },
            None => Place::Here(Box::new(self.model.config())),
        };
        Config {
            place,
            kv: self.kv.wire(),
            sampling: v1::Sampling {
                temperature: Some(self.temperature),
                top_p: Some(self.top_p),
                seed: self.seed,
                ..Default::default()
            },
            max_tokens: self.max_tokens,
            system: self.system,
            history: self.history,
        }
    }
}
