//! The requests of one connection that are under way, as its server tells: what an idle connection
//! is cannot be seen in its bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Counts the requests of one connection; cheap to clone.
#[derive(Debug, Clone)]
pub struct Requests(Arc<Mutex<Count>>);

#[derive(Debug)]
struct Count {
    next: u64,
    open: usize,
    /// Since when a request's answer has more for a peer that does not ask for it.
    held: HashMap<u64, Instant>,
    /// When the last one began, if any has.
    begun: Option<Instant>,
    /// When the connection was opened, or the last request ended.
    ended: Instant,
}

impl Requests {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Count {
            next: 0,
            open: 0,
            held: HashMap::new(),
            begun: None,
            ended: Instant::now(),
        })))
    }

    /// A request begins. It ends when what is returned is dropped.
    pub fn begin(&self) -> UnderWay {
        let mut count = self.lock();
        let id = count.next;
        count.next += 1;
        count.open += 1;
        count.begun = Some(Instant::now());
        drop(count);
        UnderWay {
            requests: self.clone(),
            id,
        }
    }

    /// Since when no request is under way but such as wait for the peer to take their answers;
    /// `None` while one is.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let count = self.lock();
        let is_idle = count.open == count.held.len();
        is_idle.then(|| count.held.values().copied().fold(count.ended, Instant::max))
    }

    /// Whether any request is under way, whoever it waits for.
    pub(crate) fn are_under_way(&self) -> bool {
        self.lock().open > 0
    }

    /// Whether a request has begun since `then`.
    pub(crate) fn begun_since(&self, then: Instant) -> bool {
        self.lock().begun.is_some_and(|begun| begun >= then)
    }

    fn lock(&self) -> MutexGuard<'_, Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way, until it is dropped.
#[derive(Debug)]
pub struct UnderWay {
    requests: Requests,
    id: u64,
}

impl UnderWay {
    /// A part of the answer goes out; the peer decides when the next one is asked for.
    pub fn hold(&self) {
        self.requests.lock().held.insert(self.id, Instant::now());
    }

    /// The next part of the answer is asked for.
    pub fn ask(&self) {
        self.requests.lock().held.remove(&self.id);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut count = self.requests.lock();
        count.open -= 1;
        count.held.remove(&self.id);
        count.ended = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_without_requests_and_with_such_as_their_peer_does_not_read() {
        let requests = Requests::new();
        let opened = Instant::now();
        advance(Duration::from_secs(1)).await;
        assert_eq!(requests.idle_since(), Some(opened));
        let (first, second) = (requests.begin(), requests.begin());
        assert_eq!(requests.idle_since(), None);
        assert!(requests.begun_since(Instant::now()));
        first.hold();
        assert_eq!(requests.idle_since(), None, "the second one runs");
        advance(Duration::from_secs(1)).await;
        second.hold();
        let held = Instant::now();
        assert_eq!(requests.idle_since(), Some(held));
        advance(Duration::from_secs(1)).await;
        first.ask();
        assert_eq!(requests.idle_since(), None, "the first one is read again");
        drop(first);
        drop(second);
        assert_eq!(requests.idle_since(), Some(Instant::now()));
        assert!(!requests.begun_since(Instant::now()));
    }
}
