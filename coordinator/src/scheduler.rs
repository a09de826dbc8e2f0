//! Continuous batching as a pure state machine: events in, [`StepPlan`]s out. No I/O, no clock, no
//! lock.
//!
//! ```text
//! Arrive ─▶ waiting ─capacity─▶ prefilling ─first token─▶ decoding ─▶ released
//!           (priority,          (round robin)
//!            then arrival)
//! ```
//! - A step holds every decoding sequence, then prefill pieces up to the step's token budget: a
//!   long prompt never keeps the others waiting for more than that budget.
//! - A piece ends at a stride boundary at the latest, so ranks evict between steps only.
//! - Waiting sequences start strictly in order: a large one at the head is not overtaken for ever
//!   by small ones.
//! - A lost group costs no sequence: what ran waits again, in its old place, and reads its prompt
//!   and its answer so far anew. The state is a function of the tokens, so it goes on as if nothing
//!   had happened.
//! - A sequence that leaves is listed under `release` of the next plan, exactly once; its memory
//!   counts as free from then on, because ranks release before they compute.

mod capacity;
mod plan;
mod sequence;

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use palimpsest_proto::internal::v1::{SequenceStep, StepOutput, StepPlan};

pub use self::capacity::{Capacity, Cost};
pub use self::plan::{TokenBudget, piece, to_boundary};
pub use self::sequence::Arrival;
use self::sequence::{Place, Running, Waiting};
use crate::ids::{Epoch, SequenceId};

/// Fixed bounds of a scheduler.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tokens between two boundaries; at least 1.
    pub stride: u64,
    /// Sequences that run at once; at least 1.
    pub max_running: usize,
    /// Prefill tokens of one step; both at least 1.
    pub tokens: TokenBudget,
    /// Cache of the smallest rank.
    pub room: Cost,
}

/// What happens to a scheduler from outside.
#[derive(Debug, Clone)]
pub enum Event {
    /// A sequence waits to start.
    Arrive(Box<Arrival>),
    /// A sequence is over for a reason that the scheduler does not know: cancelled, out of time,
    /// stopped by its text.
    Leave(SequenceId),
    /// Its reader is behind: schedule it no more.
    Pause(SequenceId),
    /// Its reader has caught up.
    Resume(SequenceId),
}

/// What a step did to a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A token was sampled; `ended` if it was the last.
    Token {
        /// The sequence.
        id: SequenceId,
        /// The token.
        token: u32,
        /// Set with the last token.
        ended: Option<Ending>,
    },
    /// The ranks gave the sequence up; it holds no memory any more.
    Failed {
        /// The sequence.
        id: SequenceId,
        /// What the rank said.
        error: String,
    },
}

/// Why a sequence ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It sampled one of its `stop_ids`.
    Eos,
    /// It has its `max_new_tokens`.
    Length,
}

/// How many sequences a scheduler has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sequences {
    /// Those that wait to start.
    pub waiting: usize,
    /// Those that hold memory.
    pub running: usize,
}

/// Owner of the order in which sequences run.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    capacity: Capacity,
    epoch: Epoch,
    step: u64,
    in_flight: bool,
    /// Who starts first stands first.
    waiting: BTreeMap<Place, Waiting>,
    running: BTreeMap<SequenceId, Running>,
    /// Sequences with prompt left, the next one to be served first.
    prefilling: VecDeque<SequenceId>,
    release: Vec<SequenceId>,
}

impl Scheduler {
    /// A scheduler without sequences, in `epoch`.
    pub fn new(limits: Limits, epoch: Epoch) -> Self {
        assert!(
            limits.stride > 0
                && limits.max_running > 0
                && limits.tokens.busy > 0
                && limits.tokens.idle > 0
        );
        Self {
            limits,
            capacity: Capacity::new(limits.room),
            epoch,
            step: 0,
            in_flight: false,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            prefilling: VecDeque::new(),
            release: Vec::new(),
        }
    }

    /// Takes an event in, at any time, also while a step is under way.
    pub fn on_event(&mut self, event: Event) {
        match event {
            Event::Arrive(arrival) => {
                assert!(
                    !arrival.prompt.is_empty() && arrival.max_new_tokens > 0,
                    "a request is validated before"
                );
                self.wait(Waiting {
                    arrival: *arrival,
                    answer: Vec::new(),
                    paused: false,
                });
            }
            Event::Leave(id) => {
                if let Some(running) = self.remove(id)
                    && running.known
                {
                    self.release.push(id);
                }
                self.waiting.retain(|place, _| place.id != id);
            }
            Event::Pause(id) => self.set_paused(id, true),
            Event::Resume(id) => self.set_paused(id, false),
        }
    }

    /// The next step, or nothing while one is under way or nobody can run.
    ///
    /// A sequence starts with the plan that holds its `init`.
    pub fn plan(&mut self) -> Option<StepPlan> {
        if self.in_flight {
            return None;
        }
        self.start_waiting();
        let mut sequences = self.decodes();
        let tokens = self.limits.tokens;
        let allowance = if sequences.is_empty() {
            tokens.idle
        } else {
            tokens.busy
        };
        self.prefill(allowance, &mut sequences);
        let release: Vec<u64> = self.release.drain(..).map(|id| id.0).collect();
        if sequences.is_empty() && release.is_empty() {
            return None;
        }
        self.in_flight = true;
        self.step += 1;
        Some(StepPlan {
            epoch: self.epoch.0,
            step: self.step,
            sequences,
            release,
        })
    }

    /// Takes the output of the step under way and says what it did to its sequences. Those that
    /// have left meanwhile are passed over.
    pub fn on_output(&mut self, output: &StepOutput) -> Vec<Progress> {
        self.in_flight = false;
        let mut progress = Vec::new();
        for one in &output.sequences {
            let id = SequenceId(one.sequence);
            let Some(running) = self.running.get_mut(&id) else {
                continue;
            };
            if !one.error.is_empty() {
                self.remove(id);
                progress.push(Progress::Failed {
                    id,
                    error: one.error.clone(),
                });
                continue;
            }
            running.fed += std::mem::take(&mut running.in_step);
            let Some(token) = one.token else { continue };
            running.answer.push(token);
            let ended = if running.arrival.stop_ids.contains(&token) {
                Some(Ending::Eos)
            } else {
                (running.answer.len() >= running.arrival.max_new_tokens as usize)
                    .then_some(Ending::Length)
            };
            if ended.is_some() {
                self.remove(id);
                self.release.push(id);
            }
            progress.push(Progress::Token { id, token, ended });
        }
        progress
    }

    /// The group is gone with all it held. Sequences that ran are returned and wait again, to be
    /// read anew by the group of `epoch`.
    pub fn restart(&mut self, epoch: Epoch) -> Vec<SequenceId> {
        let lost: Vec<_> = self.running.keys().copied().collect();
        for &id in &lost {
            if let Some(Running {
                arrival,
                answer,
                paused,
                ..
            }) = self.remove(id)
            {
                self.wait(Waiting {
                    arrival,
                    answer,
                    paused,
                });
            }
        }
        self.release.clear();
        (self.epoch, self.step, self.in_flight) = (epoch, 0, false);
        lost
    }

    /// Sequences that the scheduler has.
    pub fn load(&self) -> Sequences {
        Sequences {
            waiting: self.waiting.len(),
            running: self.running.len(),
        }
    }

    /// Bytes reserved on each rank.
    pub fn reserved_bytes(&self) -> u64 {
        self.capacity.reserved_bytes()
    }

    fn start_waiting(&mut self) {
        while self.running.len() < self.limits.max_running {
            let Some(first) = self.waiting.first_entry() else {
                break;
            };
            if !self.capacity.take(first.get().arrival.cost) {
                break;
            }
            let Waiting {
                arrival,
                answer,
                paused,
            } = first.remove();
            let id = arrival.id;
            let running = Running {
                arrival,
                answer,
                fed: 0,
                prefilling: true,
                paused,
                known: false,
                in_step: 0,
            };
            self.running.insert(id, running);
            self.prefilling.push_back(id);
        }
    }

    fn decodes(&mut self) -> Vec<SequenceStep> {
        let stride = self.limits.stride;
        let ready = self
            .running
            .values_mut()
            .filter(|running| !running.prefilling && !running.paused);
        ready.map(|running| running.step(1, stride)).collect()
    }

    fn prefill(&mut self, mut allowance: u64, sequences: &mut Vec<SequenceStep>) {
        let mut unserved = VecDeque::new();
        let mut served = VecDeque::new();
        while let Some(id) = self.prefilling.pop_front() {
            let running = self
                .running
                .get_mut(&id)
                .expect("a sequence leaves both lists at once");
            let count = piece(
                running.fed,
                running.known_tokens(),
                self.limits.stride,
                allowance,
            );
            if running.paused || count == 0 {
                unserved.push_back(id);
                continue;
            }
            allowance -= count;
            sequences.push(running.step(count, self.limits.stride));
            if running.prefilling {
                served.push_back(id);
            }
        }
        unserved.append(&mut served);
        self.prefilling = unserved;
    }

    fn set_paused(&mut self, id: SequenceId, paused: bool) {
        if let Some(running) = self.running.get_mut(&id) {
            running.paused = paused;
        }
        for waiting in self
            .waiting
            .values_mut()
            .filter(|waiting| waiting.arrival.id == id)
        {
            waiting.paused = paused;
        }
    }

    fn wait(&mut self, waiting: Waiting) {
        let place = Place {
            priority: Reverse(waiting.arrival.priority),
            id: waiting.arrival.id,
        };
        self.waiting.insert(place, waiting);
    }

    /// Takes a running sequence out and gives its memory back.
    fn remove(&mut self, id: SequenceId) -> Option<Running> {
        let running = self.running.remove(&id)?;
        self.prefilling.retain(|other| *other != id);
        self.capacity.give(running.arrival.cost);
        Some(running)
    }
}

#[cfg(test)]
mod tests;
