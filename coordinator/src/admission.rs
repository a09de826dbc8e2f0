//! Admission: a bounded place to wait.
//!
//! A [`Permit`] holds a place in the queue, counted in requests and in prompt tokens. It is given
//! back on `Drop`: when the sequence starts, or whenever its request ends before that. Memory needs
//! no queue of its own: its exact cost is known before ([`crate::scheduler::Cost`]), and the
//! scheduler starts a sequence only when it is free.
//!
//! A full queue is shared between flows: who comes takes the place of the newest request of the
//! flow that has most in it, unless its own flow would then have more. This is longest queue drop
//! (Suter et al., "Buffer management schemes for supporting TCP in gigabit routers with per-flow
//! queueing", 1999), so a flow alone may fill the queue, and does not keep others out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use palimpsest_proto::error::{Reason, RequestError};

use crate::config::Config;
use crate::flow::Flow;
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
    /// Who waits, the newest last.
    places: BTreeMap<u64, Place>,
    next: u64,
}

/// A request's place in the queue.
#[derive(Debug)]
struct Place {
    asker: Asker,
    tokens: u64,
    /// Whether another request has it now.
    is_lost: Arc<AtomicBool>,
}

/// Who asks for a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// Whose request it is.
    pub flow: Flow,
    /// Nobody loses its place to a request of a smaller one.
    pub priority: i32,
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
    number: u64,
    is_lost: Arc<AtomicBool>,
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
            places: BTreeMap::new(),
            next: 0,
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

    /// A place for the request, which another one may lose by that: see [`Permit::is_lost`].
    ///
    /// # Errors
    /// `Draining`, `NoReadyGroup`, `QueueFull` with the bound that was met. A prompt larger than
    /// the whole queue may wait alone.
    pub fn admit(&self, request: &ValidRequest) -> Result<Permit, RequestError> {
        let tokens = request.prompt.len() as u64;
        let asker = Asker {
            flow: request.flow.clone(),
            priority: request.priority,
        };
        self.admit_prompt(asker, tokens)
    }

    fn admit_prompt(&self, asker: Asker, tokens: u64) -> Result<Permit, RequestError> {
        self.0.with(|state| {
            for number in self.0.losers(state, &asker, tokens)? {
                if let Some(place) = state.give_back(number) {
                    place.is_lost.store(true, Ordering::Release);
                }
            }
            let is_lost = Arc::<AtomicBool>::default();
            let place = Place {
                asker,
                tokens,
                is_lost: is_lost.clone(),
            };
            Ok(Permit {
                inner: self.0.clone(),
                number: state.take(place),
                is_lost,
            })
        })
    }

    /// Whether a request of any length would find a place now. It is asked before a prompt is
    /// tokenised, and takes nothing.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn check(&self, asker: &Asker) -> Result<(), RequestError> {
        self.0
            .with(|state| self.0.losers(state, asker, 1).map(drop))
    }

    /// What waits now.
    pub fn waiting(&self) -> Queued {
        self.0.with(|state| state.queued)
    }
}

impl Permit {
    /// Whether a request of another flow has the place now: this one is to be refused.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }
}

impl State {
    fn take(&mut self, place: Place) -> u64 {
        self.queued.requests += 1;
        self.queued.tokens += place.tokens;
        let number = self.next;
        self.next += 1;
        self.places.insert(number, place);
        number
    }

    fn give_back(&mut self, number: u64) -> Option<Place> {
        let place = self.places.remove(&number)?;
        self.queued.requests -= 1;
        self.queued.tokens -= place.tokens;
        Some(place)
    }
}

impl Inner {
    /// Who loses its place to a prompt of `tokens` tokens, which may wait then.
    fn losers(&self, state: &State, asker: &Asker, tokens: u64) -> Result<Vec<u64>, RequestError> {
        let (reason, message) = match state.gate {
            Gate::Draining => (
                Reason::Draining,
                "the service is shutting down: ask another",
            ),
            Gate::Unready => (
                Reason::NoReadyGroup,
                "no worker group is ready: try again later",
            ),
            Gate::Open | Gate::Waiting => return self.displaced(state, asker, tokens),
        };
        Err(RequestError::new(reason, message))
    }

    fn displaced(
        &self,
        state: &State,
        asker: &Asker,
        tokens: u64,
    ) -> Result<Vec<u64>, RequestError> {
        let mut left = state.queued;
        let mut lost = Vec::new();
        while let Some(bound) = self.bound_met(left, tokens) {
            let loser = state.loser(bound, asker, tokens, &lost);
            let Some((number, place)) = loser else {
                return Err(self.refusal(bound, state.queued.tokens, tokens));
            };
            left.requests -= 1;
            left.tokens -= place.tokens;
            lost.push(number);
        }
        Ok(lost)
    }

    /// The bound that one more prompt of `tokens` tokens would pass.
    const fn bound_met(&self, queued: Queued, tokens: u64) -> Option<Bound> {
        if queued.requests >= self.max_requests {
            return Some(Bound::Requests);
        }
        let is_over = queued.requests > 0 && queued.tokens + tokens > self.max_tokens;
        if is_over { Some(Bound::Tokens) } else { None }
    }

    fn refusal(&self, bound: Bound, waiting: u64, tokens: u64) -> RequestError {
        let message = match bound {
            Bound::Requests => format!(
                "{} requests wait already: try again later",
                self.max_requests
            ),
            Bound::Tokens => format!(
                "{waiting} prompt tokens wait, with {tokens} more the limit of {} is passed: \
                 try again later",
                self.max_tokens
            ),
        };
        RequestError::new(Reason::QueueFull, message)
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.inner.with(|state| state.give_back(self.number));
    }
}

/// What a queue is full of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    Requests,
    Tokens,
}

impl Bound {
    /// What a place counts for.
    const fn size(self, tokens: u64) -> u64 {
        match self {
            Self::Requests => 1,
            Self::Tokens => tokens,
        }
    }
}

impl State {
    /// Whose place the asker gets: the newest of the flow with most in the queue, if that still has
    /// as much as the asker's flow then.
    fn loser(
        &self,
        bound: Bound,
        asker: &Asker,
        tokens: u64,
        gone: &[u64],
    ) -> Option<(u64, &Place)> {
        let places = || {
            self.places
                .iter()
                .filter(|(number, _)| !gone.contains(number))
        };
        let mut sizes: BTreeMap<&Flow, u64> = BTreeMap::new();
        for (_, place) in places() {
            *sizes.entry(&place.asker.flow).or_default() += bound.size(place.tokens);
        }
        let own = sizes.get(&asker.flow).copied().unwrap_or(0) + bound.size(tokens);
        let (largest, size) = sizes.into_iter().max_by_key(|(_, size)| *size)?;
        let may_lose =
            |place: &Place| place.asker.flow == *largest && place.asker.priority <= asker.priority;
        let (number, newest) = places().rfind(|(_, place)| may_lose(place))?;
        let is_fair = size - bound.size(newest.tokens) >= own;
        is_fair.then_some((*number, newest))
    }
}

#[cfg(test)]
mod tests;
