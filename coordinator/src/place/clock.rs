//! Time as records have it.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Tells the time, in seconds since 1970.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// The wall clock as it is now, and from then on time as it passes: it never goes back while
    /// this process runs, and nothing expires because somebody sets the wall clock.
    pub fn start() -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH);
        let began = began.map_or(0, |since| since.as_secs());
        let at = Instant::now();
        Self::of(move || began + at.elapsed().as_secs())
    }

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
        Self::start()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    /// The wall clock stands still beside paused timers, as if it were set back again and again.
    #[tokio::test(start_paused = true)]
    async fn time_passes_whatever_the_wall_clock_does() {
        let clock = Clock::start();
        let began = clock.now();
        assert!(began > 1_700_000_000, "it begins with the wall clock");
        sleep(Duration::from_secs(5000)).await;
        assert_eq!(clock.now(), began + 5000);
    }
}
