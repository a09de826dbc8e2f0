//! What faces clients: of a server, and of those who ask one.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use palimpsest_coordinator::hosts::{AllowedHosts, BadHost};
use palimpsest_tls::{ClientFiles, IdentityFiles, Limits, ServerFiles};

use super::address::listening;
use super::intake::IntakeArgs;
use super::number::positive;
use super::pace::PaceArgs;
use super::responses::ResponseArgs;
use super::sessions::SessionStoreArgs;
use super::snapshots::ReuseArgs;
use super::web::WebArgs;
use crate::front::FrontConfig;

/// What faces clients.
#[derive(Debug, Args)]
pub struct FrontArgs {
    /// Address or host, and port, to listen on for gRPC.
    #[arg(
        long,
        env = "PALIMPSEST_LISTEN",
        value_parser = listening,
        default_value = "127.0.0.1:50051",
        help_heading = "Listening"
    )]
    pub listen: SocketAddr,
    /// Address or host, and port, to listen on for HTTP: OpenAI's API, probes and metrics.
    #[arg(
        long,
        env = "PALIMPSEST_HTTP",
        value_parser = listening,
        default_value = "127.0.0.1:8000",
        help_heading = "Listening"
    )]
    pub http: SocketAddr,
    /// No HTTP.
    #[arg(
        long,
        env = "PALIMPSEST_NO_HTTP",
        conflicts_with = "http",
        help_heading = "Listening"
    )]
    pub no_http: bool,
    /// Address of a port without TLS for /health, /readyz and /metrics alone.
    #[arg(
        long,
        env = "PALIMPSEST_HEALTH",
        value_parser = listening,
        help_heading = "Listening"
    )]
    pub health: Option<SocketAddr>,
    /// File of API keys: a line `tenant:sha256` for each, and behind it what the key may ask for.
    /// Needed beyond loopback. Read again when it changes.
    #[arg(long, env = "PALIMPSEST_API_KEYS_FILE", help_heading = "Who may ask")]
    pub api_keys_file: Option<PathBuf>,
    /// Serve anyone who reaches this address, without keys.
    #[arg(
        long,
        env = "PALIMPSEST_INSECURE_NO_KEYS",
        conflicts_with = "api_keys_file",
        help_heading = "Who may ask"
    )]
    pub insecure_no_keys: bool,
    /// Without keys HTTP is asked by address or as localhost; also by this host, with its pages
    /// (repeatable; `*` for any).
    #[arg(
        long,
        env = "PALIMPSEST_ALLOWED_HOST",
        value_name = "HOST",
        value_delimiter = ',',
        value_parser = host,
        help_heading = "Who may ask"
    )]
    pub allowed_host: Vec<String>,
    #[command(flatten)]
    pub web: WebArgs,
    /// Certificate chain (PEM) for gRPC and HTTP; without it both are plain text. Read again when
    /// the file changes.
    #[arg(
        long,
        env = "PALIMPSEST_TLS_CERT",
        requires = "tls_key",
        help_heading = "Who may ask"
    )]
    pub tls_cert: Option<PathBuf>,
    /// Key of --tls-cert.
    #[arg(
        long,
        env = "PALIMPSEST_TLS_KEY",
        requires = "tls_cert",
        help_heading = "Who may ask"
    )]
    pub tls_key: Option<PathBuf>,
    /// Clients must show a certificate of this CA.
    #[arg(
        long,
        env = "PALIMPSEST_TLS_CLIENT_CA",
        requires = "tls_cert",
        help_heading = "Who may ask"
    )]
    pub tls_client_ca: Option<PathBuf>,
    /// Connections that gRPC and HTTP have at once, each.
    #[arg(
        long,
        env = "PALIMPSEST_MAX_CONNECTIONS",
        default_value_t = Limits::default().connections,
        value_parser = positive,
        help_heading = "Limits"
    )]
    pub max_connections: usize,
    /// The same from one address. A proxy in front is one.
    #[arg(
        long,
        env = "PALIMPSEST_MAX_CONNECTIONS_PER_ADDRESS",
        default_value_t = Limits::default().connections_per_address,
        value_parser = positive,
        help_heading = "Limits"
    )]
    pub max_connections_per_address: usize,
    /// Sequences that run at once.
    #[arg(
        long,
        env = "PALIMPSEST_MAX_RUNNING",
        default_value_t = 16,
        value_parser = positive,
        help_heading = "Limits"
    )]
    pub max_running: usize,
    /// Requests that may wait.
    #[arg(
        long,
        env = "PALIMPSEST_MAX_QUEUED",
        default_value_t = 256,
        help_heading = "Limits"
    )]
    pub max_queued: usize,
    /// HTTP refuses fields that have no effect or that nobody knows, of which the answer warns
    /// otherwise.
    #[arg(long, env = "PALIMPSEST_STRICT", help_heading = "Limits")]
    pub strict: bool,
    #[command(flatten)]
    pub reuse: ReuseArgs,
    #[command(flatten)]
    pub intake: IntakeArgs,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub sessions: SessionStoreArgs,
    #[command(flatten)]
    pub responses: ResponseArgs,
}

impl FrontArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> FrontConfig {
        let identity = self.tls_cert.zip(self.tls_key);
        FrontConfig {
            listen: self.listen,
            http: (!self.no_http).then_some(self.http),
            health: self.health,
            api_keys_file: self.api_keys_file,
            insecure_no_keys: self.insecure_no_keys,
            allowed_hosts: self.allowed_host,
            cors: self.web.cors,
            console: !self.web.no_console,
            served_names: self.web.served_model_name,
            max_connections: self.max_connections,
            max_connections_per_address: self.max_connections_per_address,
            tls: identity.map(|(cert, key)| ServerFiles {
                cert,
                key,
                client_ca: self.tls_client_ca,
            }),
            max_running: self.max_running,
            max_queued: self.max_queued,
            strict: self.strict,
            snapshot_store_bytes: self.reuse.snapshot_store_mib.saturating_mul(1 << 20),
            share_snapshots: self.reuse.share_snapshots,
            intake: self.intake.config(),
            company: self.pace.company(),
            sessions: self.sessions.config(),
            responses: self.responses.config(),
        }
    }
}

/// A host's name, or `*`.
fn host(text: &str) -> Result<String, BadHost> {
    AllowedHosts::new([text]).map(|_| text.to_owned())
}

/// What a client of a TLS server trusts and shows.
#[derive(Debug, Clone, Default, Args)]
pub struct ClientTlsArgs {
    /// CA (PEM) that the server's certificate must come from; those that this system trusts when
    /// not given.
    #[arg(long, env = "PALIMPSEST_CA", help_heading = "TLS")]
    pub ca: Option<PathBuf>,
    /// Certificate to show, for servers that ask for one.
    #[arg(long, env = "PALIMPSEST_CERT", requires = "key", help_heading = "TLS")]
    pub cert: Option<PathBuf>,
    /// Key of --cert.
    #[arg(long, env = "PALIMPSEST_KEY", requires = "cert", help_heading = "TLS")]
    pub key: Option<PathBuf>,
}

impl ClientTlsArgs {
    /// The files that were given.
    pub fn files(self) -> ClientFiles {
        ClientFiles {
            ca: self.ca,
            identity: self
                .cert
                .zip(self.key)
                .map(|(cert, key)| IdentityFiles { cert, key }),
        }
    }
}
