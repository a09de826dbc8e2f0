//! What sessions may take, and where they are kept.

use std::time::Duration;

use crate::place::{Clock, Place, StoreError};

/// What sessions may take, and where they are kept.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Where records are.
    pub place: Place,
    /// What time it is.
    pub clock: Clock,
    /// Sessions of all tenants.
    pub max_sessions: usize,
    /// Sessions of one tenant.
    pub max_tenant_sessions: usize,
    /// Bytes of all records.
    pub max_bytes: u64,
    /// Bytes of the records of one tenant.
    pub max_tenant_bytes: u64,
    /// Bytes of one record.
    pub max_record_bytes: u64,
    /// Tokens that a log may have when a request begins; 0: those of the model's context. The
    /// answer may pass it.
    pub max_tokens: u64,
    /// Time without use after which a session is forgotten, when its client does not say.
    pub ttl: Duration,
    /// The longest time that a client may ask for.
    pub max_ttl: Duration,
    /// Time without use after which a session's state leaves memory.
    pub suspend_after: Duration,
}

impl Limits {
    /// Time to live where a store outlives the process.
    pub const DURABLE_TTL: Duration = Duration::from_secs(24 * 3600);
    /// Time to live where records are in memory.
    pub const MEMORY_TTL: Duration = Duration::from_secs(30 * 60);

    /// The defaults, over the store that `place` names, which is nobody's yet.
    ///
    /// # Errors
    /// If it names none.
    pub fn over(place: &str) -> Result<Self, StoreError> {
        Ok(Self {
            place: Place::open(place)?,
            ttl: Self::DURABLE_TTL,
            ..Self::default()
        })
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            place: Place::memory(),
            clock: Clock::start(),
            max_sessions: 10_000,
            max_tenant_sessions: 10_000,
            max_bytes: 256 << 20,
            max_tenant_bytes: 256 << 20,
            max_record_bytes: 64 << 20,
            max_tokens: 0,
            ttl: Self::MEMORY_TTL,
            max_ttl: Duration::from_secs(30 * 24 * 3600),
            suspend_after: Duration::from_secs(300),
        }
    }
}
