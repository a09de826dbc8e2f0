//! Admission: a bounded place to wait.
//!
//! A [`Permit`] holds a place in the queue, counted in requests and in prompt tokens. It is given
//! back on `Drop`: when the sequence starts, or whenever its request ends before that. Memory needs
//! no queue of its own: its exact cost is known before ([`crate::scheduler::Cost`]), and the
//! scheduler starts a sequence only when it is free.

use std::sync::{Arc, Mutex, PoisonError};

use palimpsest_proto::error::{Reason, RequestError};

use crate::config::Config;
use crate::request::ValidRequest;

/// Whether new requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// No group is ready, and none is known to come.
    Unready,
    /// A group is about to be ready: it has met and not passed a step yet, or a lost one is being
    /// replaced. Requests wait for it.
    Waiting,
    /// Requests are taken.
    Open,
    /// The service is shutting down.
    Draining,
}

/// The queue's bounds and what waits in it.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max_requests: usize,
    max_tokens: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    gate: Gate,
    queued: Queued,
}

/// What waits in the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queued {
    /// Requests.
    pub requests: usize,
    /// Tokens of their prompts.
    pub tokens: u64,
}

/// A place in the queue, given back on `Drop`.
#[derive(Debug)]
pub struct Permit {
    inner: Arc<Inner>,
    tokens: u64,
}

impl Admission {
    /// An empty queue for a group that has met: requests wait if somebody would replace it.
    pub fn new(config: &Config) -> Self {
        let gate = if config.regroup_limit.is_zero() {
            Gate::Unready
        } else {
            Gate::Waiting
        };
        let state = State {
            gate,
            queued: Queued::default(),
        };
        Self(Arc::new(Inner {
            max_requests: config.max_queued,
            max_tokens: config.max_queued_tokens,
            state: Mutex::new(state),
        }))
    }

    /// Opens or closes the gate. Draining is for good.
    pub fn set_gate(&self, gate: Gate) {
        self.0.with(|state| {
            if state.gate != Gate::Draining {
                state.gate = gate;
            }
        });
    }

    /// A place for the request.
    ///
    /// # Errors
    /// `Draining`, `NoReadyGroup`, `QueueFull` with the bound that was met. A prompt larger than
    /// the whole queue may wait alone.
    pub fn admit(&self, request: &ValidRequest) -> Result<Permit, RequestError> {
        let tokens = request.prompt.len() as u64;
        let limits = &*self.0;
        limits.with(|state| {
            if let Some(refusal) = limits.refusal(state, tokens) {
                return Err(refusal);
            }
            state.queued.requests += 1;
            state.queued.tokens += tokens;
            Ok(Permit {
                inner: self.0.clone(),
                tokens,
            })
        })
    }

    /// Whether a request of any length would find a place now. It is asked before a prompt is
    /// tokenised, and takes nothing.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn check(&self) -> Result<(), RequestError> {
        let limits = &*self.0;
        limits.with(|state| limits.refusal(state, 1).map_or(Ok(()), Err))
    }

    /// What waits now.
    pub fn waiting(&self) -> Queued {
        self.0.with(|state| state.queued)
    }
}

impl Inner {
    /// Why a prompt of `tokens` tokens may not wait, if it may not.
    fn refusal(&self, state: &State, tokens: u64) -> Option<RequestError> {
        let Queued {
            requests,
            tokens: waiting,
        } = state.queued;
        let (reason, message) = match state.gate {
            Gate::Draining => (
                Reason::Draining,
                "the service is shutting down: ask another".to_owned(),
            ),
            Gate::Unready => (
                Reason::NoReadyGroup,
                "no worker group is ready: try again later".to_owned(),
            ),
            Gate::Open | Gate::Waiting if requests >= self.max_requests => (
                Reason::QueueFull,
                format!(
                    "{} requests wait already: try again later",
                    self.max_requests
                ),
            ),
            Gate::Open | Gate::Waiting if requests > 0 && waiting + tokens > self.max_tokens => (
                Reason::QueueFull,
                format!(
                    "{waiting} prompt tokens wait, with {tokens} more the limit of {} is passed: \
                     try again later",
                    self.max_tokens
                ),
            ),
            Gate::Open | Gate::Waiting => return None,
        };
        Some(RequestError::new(reason, message))
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.inner.with(|state| {
            state.queued.requests -= 1;
            state.queued.tokens -= self.tokens;
        });
    }
}
