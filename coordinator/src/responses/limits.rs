//! What responses may take, and where they are kept.

use std::time::Duration;

use super::index::Bounds;
use crate::place::{Clock, Place};

/// What responses may take, and where they are kept.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Where records are.
    pub place: Place,
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
            place: Place::memory(),
            max_responses: Self::MEMORY_RESPONSES,
            max_bytes: Self::MEMORY_BYTES,
            max_turns: 1000,
            ttl: Self::TTL,
            clock: Clock::default(),
        }
    }
}
