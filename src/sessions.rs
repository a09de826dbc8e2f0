//! Where a server keeps sessions.

use std::time::Duration;

use anyhow::Context;
use palimpsest_coordinator::sessions::{Limits, StoreError};
use tokio::time::{Instant, sleep};

use crate::place;

/// Time that a coordinator which has taken the lead waits for the place of the former one.
const HANDOVER: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);
/// Bytes of all records, with a store and without.
const STORE_BYTES: u64 = 16 << 30;
const MEMORY_BYTES: u64 = 256 << 20;

/// Where a server keeps sessions, and what they may take; what is `None` has a default.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// A directory or a URL; `None`: in memory.
    pub place: Option<String>,
    /// Time to live of a session whose client does not say.
    pub ttl: Option<Duration>,
    /// The longest that a client may ask for.
    pub max_ttl: Duration,
    /// Time without use after which a session's state leaves memory.
    pub suspend_after: Duration,
    /// Sessions of all tenants.
    pub max_sessions: usize,
    /// Sessions of one tenant.
    pub max_tenant_sessions: Option<usize>,
    /// Bytes of all records.
    pub max_bytes: Option<u64>,
    /// Bytes of the records of one tenant.
    pub max_tenant_bytes: Option<u64>,
    /// Bytes of one record.
    pub max_record_bytes: u64,
    /// Tokens of a log; 0: those of the model's context.
    pub max_tokens: u64,
}

impl SessionConfig {
    /// Opens the store, which is nobody's yet.
    ///
    /// # Errors
    /// If the place names none.
    pub fn open(&self) -> anyhow::Result<Limits> {
        let place = self.place.as_deref();
        let (ttl, bytes) = match place {
            Some(_) => (Limits::DURABLE_TTL, STORE_BYTES),
            None => (Limits::MEMORY_TTL, MEMORY_BYTES),
        };
        let kept = match place {
            Some(place) => Limits::over(place).context("--session-store")?,
            None => Limits::default(),
        };
        let ttl = self.ttl.unwrap_or(ttl);
        let max_bytes = self.max_bytes.unwrap_or(bytes);
        Ok(Limits {
            max_sessions: self.max_sessions,
            max_tenant_sessions: self.max_tenant_sessions.unwrap_or(self.max_sessions),
            max_bytes,
            max_tenant_bytes: self.max_tenant_bytes.unwrap_or(max_bytes),
            max_record_bytes: self.max_record_bytes,
            max_tokens: self.max_tokens,
            max_ttl: self.max_ttl.max(ttl),
            ttl,
            suspend_after: self.suspend_after,
            ..kept
        })
    }
}

/// Makes the place of sessions this process's own.
///
/// # Errors
/// If another process has it, by its name.
pub async fn claim(limits: &Limits) -> anyhow::Result<Limits> {
    let claimed = limits.clone().claimed(&place::owner()).await;
    claimed.context("--session-store")
}

/// The same for a process that has taken over from another one, which may not have ended yet.
///
/// # Errors
/// If another process still has it after [`HANDOVER`].
pub async fn take_over(limits: &Limits, say: fn(&str)) -> anyhow::Result<Limits> {
    let until = Instant::now() + HANDOVER;
    let mut is_said = false;
    loop {
        match limits.clone().claimed(&place::owner()).await {
            Err(error @ StoreError::Taken { .. }) if Instant::now() < until => {
                if !is_said {
                    say(&format!("waiting for the place of sessions: {error}"));
                }
                is_said = true;
                sleep(PAUSE).await;
            }
            claimed => return claimed.context("--session-store"),
        }
    }
}
