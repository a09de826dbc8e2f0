//! The ring itself; its parent says what it is for.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::internal::v1::CacheState;
use palimpsest_proto::v1::{Embedding, RetentionReport, TokenLogprob};
use tokio::time::Instant;

use super::sync::{Mutex, MutexGuard, Notify};
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
    /// With the first token, those of the prompt behind its first one, if the request asked for
    /// them.
    pub prompt_logprobs: Vec<TokenLogprob>,
    /// With the end of a prompt whose embedding was asked for.
    pub embedding: Option<Embedding>,
    /// Set on the last token. One that ends with [`Ending::Read`] is no token, but that end.
    pub ended: Option<Ending>,
    /// Tokens of the prompt that were not read, because they were kept.
    pub cached: u64,
    /// When the driver had it.
    pub at: Instant,
}

/// How far a sequence is read that has sampled nothing yet, and what it retains.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Tokens that the ranks have seen.
    pub fed: u64,
    /// What all ranks together hold.
    pub cache: CacheState,
    /// Which positions.
    pub retention: RetentionReport,
}

/// What a reader takes.
#[derive(Debug, Clone)]
pub enum Item {
    /// The next token.
    Token(Token),
    /// The last reading, which no token has made old.
    Reading(Reading),
}

#[derive(Debug)]
struct State {
    tokens: VecDeque<Token>,
    /// The last one, until it is taken: one may be large.
    reading: Option<Reading>,
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
        reading: None,
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
            state.reading = None;
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

    /// Tells how far the sequence is read, in place of what was told and not taken.
    pub fn tell(&self, reading: Reading) {
        self.0.lock().reading = Some(reading);
        self.0.reader.notify_one();
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
    /// The next token or a newer reading, or `None` behind the last token.
    ///
    /// # Errors
    /// What ended the request early.
    pub async fn next(&mut self) -> Result<Option<Item>, RequestError> {
        loop {
            {
                let mut state = self.0.lock();
                if let Some(reading) = state.reading.take() {
                    return Ok(Some(Item::Reading(reading)));
                }
                if let Some(token) = state.tokens.pop_front() {
                    state.taken += 1;
                    if state.tokens.is_empty() {
                        state.behind = None;
                    }
                    if state.paused && state.tokens.len() <= self.0.capacity / 2 {
                        state.paused = false;
                        self.0.driver.notify_one();
                    }
                    return Ok(Some(Item::Token(token)));
                }
                if let Some(end) = &state.end {
                    return end.clone().map(|()| None);
                }
            }
            self.0.reader.notified().await;
        }
    }

    /// The next token, past what is told of the reading.
    #[cfg(test)]
    pub async fn token(&mut self) -> Result<Option<Token>, RequestError> {
        loop {
            match self.next().await? {
                Some(Item::Token(token)) => return Ok(Some(token)),
                Some(Item::Reading(_)) => {}
                None => return Ok(None),
            }
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
