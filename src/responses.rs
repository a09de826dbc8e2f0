//! Where a server keeps responses.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use palimpsest_coordinator::responses::{Limits, Store, StoreError};
use tokio::time::{Instant, sleep};

use crate::place;

/// Time that a coordinator which has taken the lead waits for the place of the former one.
pub const HANDOVER: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

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
        let (store, count, bytes) = match &self.place {
            Some(place) => (
                Store::open(place).context("--response-store")?,
                Limits::STORE_RESPONSES,
                Limits::STORE_BYTES,
            ),
            None => (
                Store::memory(),
                Limits::MEMORY_RESPONSES,
                Limits::MEMORY_BYTES,
            ),
        };
        Ok(Limits {
            store,
            max_responses: self.max_responses.unwrap_or(count),
            max_bytes: self.max_bytes.unwrap_or(bytes),
            max_turns: self.max_turns,
            ttl: self.ttl,
            ..Limits::default()
        })
    }
}

/// Makes the place of responses this process's own. Another process may have it for as long as
/// `patience`: one that led before and has not ended yet.
///
/// # Errors
/// If another process still has it then, by its name.
pub async fn claim(limits: Limits, patience: Duration, say: fn(&str)) -> anyhow::Result<Limits> {
    let until = Instant::now() + patience;
    let mut is_said = false;
    let claim = loop {
        match limits.store.claim(&place::owner()).await {
            Err(error @ StoreError::Taken { .. }) if Instant::now() < until => {
                if !is_said {
                    say(&format!("waiting for the place of responses: {error}"));
                }
                is_said = true;
                sleep(PAUSE).await;
            }
            claimed => break claimed.context("--response-store")?,
        }
    };
    Ok(Limits {
        claim: Some(Arc::new(claim)),
        ..limits
    })
}
