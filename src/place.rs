//! Who has a place that one process at a time may write to.

use std::time::Duration;

use anyhow::Context;
use palimpsest_coordinator::Config;
use palimpsest_coordinator::place::{Place, StoreError};
use palimpsest_coordinator::{responses, sessions};
use tokio::time::{Instant, sleep};

/// Time that a coordinator which has taken the lead waits for the places of the former one.
pub const HANDOVER: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(1);

/// This process, as another one reads it.
fn owner() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.unwrap_or_else(|_| "this machine".into());
    format!("process {} on {}", std::process::id(), host.trim())
}

/// How long another process may have a place, and who is told that it is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long a process that led before may take to end.
    pub limit: Duration,
    /// Tells the operator.
    pub say: fn(&str),
}

impl Patience {
    /// For a process that nobody led before.
    pub const NONE: Self = Self {
        limit: Duration::ZERO,
        say: |_| {},
    };
}

/// Makes the places of sessions and of responses this process's own.
///
/// # Errors
/// If another process still has one of them after `patience`, by that process's name.
pub async fn claim(config: Config, patience: Patience) -> anyhow::Result<Config> {
    let sessions = claim_one(&config.sessions.place, "session", patience).await?;
    let responses = claim_one(&config.responses.place, "response", patience).await?;
    Ok(Config {
        sessions: sessions::Limits {
            place: sessions,
            ..config.sessions
        },
        responses: responses::Limits {
            place: responses,
            ..config.responses
        },
        ..config
    })
}

async fn claim_one(place: &Place, what: &str, patience: Patience) -> anyhow::Result<Place> {
    let until = Instant::now() + patience.limit;
    let mut is_said = false;
    loop {
        match place.claimed(&owner()).await {
            Err(error @ StoreError::Taken { .. }) if Instant::now() < until => {
                if !is_said {
                    (patience.say)(&format!("waiting for the place of {what}s: {error}"));
                }
                is_said = true;
                sleep(PAUSE).await;
            }
            claimed => return claimed.with_context(|| format!("--{what}-store")),
        }
    }
}
