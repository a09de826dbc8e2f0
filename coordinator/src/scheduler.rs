//! Continuous batching as a pure state machine: events in, [`StepPlan`]s out. No I/O, no clock, no
//! lock.
//!
//! ```text
//! Arrive ─▶ waiting ─capacity─▶ prefilling ─first token─▶ decoding ─▶ released
//!           (priority,          (priority, then flow,
//!            then flow)          then the shortest)
//! ```
//! - A step holds every decoding sequence, then prefill pieces up to the step's token budget, which
//!   follows from the seconds that earlier steps took: a long prompt lengthens the gaps between
//!   tokens of the others by no more than a factor, and is itself read no more than a factor later.
//! - A piece ends at a stride boundary at the latest, so ranks evict between steps only.
//! - A sequence whose guide is late gets no token in the step that has read its last one. It is in
//!   the next step without a token, for the choice alone.
//! - Starts and prompt tokens are shared fairly between flows, that is between clients. Waiting
//!   sequences start strictly in order: a large one at the head is not overtaken for ever by small
//!   ones.
//! - A lost group costs no sequence: what ran waits again, in its old place, and reads its prompt
//!   and its answer so far anew. The state is a function of the tokens, so it goes on as if nothing
//!   had happened. Who was in the step that broke one group after another is replayed alone.
//! - A sequence that leaves is listed under `release` of the next plan, exactly once; its memory
//!   counts as free from then on, because ranks release before they compute.

mod capacity;
mod lineage;
mod pace;
mod plan;
mod reading;
mod reuse;
mod sequence;
mod shares;
mod starts;
mod suspicion;
mod turns;

use std::collections::BTreeMap;
use std::time::Duration;

use palimpsest_proto::internal::v1::{SequenceStep, StepOutput, StepPlan};

pub use self::capacity::{Capacity, Cost};
use self::lineage::Lineage;
pub use self::lineage::Reuse;
pub use self::pace::Company;
use self::pace::{Pace, Who, Work};
pub use self::plan::{TokenBudget, piece, to_boundary};
use self::reading::{Candidate, Reading};
pub use self::sequence::{Arrival, Priority};
use self::sequence::{Place, Running, Waiting};
use self::starts::Starts;
use self::suspicion::Suspicion;
use self::turns::{Turn, Turns};
use crate::ids::{Epoch, SequenceId};
use crate::snapshots::{Index, Keep, Room, Sightings};

/// Fixed bounds of a scheduler.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tokens between two boundaries; at least 1.
    pub stride: u64,
    /// Sequences that run at once; at least 1.
    pub max_running: usize,
    /// Prefill tokens of one step at most; both at least 1.
    pub tokens: TokenBudget,
    /// Time for the prompts of a step.
    pub step_target: Duration,
    /// What sequences that decode and prompts that are read owe each other.
    pub company: Company,
    /// Times that one sequence is read anew after the group was lost in a step with it, the last
    /// time alone.
    pub max_replays: u32,
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
        /// Tokens of its prompt that were not read, because they were kept.
        cached: u64,
    },
    /// A piece of the prompt was read, and the ranks say what they retain.
    Piece {
        /// The sequence.
        id: SequenceId,
        /// Tokens that they have seen.
        fed: u64,
    },
    /// The prompt was read, and no token was asked for.
    Read {
        /// The sequence.
        id: SequenceId,
        /// Tokens of its prompt that were not read, because they were kept.
        cached: u64,
    },
    /// The ranks gave the sequence up; it holds no memory any more.
    Failed {
        /// The sequence.
        id: SequenceId,
        /// What the rank said.
        error: String,
        /// Whose fault it is.
        by: Cause,
    },
}

/// What makes ranks give a sequence up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The rank, its model or the plan.
    Rank,
    /// What the client asked the answer to be.
    Guide,
}

/// Why a sequence ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It sampled one of its `stop_ids`.
    Eos,
    /// It has its `max_new_tokens`.
    Length,
    /// Its prompt was read, and no token was asked for.
    Read,
}

/// How many sequences a scheduler has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sequences {
    /// Those that wait to start.
    pub waiting: usize,
    /// Those that hold memory.
    pub running: usize,
}

/// What a lost group leaves behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lost {
    /// Sequences that ran on it. They wait again.
    pub ran: Vec<SequenceId>,
    /// The one of them that broke it, as far as can be told.
    pub broken_by: Option<Breaker>,
}

/// A sequence that breaks every group: it was alone in the last step of the last one, after all its
/// replays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// The sequence.
    pub id: SequenceId,
    /// Groups that were lost in a step with it.
    pub losses: u32,
}

/// A step that the ranks carry out now.
#[derive(Debug, Clone, Copy)]
struct Step {
    work: Work,
    /// Sequences in it.
    company: usize,
}

/// Owner of the order in which sequences run.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    capacity: Capacity,
    epoch: Epoch,
    step: u64,
    under_way: Option<Step>,
    pace: Pace,
    turns: Turns,
    waiting: BTreeMap<Place, Waiting>,
    /// Who of them is next.
    starts: Starts,
    running: BTreeMap<SequenceId, Running>,
    /// Sequences with prompt left.
    reading: Reading,
    release: Vec<SequenceId>,
    index: Index,
    /// What the step under way is to keep, and of whom.
    keeping: BTreeMap<SequenceId, Keep>,
    sightings: Sightings,
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
            under_way: None,
            pace: Pace::new(limits.tokens, limits.step_target, limits.company),
            turns: Turns::default(),
            waiting: BTreeMap::new(),
            starts: Starts::default(),
            running: BTreeMap::new(),
            reading: Reading::default(),
            release: Vec::new(),
            index: Index::new(Room::default(), 1),
            keeping: BTreeMap::new(),
            sightings: Sightings::default(),
        }
    }

    /// The same, with so much room for snapshots on each of `ranks` ranks.
    #[must_use]
    pub fn with_snapshots(mut self, room: Room, ranks: u32) -> Self {
        self.index = Index::new(room, ranks);
        self
    }

    /// Takes an event in, at any time, also while a step is under way.
    pub fn on_event(&mut self, event: Event) {
        match event {
            Event::Arrive(arrival) => {
                assert!(!arrival.prompt.is_empty(), "a request is validated before");
                self.wait(Waiting {
                    arrival: *arrival,
                    answer: Vec::new(),
                    paused: false,
                    suspicion: Suspicion::default(),
                    hold: None,
                });
            }
            Event::Leave(id) => {
                if let Some(running) = self.remove(id)
                    && running.known
                {
                    self.leave_behind(&running);
                    self.release.push(id);
                }
                let starts = &mut self.starts;
                self.waiting.retain(|place, waiting| {
                    let leaves = place.id == id;
                    if leaves {
                        starts.leave(&waiting.arrival.flow);
                    }
                    !leaves
                });
            }
            Event::Pause(id) => self.set_paused(id, true),
            Event::Resume(id) => self.set_paused(id, false),
        }
    }

    /// The next step, or nothing while one is under way or nobody can run.
    ///
    /// A sequence starts with the plan that holds its `init`.
    pub fn plan(&mut self) -> Option<StepPlan> {
        if self.under_way.is_some() {
            return None;
        }
        self.start_waiting();
        let turn = self.turns.next(&self.running, self.limits.max_replays);
        let is_busy = self.running.values().any(Running::decodes);
        let mut sequences = self.decodes(turn);
        let reads = |step: &&SequenceStep| !step.tokens.is_empty();
        let decodes = sequences.iter().filter(reads).count() as u64;
        let who = match decodes {
            0 if is_busy => Who::Waiting,
            0 => Who::Nobody,
            _ => Who::InStep(decodes),
        };
        let candidates = self.candidates(turn);
        let is_reading = !candidates.is_empty();
        let prefill = self.prefill(candidates, who, &mut sequences);
        let release: Vec<u64> = self.release.drain(..).map(|id| id.0).collect();
        sequences.iter_mut().for_each(|step| self.keep_after(step));
        let snapshots = self.index.orders();
        // Ranks tell with an output what they have done in the background.
        let is_awaited = snapshots.is_some() || self.index.has_pending();
        if sequences.is_empty() && release.is_empty() && !is_awaited {
            return None;
        }
        self.under_way = Some(Step {
            work: Work {
                prefill,
                decodes,
                is_reading,
            },
            company: sequences.len(),
        });
        self.step += 1;
        Some(StepPlan {
            epoch: self.epoch.0,
            step: self.step,
            sequences,
            release,
            snapshots,
        })
    }

    /// Takes the output of the step under way and says what it did to its sequences. Those that
    /// have left meanwhile are passed over. The seconds that it took decide about the size of the
    /// next ones.
    pub fn on_output(&mut self, output: &StepOutput) -> Vec<Progress> {
        let mut was_alone = false;
        if let Some(step) = self.under_way.take() {
            self.pace.observe(step.work, output.seconds);
            was_alone = step.company == 1;
        }
        self.index.report(&output.snapshots);
        let mut progress = Vec::new();
        for one in &output.sequences {
            let id = SequenceId(one.sequence);
            self.note_kept(one);
            if !self.running.contains_key(&id) {
                continue;
            }
            if !one.error.is_empty() && !one.guide_failed && self.reads_instead(id) {
                continue;
            }
            let Some(running) = self.running.get_mut(&id) else {
                continue;
            };
            if !one.error.is_empty() {
                self.remove(id);
                progress.push(Progress::Failed {
                    id,
                    error: one.error.clone(),
                    by: match one.guide_failed {
                        true => Cause::Guide,
                        false => Cause::Rank,
                    },
                });
                continue;
            }
            running.fed += std::mem::take(&mut running.in_step);
            running.due = one.awaits_guide;
            if was_alone {
                running.suspicion.pass(running.fed);
            }
            // One that is read anew may begin with a state of its own answer.
            let prompt = running.arrival.prompt.len() as u64;
            let cached = running.lineage.as_ref().map_or(0, Lineage::reused);
            let cached = cached.min(prompt);
            let Some(token) = one.token else {
                if running.is_read() {
                    self.end(id);
                    progress.push(Progress::Read { id, cached });
                } else if one.retention.is_some() {
                    let fed = running.fed;
                    progress.push(Progress::Piece { id, fed });
                }
                continue;
            };
            running.answer.push(token);
            let ended = if running.arrival.stop_ids.contains(&token) {
                Some(Ending::Eos)
            } else {
                (running.answer.len() >= running.arrival.max_new_tokens as usize)
                    .then_some(Ending::Length)
            };
            if ended.is_some() {
                self.end(id);
            }
            progress.push(Progress::Token {
                id,
                token,
                ended,
                cached,
            });
        }
        progress
    }

    /// The group is gone with all it held. Sequences that ran wait again, to be read anew by the
    /// group of `epoch`; those in the step under way are suspected of its loss.
    pub fn restart(&mut self, epoch: Epoch) -> Lost {
        let was_alone = self.under_way.take().is_some_and(|step| step.company == 1);
        let max_replays = self.limits.max_replays;
        let mut lost = Lost::default();
        let ran: Vec<_> = self.running.keys().copied().collect();
        for id in ran {
            let Some(running) = self.remove(id) else {
                continue;
            };
            let mut suspicion = running.suspicion;
            if running.in_step > 0 {
                suspicion.lose(running.fed + running.in_step);
                let losses = suspicion.losses();
                let is_proven = was_alone && suspicion.is_proven(max_replays);
                lost.broken_by = is_proven.then_some(Breaker { id, losses });
            }
            lost.ran.push(id);
            self.wait(Waiting {
                arrival: running.arrival,
                answer: running.answer,
                paused: running.paused,
                suspicion,
                hold: None,
            });
        }
        self.index.begin_epoch();
        self.keeping.clear();
        self.release.clear();
        self.pace.forget();
        (self.epoch, self.step) = (epoch, 0);
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

    /// Sequences that are over in the step: it has all they asked for.
    fn end(&mut self, id: SequenceId) {
        if let Some(running) = self.remove(id) {
            self.leave_behind(&running);
            self.release.push(id);
        }
    }

    /// Starts what waits, in order, as far as there is room. Those that wait for a prefix let
    /// others pass.
    fn start_waiting(&mut self) {
        self.release_holds();
        while self.running.len() < self.limits.max_running {
            let Some(next) = self.starts.next(&self.waiting) else {
                break;
            };
            if self.is_held(next) {
                continue;
            }
            let cost = self.waiting.get(&next).map(|one| one.arrival.cost);
            if !cost.is_some_and(|cost| self.capacity.take(cost)) {
                break;
            }
            if let Some(waiting) = self.waiting.remove(&next) {
                self.start(waiting);
            }
        }
    }

    fn start(&mut self, waiting: Waiting) {
        let lineage = self.lineage(&waiting);
        let id = waiting.arrival.id;
        let running = Running {
            fed: lineage.as_ref().map_or(0, Lineage::reused),
            arrival: waiting.arrival,
            answer: waiting.answer,
            prefilling: true,
            paused: waiting.paused,
            known: false,
            in_step: 0,
            due: false,
            suspicion: waiting.suspicion,
            lineage,
        };
        let flow = &running.arrival.flow;
        self.starts
            .start(flow, running.known_tokens() - running.fed);
        self.reading.enter(id, flow);
        self.running.insert(id, running);
    }

    fn decodes(&mut self, turn: Turn) -> Vec<SequenceStep> {
        let Limits {
            stride,
            max_replays,
            ..
        } = self.limits;
        let ready = self
            .running
            .values_mut()
            .filter(|running| running.decodes() && turn.has(running, max_replays));
        let starts = &mut self.starts;
        let step = |running: &mut Running| {
            let step = running.decode(stride);
            starts.charge(&running.arrival.flow, step.tokens.len() as u64);
            step
        };
        ready.map(step).collect()
    }

    /// Prompts that may be in a step.
    fn candidates(&self, turn: Turn) -> Vec<Candidate> {
        let running = self.reading.ids().filter_map(|id| self.running.get(&id));
        let max_replays = self.limits.max_replays;
        let ready = running.filter(|one| !one.paused && turn.has(one, max_replays));
        let candidate = |one: &Running| Candidate {
            id: one.arrival.id,
            priority: one.arrival.priority,
            left: one.known_tokens() - one.fed,
        };
        ready.map(candidate).collect()
    }

    /// Adds pieces of prompts, and returns how many tokens these are.
    fn prefill(
        &mut self,
        mut candidates: Vec<Candidate>,
        who: Who,
        sequences: &mut Vec<SequenceStep>,
    ) -> u64 {
        let most = self.pace.allowance(who);
        let enough = self.pace.enough();
        let stride = self.limits.stride;
        let mut taken = 0;
        while taken < most.min(enough) {
            let Some(Candidate { id, .. }) = self.reading.next(&mut candidates) else {
                break;
            };
            let running = self
                .running
                .get_mut(&id)
                .expect("a sequence that is read runs");
            let count = piece(running.fed, running.known_tokens(), stride, most - taken);
            sequences.push(running.step(count, stride));
            taken += count;
            self.reading.serve(id, count);
            if !running.prefilling {
                self.reading.leave(id);
            }
        }
        taken
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
            priority: waiting.arrival.priority,
            id: waiting.arrival.id,
        };
        self.starts.enter(&waiting.arrival.flow);
        self.waiting.insert(place, waiting);
    }

    /// Takes a running sequence out and gives its memory back.
    fn remove(&mut self, id: SequenceId) -> Option<Running> {
        let running = self.running.remove(&id)?;
        if let Some(began) = running.lineage.as_ref().and_then(Lineage::began)
            && !running.known
        {
            self.index.begun(began.name);
        }
        self.reading.leave(id);
        self.capacity.give(running.arrival.cost);
        Some(running)
    }
}

#[cfg(test)]
mod tests;
