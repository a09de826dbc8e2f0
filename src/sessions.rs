//! Where a server keeps sessions.

use std::time::Duration;

use anyhow::Context;
use palimpsest_coordinator::sessions::Limits;

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
