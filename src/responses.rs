//! Where a server keeps responses.

use std::time::Duration;

use anyhow::Context;
use palimpsest_coordinator::place::Place;
use palimpsest_coordinator::responses::Limits;

/// Where a server keeps responses, and what they may take; what is `None` has a default.
#[derive(Debug, Clone)]
pub struct ResponseConfig {
    /// A directory or a URL; `None`: in memory.
    pub place: Option<String>,
    /// Time after which a response is forgotten.
    pub ttl: Duration,
    /// Responses of all tenants.
    pub max_responses: Option<usize>,
    /// Bytes of all records.
    pub max_bytes: Option<u64>,
    /// Turns of one conversation.
    pub max_turns: usize,
}

impl ResponseConfig {
    /// Opens the store, which is nobody's yet.
    ///
    /// # Errors
    /// If the place names none.
    pub fn open(&self) -> anyhow::Result<Limits> {
        let (place, count, bytes) = match &self.place {
            Some(place) => (
                Place::open(place).context("--response-store")?,
                Limits::STORE_RESPONSES,
                Limits::STORE_BYTES,
            ),
            None => (
                Place::memory(),
                Limits::MEMORY_RESPONSES,
                Limits::MEMORY_BYTES,
            ),
        };
        Ok(Limits {
            place,
            max_responses: self.max_responses.unwrap_or(count),
            max_bytes: self.max_bytes.unwrap_or(bytes),
            max_turns: self.max_turns,
            ttl: self.ttl,
            ..Limits::default()
        })
    }
}
