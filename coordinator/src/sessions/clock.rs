//! Time as records have it.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Seconds since 1970 that never go back while this process runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    began: u64,
    at: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            began: began.map_or(0, |since| since.as_secs()),
            at: Instant::now(),
        }
    }

    pub(super) fn now(&self) -> u64 {
        self.began + self.at.elapsed().as_secs()
    }
}
