//! Commands about the sessions of a running server.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ClientTlsArgs, GenerateArgs, KvArgs};
use crate::client::Server;
use crate::generate;
use crate::session::{Action, Config};

/// What to do with a session.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  palimpsest session create report
  palimpsest session append report --prompt-file report.txt
  palimpsest session generate report --prompt 'What was decided?'
  palimpsest session fork report draft
  palimpsest session list")]
pub struct SessionArgs {
    #[command(subcommand)]
    pub kind: SessionKind,
}

/// What to do with a session.
#[derive(Debug, Subcommand)]
pub enum SessionKind {
    /// Make an empty session, and print its name.
    Create {
        /// Its name: letters, digits, `-` and `_`. The server makes one when not given.
        session: Option<String>,
        #[command(flatten)]
        kv: KvArgs,
        /// Seconds without use until it is forgotten.
        #[arg(long)]
        ttl_seconds: Option<u64>,
        #[command(flatten)]
        server: SessionServerArgs,
    },
    /// Let the server read something without answering.
    Append {
        /// The session.
        session: String,
        /// Text to read; with a file, the text that follows it.
        #[arg(long, required_unless_present = "prompt_file")]
        prompt: Option<String>,
        /// File to read, `-` for standard input.
        #[arg(long)]
        prompt_file: Option<PathBuf>,
        /// Send the text as it is, without the model's chat template.
        #[arg(long)]
        raw: bool,
        /// Whose message it is: user, system or assistant.
        #[arg(long, default_value = "user", conflicts_with = "raw")]
        role: String,
        #[command(flatten)]
        server: SessionServerArgs,
    },
    /// Ask, going on from what the session holds.
    Generate(Box<SessionGenerateArgs>),
    /// Make a second session with the same log.
    Fork {
        /// The session.
        session: String,
        /// Name of the copy. The server makes one when not given.
        copy: Option<String>,
        #[command(flatten)]
        server: SessionServerArgs,
    },
    /// Move the state of a session out of the server's memory.
    Suspend(OneSessionArgs),
    /// Fetch the state of a suspended session.
    Resume(OneSessionArgs),
    /// List the sessions of this client.
    List {
        #[command(flatten)]
        server: SessionServerArgs,
    },
    /// Say what is known of a session.
    Show(OneSessionArgs),
    /// Forget a session.
    Delete(OneSessionArgs),
}

/// A request that goes on from a session.
#[derive(Debug, Args)]
pub struct SessionGenerateArgs {
    /// The session.
    pub session: String,
    #[command(flatten)]
    pub ask: GenerateArgs,
}

/// A session of a server.
#[derive(Debug, Args)]
pub struct OneSessionArgs {
    /// The session.
    pub session: String,
    #[command(flatten)]
    pub server: SessionServerArgs,
}

/// A server, and how its answers are printed.
#[derive(Debug, Args)]
pub struct SessionServerArgs {
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
    /// JSON on standard output.
    #[arg(long)]
    pub json: bool,
}

impl SessionServerArgs {
    fn with(self, action: Action) -> Config {
        Config::Manage {
            server: Server {
                address: self.server,
                tls: self.tls.files(),
            },
            api_key: self.api_key,
            json: self.json,
            action: Box::new(action),
        }
    }
}

impl SessionArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> anyhow::Result<Config> {
        let on = |args: OneSessionArgs, action: fn(String) -> Action| {
            args.server.with(action(args.session))
        };
        Ok(match self.kind {
            SessionKind::Create {
                session,
                kv,
                ttl_seconds,
                server,
            } => server.with(Action::Create {
                session: session.unwrap_or_default(),
                kv: kv.wire(),
                ttl_seconds: ttl_seconds.unwrap_or(0),
            }),
            SessionKind::Append {
                session,
                prompt,
                prompt_file,
                raw,
                role,
                server,
            } => server.with(Action::Append {
                session,
                text: generate::prompt(prompt_file.as_deref(), prompt.as_deref())?,
                role: (!raw).then_some(role),
            }),
            SessionKind::Generate(args) => Config::Generate(Box::new(generate::Config {
                session_id: args.session,
                ..args.ask.config()?
            })),
            SessionKind::Fork {
                session,
                copy,
                server,
            } => server.with(Action::Fork {
                session,
                copy: copy.unwrap_or_default(),
            }),
            SessionKind::Suspend(args) => on(args, Action::Suspend),
            SessionKind::Resume(args) => on(args, Action::Resume),
            SessionKind::List { server } => server.with(Action::List),
            SessionKind::Show(args) => on(args, Action::Show),
            SessionKind::Delete(args) => on(args, Action::Delete),
        })
    }
}
