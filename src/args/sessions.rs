//! Where a server keeps sessions, and what they may take.

use std::time::Duration;

use clap::Args;

use super::number::positive;
use crate::sessions::SessionConfig;

/// Where a server keeps sessions, and what they may take.
#[derive(Debug, Args)]
pub struct SessionStoreArgs {
    /// Where sessions outlive this process: a directory of its own, or the URL of an object store.
    /// In memory when not given.
    #[arg(
        long,
        env = "PALIMPSEST_SESSION_STORE",
        value_name = "PLACE",
        help_heading = "Sessions"
    )]
    pub session_store: Option<String>,
    /// Seconds without use after which a session is forgotten whose client does not say. When not
    /// given: a day with --session-store, half an hour without.
    #[arg(
        long,
        env = "PALIMPSEST_SESSION_TTL_SECONDS",
        value_parser = positive,
        help_heading = "Sessions"
    )]
    pub session_ttl_seconds: Option<usize>,
    /// The most that a client may ask for.
    #[arg(
        long,
        env = "PALIMPSEST_SESSION_MAX_TTL_SECONDS",
        default_value_t = 30 * 24 * 3600,
        value_parser = positive,
        help_heading = "Sessions"
    )]
    pub session_max_ttl_seconds: usize,
    /// Seconds without use after which the state of a session leaves memory.
    #[arg(
        long,
        env = "PALIMPSEST_SESSION_SUSPEND_SECONDS",
        default_value_t = 300,
        value_parser = positive,
        help_heading = "Sessions"
    )]
    pub session_suspend_seconds: usize,
    /// Sessions of all clients.
    #[arg(
        long,
        env = "PALIMPSEST_MAX_SESSIONS",
        default_value_t = 10_000,
        help_heading = "Sessions"
    )]
    pub max_sessions: usize,
    /// Sessions of one tenant, where keys are asked for. --max-sessions when not given.
    #[arg(
        long,
        env = "PALIMPSEST_MAX_SESSIONS_PER_TENANT",
        help_heading = "Sessions"
    )]
    pub max_sessions_per_tenant: Option<usize>,
    /// MiB of all records. When not given: 16384 with --session-store, 256 without.
    #[arg(
        long,
        env = "PALIMPSEST_SESSION_STORE_MIB",
        value_parser = positive,
        help_heading = "Sessions"
    )]
    pub session_store_mib: Option<usize>,
    /// MiB of the records of one tenant, where keys are asked for. --session-store-mib when not
    /// given.
    #[arg(
        long,
        env = "PALIMPSEST_SESSION_STORE_MIB_PER_TENANT",
        value_parser = positive,
        help_heading = "Sessions"
    )]
    pub session_store_mib_per_tenant: Option<usize>,
    /// MiB of one session's record, which holds its tokens and messages.
    #[arg(
        long,
        env = "PALIMPSEST_SESSION_RECORD_MIB",
        default_value_t = 64,
        value_parser = positive,
        help_heading = "Sessions"
    )]
    pub session_record_mib: usize,
    /// Tokens that a session's log may have when a request begins. Those of the model's context
    /// when not given.
    #[arg(
        long,
        env = "PALIMPSEST_SESSION_MAX_TOKENS",
        value_parser = positive,
        help_heading = "Sessions"
    )]
    pub session_max_tokens: Option<usize>,
}

impl SessionStoreArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> SessionConfig {
        let mib = |mib: usize| (mib as u64).saturating_mul(1 << 20);
        let seconds = |seconds: usize| Duration::from_secs(seconds as u64);
        SessionConfig {
            place: self.session_store,
            ttl: self.session_ttl_seconds.map(seconds),
            max_ttl: seconds(self.session_max_ttl_seconds),
            suspend_after: seconds(self.session_suspend_seconds),
            max_sessions: self.max_sessions,
            max_tenant_sessions: self.max_sessions_per_tenant,
            max_bytes: self.session_store_mib.map(mib),
            max_tenant_bytes: self.session_store_mib_per_tenant.map(mib),
            max_record_bytes: mib(self.session_record_mib),
            max_tokens: self.session_max_tokens.unwrap_or(0) as u64,
        }
    }
}
