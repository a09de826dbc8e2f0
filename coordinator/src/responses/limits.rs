//! What responses may take, and where they are kept.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use palimpsest_store::{Claim, Store};

use super::index::Bounds;

/// What responses may take, and where they are kept.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Where records are.
    pub store: Store,
    /// Says whether the store is this service's own; none where nobody else can reach it.
    pub claim: Option<Arc<Claim>>,
    /// Responses of all tenants. The one that was used least recently makes room, of the tenant
    /// that has most.
    pub max_responses: usize,
    /// Bytes of all records, with the same rule.
    pub max_bytes: u64,
    /// Turns of one conversation.
    pub max_turns: usize,
    /// Time after which a response is forgotten, in whole seconds.
    pub ttl: Duration,
    /// What time it is.
    pub clock: Clock,
}

impl Limits {
    /// As OpenAI keeps them.
    pub const TTL: Duration = Duration::from_secs(30 * 24 * 3600);
    /// Responses that are kept in memory.
    pub const MEMORY_RESPONSES: usize = 10_000;
    /// Bytes that are kept in memory.
    pub const MEMORY_BYTES: u64 = 64 << 20;
    /// Responses that are kept in a store. In memory each takes some 300 bytes.
    pub const STORE_RESPONSES: usize = 100_000;
    /// Bytes that are kept in a store.
    pub const STORE_BYTES: u64 = 4 << 30;

    /// Whether records may be written.
    pub(super) fn is_ours(&self) -> bool {
        self.claim.as_ref().is_none_or(|claim| claim.is_held())
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            count: self.max_responses,
            bytes: self.max_bytes,
            ttl: self.ttl.as_secs(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            store: Store::memory(),
            claim: None,
            max_responses: Self::MEMORY_RESPONSES,
            max_bytes: Self::MEMORY_BYTES,
            max_turns: 1000,
            ttl: Self::TTL,
            clock: Clock::default(),
        }
    }
}

/// Tells the time, in seconds since 1970.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// A clock that says what `now` says.
    pub fn of(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Seconds since 1970.
    pub fn now(&self) -> u64 {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::of(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.map_or(0, |since| since.as_secs())
        })
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
