//! When a connection has had its time, told from what it reads and writes and from its requests.
//!
//! ```text
//! silent ─first byte─▶ head ─request begins─▶ under way ─last one ends─▶ at rest ─byte─▶ head
//!    │ first_byte_time   │ head_time                                         │ idle_time
//!    └───────────────────┴──────────────────── closed ◀──────────────────────┘
//! ```
//! A connection of HTTP/2 has no heads to wait for: it is at rest between requests, and its pings
//! are no reason to keep it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::farewell::HTTP2_PREFACE;
use crate::{Limits, Requests};

/// The deadlines of one connection.
#[derive(Debug)]
pub(crate) struct Pace {
    limits: Limits,
    /// `None`: the server does not tell of its requests, and may be long silent in the midst of
    /// one.
    requests: Option<Requests>,
    phase: Phase,
    /// Bytes of HTTP/2's preface that have come; `None` once the connection is one of HTTP/1.
    preface: Option<usize>,
    reading: Timer,
    writing: Timer,
    /// When the peer began to take nothing of what is there for it.
    stalled: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Silent(Instant),
    Head(Instant),
    Rest,
}

impl Pace {
    /// Of a connection that has sent nothing yet.
    pub(crate) fn silent(limits: Limits, requests: Option<Requests>) -> Self {
        Self {
            limits,
            requests,
            phase: Phase::Silent(Instant::now()),
            preface: Some(0),
            reading: Timer::default(),
            writing: Timer::default(),
            stalled: None,
        }
    }

    /// Whether nothing has come yet.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self.phase, Phase::Silent(_))
    }

    /// Bytes have come.
    pub(crate) fn came(&mut self, bytes: &[u8]) {
        let is_http2 = self.preface == Some(HTTP2_PREFACE.len());
        if let Some(matched) = self.preface.filter(|_| !is_http2) {
            let rest = &HTTP2_PREFACE[matched..];
            let length = rest.len().min(bytes.len());
            self.preface = (bytes[..length] == rest[..length]).then_some(matched + length);
        }
        let requests = self.requests.as_ref();
        let is_body = requests.is_some_and(Requests::are_under_way);
        let is_head = match self.phase {
            Phase::Head(since) => !requests.is_some_and(|requests| requests.begun_since(since)),
            Phase::Silent(_) | Phase::Rest => false,
        };
        if self.preface == Some(HTTP2_PREFACE.len()) || is_body {
            self.phase = Phase::Rest;
        } else if !is_head {
            self.phase = Phase::Head(Instant::now());
        }
    }

    /// When the connection must be closed if nothing happens until then, and why.
    fn due(&self) -> Option<Due> {
        let due = |since: Instant, limit, why| {
            // A limit without an end.
            let at = since.checked_add(limit)?;
            Some(Due { at, why })
        };
        if let Phase::Silent(since) = self.phase {
            return due(since, self.limits.first_byte_time, "nothing came");
        }
        let requests = self.requests.as_ref()?;
        let idle_since = requests.idle_since()?;
        match self.phase {
            Phase::Head(since) if !requests.begun_since(since) => due(
                since,
                self.limits.head_time,
                "the head of a request did not come",
            ),
            _ => due(
                idle_since,
                self.limits.idle_time,
                "no request was under way",
            ),
        }
    }

    /// To be asked whenever a read has to wait.
    pub(crate) fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while let Some(Due { at, why }) = self.due() {
            if Instant::now() >= at {
                return Poll::Ready(late(why));
            }
            if self.reading.poll(at, cx).is_pending() {
                break;
            }
        }
        Poll::Pending
    }

    /// What came of an attempt to write: the peer took something, or has had its time.
    pub(crate) fn wrote<T>(
        &mut self,
        result: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let since = *self.stalled.get_or_insert_with(Instant::now);
        let Some(at) = since.checked_add(self.limits.stall_time) else {
            return Poll::Pending;
        };
        while Instant::now() < at {
            if self.writing.poll(at, cx).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(Err(late("the peer took nothing of what was there for it")))
    }
}

struct Due {
    at: Instant,
    why: &'static str,
}

fn late(why: &'static str) -> io::Error {
    tracing::debug!(why, "a connection has had its time");
    io::Error::new(io::ErrorKind::TimedOut, why)
}

/// Wakes a connection. It is set anew only where it would come too late: each read would do so
/// otherwise.
#[derive(Debug, Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready at `at` or before; to be asked again then.
    fn poll(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() > at || sleep.is_elapsed() {
            sleep.as_mut().reset(at);
        }
        sleep.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::time::{advance, timeout};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A connection whose server counts requests.
    fn counted() -> (Pace, Requests) {
        let requests = Requests::new();
        let pace = Pace::silent(Limits::default(), Some(requests.clone()));
        (pace, requests)
    }

    /// Seconds until it has had its time; `None`: never.
    async fn seconds_left(pace: &mut Pace) -> Option<u64> {
        let since = Instant::now();
        let late = timeout(HOUR, poll_fn(|cx| pace.poll_late(cx))).await;
        late.ok().map(|_| since.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_slow_heads_have_their_time_and_bytes_do_not_extend_it() {
        let (mut pace, _requests) = counted();
        assert_eq!(seconds_left(&mut pace).await, Some(5));
        // The first letters of HTTP/2 could be those of a POST.
        for first in [&b"GET / HTTP/1.1\r\n"[..], b"P", b"PRI * HTTP/2.0\r\n"] {
            let (mut pace, _requests) = counted();
            pace.came(first);
            advance(Duration::from_secs(6)).await;
            pace.came(b"x");
            assert_eq!(seconds_left(&mut pace).await, Some(4), "{first:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_under_way_has_no_end_here_and_rest_after_it_has() {
        let (mut pace, requests) = counted();
        pace.came(b"POST / HTTP/1.1\r\n\r\n");
        let request = requests.begin();
        assert_eq!(seconds_left(&mut pace).await, None);
        pace.came(b"a part of the body");
        assert_eq!(seconds_left(&mut pace).await, None);
        drop(request);
        assert_eq!(seconds_left(&mut pace).await, Some(75));
        let (mut pace, requests) = counted();
        pace.came(b"GET / HTTP/1.1\r\n\r\n");
        drop(requests.begin());
        advance(Duration::from_secs(70)).await;
        // The next request has the time of a head, not what is left of the rest.
        pace.came(b"GET");
        assert_eq!(seconds_left(&mut pace).await, Some(10));
    }

    #[tokio::test(start_paused = true)]
    async fn pings_keep_no_connection_of_http2() {
        let (mut pace, requests) = counted();
        pace.came(&HTTP2_PREFACE[..10]);
        pace.came(&HTTP2_PREFACE[10..]);
        advance(Duration::from_secs(40)).await;
        pace.came(b"a ping");
        assert_eq!(seconds_left(&mut pace).await, Some(35));
        let request = requests.begin();
        assert_eq!(seconds_left(&mut pace).await, None);
        // An answer that the peer does not ask on for keeps it no longer than none.
        request.hold();
        assert_eq!(seconds_left(&mut pace).await, Some(75));
        request.ask();
        assert_eq!(seconds_left(&mut pace).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_count_closes_the_silent_alone() {
        let mut pace = Pace::silent(Limits::default(), None);
        assert_eq!(seconds_left(&mut pace).await, Some(5));
        pace.came(HTTP2_PREFACE);
        assert_eq!(seconds_left(&mut pace).await, None);
    }
}
