//! The ring between the driver and one request's reader: bounded, numbered, and cheap for the
//! driver.
//!
//! The driver never waits for a reader. It pauses a sequence whose ring is full, so a slow reader
//! costs `capacity` tokens of memory and no more; the reader wakes the driver when half of the ring
//! is free again, and when it goes away.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::internal::v1::CacheState;
use palimpsest_proto::v1::{RetentionReport, TokenLogprob};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::scheduler::Ending;

/// One sampled token, and the state of its sequence after the step that sampled it.
#[derive(Debug, Clone)]
pub struct Token {
    /// Counts the tokens of a request from 0.
    pub number: u64,
    /// The token.
    pub id: u32,
    /// If the request asked for it.
    pub logprob: Option<TokenLogprob>,
    /// What all ranks together hold.
    pub cache: CacheState,
    /// With the first token and after each boundary, if the request asked for it.
    pub retention: Option<RetentionReport>,
    /// Set on the last token.
    pub ended: Option<Ending>,
    /// When the driver had it.
    pub at: Instant,
}

#[derive(Debug)]
struct State {
    tokens: VecDeque<Token>,
    pushed: u64,
    started: Option<Instant>,
    /// Set once: `Ok` behind the last token.
    end: Option<Result<(), RequestError>>,
    paused: bool,
    /// Tokens that the reader has taken.
    taken: u64,
    /// The reader fell behind and has not caught up: when, and what it had taken by then.
    behind: Option<(Instant, u64)>,
    reader: ReaderState,
}

/// A reader that has not emptied its ring since that was full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// When the ring was full, or the last look at this.
    pub since: Instant,
    /// Tokens that the reader has taken since then.
    pub taken: u64,
}

/// Whether somebody still wants tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReaderState {
    /// Yes.
    Reads,
    /// The text is complete: a stop string was found.
    Done,
    /// The client went away.
    Gone,
}

#[derive(Debug)]
struct Shared {
    capacity: usize,
    state: Mutex<State>,
    reader: Notify,
    driver: Arc<Notify>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The driver's end. Dropped without an end, it answers the reader with `Internal`.
#[derive(Debug)]
pub struct Writer(Arc<Shared>);

/// The request's end. Dropping it cancels the request.
#[derive(Debug)]
pub struct Reader(Arc<Shared>);

/// A ring of `capacity` tokens (at least 1) whose reader wakes `driver`.
pub fn ring(capacity: usize, driver: Arc<Notify>) -> (Writer, Reader) {
    let state = State {
        tokens: VecDeque::new(),
        pushed: 0,
        started: None,
        end: None,
        paused: false,
        taken: 0,
        behind: None,
        reader: ReaderState::Reads,
    };
    let shared = Arc::new(Shared {
        capacity: capacity.max(1),
        state: Mutex::new(state),
        reader: Notify::new(),
        driver,
    });
    (Writer(shared.clone()), Reader(shared))
}

impl Writer {
    /// The sequence is in a plan. The first time counts; later ones are of other groups, after the
    /// first was lost.
    pub fn start(&self, at: Instant) {
        self.0.lock().started.get_or_insert(at);
    }

    /// Adds a token and numbers it. Returns whether the ring is full now: the sequence must pause
    /// then.
    pub fn push(&self, mut token: Token) -> bool {
        let mut state = self.0.lock();
        assert!(
            state.tokens.len() < self.0.capacity,
            "a full ring pauses its sequence"
        );
        token.number = state.pushed;
        state.pushed += 1;
        if token.ended.is_some() {
            state.end = Some(Ok(()));
        }
        let at = token.at;
        if token.retention.is_some() {
            // Only the last report is told, and one may be large.
            for waiting in &mut state.tokens {
                waiting.retention = None;
            }
        }
        state.tokens.push_back(token);
        state.paused = state.tokens.len() == self.0.capacity;
        let full = state.paused;
        if full {
            let taken = state.taken;
            state.behind.get_or_insert((at, taken));
        }
        drop(state);
        self.0.reader.notify_one();
        full
    }

    /// Ends the request with an error, behind the tokens that wait. Only the first end counts.
    pub fn fail(&self, error: RequestError) {
        self.0.lock().end.get_or_insert(Err(error));
        self.0.reader.notify_one();
    }

    /// Tokens pushed so far.
    pub fn pushed(&self) -> u64 {
        self.0.lock().pushed
    }

    /// Whether the reader still reads.
    pub fn reader(&self) -> ReaderState {
        self.0.lock().reader
    }

    /// How far the reader has come since it fell behind, if it has not caught up.
    pub fn lag(&self) -> Option<Lag> {
        let state = self.0.lock();
        state.behind.map(|(since, before)| Lag {
            since,
            taken: state.taken - before,
        })
    }

    /// Counts anew what a reader takes that is still behind.
    pub fn restart_lag(&self, now: Instant) {
        let mut state = self.0.lock();
        let taken = state.taken;
        state.behind = state.behind.map(|_| (now, taken));
    }

    /// Tokens that the ring holds.
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// Whether a paused sequence may go on: the reader has emptied half of the ring.
    pub fn has_room(&self) -> bool {
        self.0.lock().tokens.len() <= self.0.capacity / 2
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.fail(RequestError::new(
            Reason::Internal,
            "the service gave the request up: see the log under its id",
        ));
    }
}

impl Reader {
    /// The next token, or `None` behind the last one.
    ///
    /// # Errors
    /// What ended the request early.
    pub async fn next(&mut self) -> Result<Option<Token>, RequestError> {
        loop {
            {
                let mut state = self.0.lock();
                if let Some(token) = state.tokens.pop_front() {
                    state.taken += 1;
                    if state.tokens.is_empty() {
                        state.behind = None;
                    }
                    if state.paused && state.tokens.len() <= self.0.capacity / 2 {
                        state.paused = false;
                        self.0.driver.notify_one();
                    }
                    return Ok(Some(token));
                }
                if let Some(end) = &state.end {
                    return end.clone().map(|()| None);
                }
            }
            self.0.reader.notified().await;
        }
    }

    /// When the sequence started, if it has.
    pub fn started(&self) -> Option<Instant> {
        self.0.lock().started
    }

    /// No more tokens are wanted, for a good reason.
    pub fn done(self) {
        self.0.lock().reader = ReaderState::Done;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.reader == ReaderState::Reads {
            state.reader = ReaderState::Gone;
        }
        state.tokens.clear();
        drop(state);
        self.0.driver.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32) -> Token {
        let cache = CacheState::default();
        Token {
            number: 9,
            id,
            logprob: None,
            cache,
            retention: None,
            ended: None,
            at: Instant::now(),
        }
    }

    #[tokio::test]
    async fn a_full_ring_says_so_and_half_an_empty_one_wakes_the_engine() {
        let driver = Arc::new(Notify::new());
        let (writer, mut reader) = ring(4, driver.clone());
        let full: Vec<_> = (0..4).map(|id| writer.push(token(id))).collect();
        assert_eq!(full, [false, false, false, true]);
        assert_eq!(reader.next().await.unwrap().unwrap().number, 0);
        assert!(!writer.has_room());
        let second = reader.next().await.unwrap().unwrap();
        assert_eq!((second.number, second.id), (1, 1));
        driver.notified().await;
        assert!(writer.has_room());
        drop(reader);
        driver.notified().await;
        assert_eq!(writer.reader(), ReaderState::Gone);
        let (writer, reader) = ring(4, Arc::default());
        assert_eq!(writer.reader(), ReaderState::Reads);
        reader.done();
        assert_eq!(writer.reader(), ReaderState::Done);
    }

    #[tokio::test]
    async fn a_reader_is_behind_from_a_full_ring_to_an_empty_one() {
        let (writer, mut reader) = ring(2, Arc::default());
        writer.push(token(0));
        assert_eq!(writer.lag(), None);
        let full = token(1);
        let since = full.at;
        writer.push(full);
        reader.next().await.unwrap();
        writer.push(token(2));
        reader.next().await.unwrap();
        assert_eq!(writer.lag(), Some(Lag { since, taken: 2 }));
        let now = Instant::now();
        writer.restart_lag(now);
        assert_eq!(
            writer.lag(),
            Some(Lag {
                since: now,
                taken: 0
            })
        );
        reader.next().await.unwrap();
        assert_eq!(writer.lag(), None);
        writer.restart_lag(now);
        assert_eq!(writer.lag(), None);
    }

    #[tokio::test]
    async fn an_end_comes_behind_the_tokens_and_a_dropped_writer_answers() {
        let (writer, mut reader) = ring(4, Arc::default());
        writer.push(token(1));
        writer.fail(RequestError::new(Reason::GroupLost, "first"));
        drop(writer);
        assert!(reader.next().await.unwrap().is_some());
        assert_eq!(reader.next().await.unwrap_err().reason, Reason::GroupLost);
        let (writer, mut reader) = ring(4, Arc::default());
        drop(writer);
        assert_eq!(reader.next().await.unwrap_err().reason, Reason::Internal);
    }

    /// A report may have megabytes, and a slow reader's ring hundreds of tokens.
    #[tokio::test]
    async fn a_ring_holds_the_last_report_alone() {
        let (writer, mut reader) = ring(4, Arc::default());
        for id in 0..3 {
            writer.push(Token {
                retention: (id < 2).then(RetentionReport::default),
                ..token(id)
            });
        }
        let mut reported = Vec::new();
        for _ in 0..3 {
            let token = reader.next().await.unwrap().unwrap();
            reported.push(token.retention.is_some());
        }
        assert_eq!(reported, [false, true, false]);
    }
}
