//! What the driver knows between two awaits.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::internal::v1::{SequenceInit, SequenceOutput, StepOutput, StepPlan};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::live::Live;
use super::message::{Loss, Message, Outlook, Readiness, Replacement, Submission};
use super::moves::{Forgetting, Waiter};
use super::warm_up;
use crate::admission::{Admission, Gate};
use crate::config::Config;
use crate::ids::{Epoch, SequenceId};
use crate::metrics::{Load, Metrics};
use crate::model::ServedModel;
use crate::request::ValidRequest;
use crate::scheduler::{
    Arrival, Cause, Ending, Event, Limits, Lost, Priority, Progress, Scheduler, TokenBudget,
};
use crate::stream::{ReaderState, Reading, Token};

/// A group that failed and was not replaced yet.
struct Gap {
    why: String,
    /// When its requests are given up.
    until: Instant,
}

/// What the driver's handles, the APIs and dashboards follow.
pub(super) struct Outlets {
    /// Whether the driver serves.
    pub(super) readiness: watch::Sender<Readiness>,
    /// The queue in front of the driver.
    pub(super) admission: Admission,
    /// Wakes the driver when a reader has room again or has gone.
    pub(super) wake: Arc<Notify>,
    /// Figures.
    pub(super) metrics: Metrics,
}

/// The driver's sequences and its group.
pub(super) struct State {
    pub(super) scheduler: Scheduler,
    /// Who waits for a state in another tier.
    pub(super) moving: Vec<Waiter>,
    /// Who waits until states are gone.
    pub(super) forgetting: Vec<Forgetting>,
    live: BTreeMap<SequenceId, Live>,
    next_sequence: u64,
    epoch: u64,
    /// The sequence whose first token makes the group ready.
    warm_up: Option<SequenceId>,
    warm_up_arrival: Arrival,
    eos_ids: Arc<[u32]>,
    slow_reader_limit: Duration,
    drain_limit: Duration,
    drain_until: Option<Instant>,
    regroup_limit: Duration,
    group_wait_limit: Duration,
    gap: Option<Gap>,
    readiness: watch::Sender<Readiness>,
    admission: Admission,
    pub(super) wake: Arc<Notify>,
    metrics: Metrics,
    capacity_bytes: u64,
    pub(super) replacement: Option<Replacement>,
    /// Why the present group is lost, as somebody else found out.
    pub(super) told_lost: Option<Loss>,
    /// No handle is left that could send anything.
    pub(super) orphaned: bool,
}

impl State {
    pub(super) fn new(config: &Config, model: &ServedModel, outlets: Outlets) -> Self {
        let Outlets {
            readiness,
            admission,
            wake,
            metrics,
        } = outlets;
        let stride = model.geometry.stride;
        let or = |tokens: u64, default: u64| if tokens == 0 { default } else { tokens };
        let tokens = TokenBudget {
            busy: or(config.busy_prefill_tokens, stride),
            idle: or(config.idle_prefill_tokens, 4 * stride),
        };
        let limits = Limits {
            stride,
            max_running: config.max_running.max(1),
            tokens,
            // Steps are sized to last four of these at most.
            step_target: config.step_target.min(config.step_limit / 4),
            company: config.company,
            max_replays: config.max_replays,
            room: model.room,
        };
        Self {
            scheduler: Scheduler::new(limits, Epoch(config.first_epoch))
                .with_snapshots(model.snapshot_room(config), model.world_size),
            moving: Vec::new(),
            forgetting: Vec::new(),
            live: BTreeMap::new(),
            next_sequence: 0,
            epoch: config.first_epoch,
            warm_up: None,
            warm_up_arrival: warm_up::arrival(model),
            eos_ids: model.info.eos_ids.clone().into(),
            slow_reader_limit: config.slow_reader_limit,
            drain_limit: config.drain_limit,
            drain_until: None,
            regroup_limit: config.regroup_limit,
            group_wait_limit: config.group_wait_limit,
            gap: None,
            readiness,
            admission,
            wake,
            metrics,
            capacity_bytes: model.room.bytes(),
            replacement: None,
            told_lost: None,
            orphaned: false,
        }
    }

    /// Takes a message in; `None` when no more can come.
    pub(super) fn take(&mut self, message: Option<Message>) {
        match message {
            Some(Message::Submit(submission)) => self.submit(*submission),
            Some(Message::Replace(replacement)) => self.replacement = Some(replacement),
            Some(Message::Lose(loss)) => {
                // Where no group can come any more, none will.
                let told = self.told_lost.as_ref();
                if told.is_none_or(|told| told.outlook == Outlook::Open) {
                    self.told_lost = Some(loss);
                }
            }
            Some(Message::Move(moving)) => self.begin_move(moving),
            Some(Message::Drain) => self.drain(),
            None => {
                self.orphaned = true;
                self.drain();
            }
        }
    }

    /// Asks for a one-token sequence; its success opens the gate.
    pub(super) fn warm_up(&mut self) {
        let id = self.new_sequence();
        let arrival = Arrival {
            id,
            ..self.warm_up_arrival.clone()
        };
        self.scheduler.on_event(Event::Arrive(Box::new(arrival)));
        self.warm_up = Some(id);
        self.report(Readiness::Starting);
    }

    /// Cancels what nobody reads, what is out of time, what is read too slowly and what waited too
    /// long for a group; resumes what is read again.
    pub(super) fn tend(&mut self) {
        let now = Instant::now();
        if let Some(gap) = self.gap.take_if(|gap| gap.until <= now) {
            self.give_up(|_| true, &gap.why);
            // Nobody can tell when there will be a group: what comes now need not wait to be told
            // so.
            self.admission.set_gate(Gate::Unready);
        }
        let mut over = Vec::new();
        let scheduler = &mut self.scheduler;
        self.live.retain(|&id, live| {
            let done = live.writer.reader() == ReaderState::Done;
            if done {
                tracing::debug!(request = %live.request, sequence = %id, "stopped");
                scheduler.on_event(Event::Leave(id));
            }
            !done
        });
        for (&id, live) in &mut self.live {
            let verdict = live.verdict(now, self.slow_reader_limit, self.drain_until);
            if let Some(error) = verdict {
                over.push((id, error));
            } else if live.paused.is_some() && live.writer.has_room() {
                live.paused = None;
                self.scheduler.on_event(Event::Resume(id));
            }
        }
        for (id, error) in over {
            self.scheduler.on_event(Event::Leave(id));
            self.fail(id, error);
        }
        self.metrics.load(self.load());
    }

    fn load(&self) -> Load {
        let sequences = self.scheduler.load();
        let reserved_bytes = self.scheduler.reserved_bytes();
        Load {
            running: sequences.running,
            queued: sequences.waiting,
            reserved_bytes,
            capacity_bytes: self.capacity_bytes,
            epoch: self.epoch,
            kept: self.scheduler.kept(),
        }
    }

    /// The next plan; its new sequences leave the queue.
    pub(super) fn plan(&mut self) -> Option<StepPlan> {
        let plan = self.scheduler.plan()?;
        let now = Instant::now();
        for step in plan.sequences.iter().filter(|step| step.init.is_some()) {
            if let Some(live) = self.live.get_mut(&SequenceId(step.sequence)) {
                live.permit = None;
                live.writer.start(now);
                // It is read from its beginning, by this group or another one.
                if let Some(known) = &mut live.prompt_logprobs {
                    known.clear();
                }
            }
        }
        Some(plan)
    }

    /// Hands the tokens of a step out. False if the group turns out to be unusable.
    pub(super) fn absorb(&mut self, output: StepOutput) -> bool {
        let now = Instant::now();
        let progress = self.scheduler.on_output(&output);
        let mask_wait = output.mask_wait_seconds;
        self.end_moves();
        self.metrics.step(self.load());
        self.metrics.mask_wait(mask_wait);
        let mut outputs: HashMap<u64, SequenceOutput> = output
            .sequences
            .into_iter()
            .map(|one| (one.sequence, self.without_prompt(one)))
            .collect();
        for one in progress {
            match one {
                Progress::Token { id, .. } if Some(id) == self.warm_up => {
                    self.warm_up = None;
                    self.gap = None;
                    self.live.values_mut().for_each(|live| live.group_by = None);
                    self.admission.set_gate(Gate::Open);
                    self.report(Readiness::Ready);
                }
                Progress::Token {
                    id,
                    token,
                    ended,
                    cached,
                } => {
                    let output = outputs.remove(&id.0).unwrap_or_default();
                    let token = Token {
                        id: token,
                        ended,
                        cached,
                        ..after(output, now)
                    };
                    self.hand_out(id, token);
                }
                Progress::Piece { id, fed } => {
                    let output = outputs.remove(&id.0).unwrap_or_default();
                    if let Some(live) = self.live.get(&id) {
                        live.writer.tell(reading(output, fed));
                    }
                }
                Progress::Read { id, cached } => {
                    let output = outputs.remove(&id.0).unwrap_or_default();
                    let end = Token {
                        ended: Some(Ending::Read),
                        cached,
                        ..after(output, now)
                    };
                    self.hand_out(id, end);
                }
                Progress::Failed { id, error, .. } if Some(id) == self.warm_up => {
                    tracing::error!(%error, "the worker group failed its first sequence");
                    self.lose_group(&error);
                    return false;
                }
                Progress::Failed { id, error, by } => {
                    if let Some(live) = self.live.get(&id) {
                        let failure = match by {
                            Cause::Rank => live.failure(&error),
                            Cause::Guide => RequestError::new(Reason::GuideFailed, error),
                        };
                        self.fail(id, failure);
                    }
                }
            }
        }
        true
    }

    /// An output without the log-probabilities of its prompt, which wait for the first token.
    fn without_prompt(&mut self, mut output: SequenceOutput) -> SequenceOutput {
        let found = std::mem::take(&mut output.prompt_logprobs);
        let live = self.live.get_mut(&SequenceId(output.sequence));
        if let Some(known) = live.and_then(|live| live.prompt_logprobs.as_mut()) {
            known.extend(found);
        }
        output
    }

    /// A group of `epoch` takes over from one that is gone.
    pub(super) fn join(&mut self, epoch: Epoch) {
        self.epoch = epoch.0;
        self.scheduler.restart(epoch);
    }

    /// The group is gone. What ran on it waits for the next one, as long as the limits allow.
    pub(super) fn lose_group(&mut self, why: &str) {
        // Only so that no plan of a group that is gone is taken for one of this: the next group
        // brings its own.
        self.epoch = self.epoch.saturating_add(1);
        if let Some(id) = self.warm_up.take() {
            self.scheduler.on_event(Event::Leave(id));
        }
        let Lost { ran, broken_by } = self.scheduler.restart(Epoch(self.epoch));
        self.end_moves();
        if self.regroup_limit.is_zero() {
            self.give_up(|id| ran.contains(&id), why);
        } else if let Some(breaker) = broken_by {
            self.scheduler.on_event(Event::Leave(breaker.id));
            self.fail(breaker.id, Live::breaks_groups(breaker.losses, why));
        }
        let until = Instant::now() + self.regroup_limit;
        if self.regroup_limit.is_zero() {
            self.admission.set_gate(Gate::Unready);
        } else {
            self.gap.get_or_insert(Gap {
                why: why.to_owned(),
                until,
            });
            self.admission.set_gate(Gate::Waiting);
        }
        self.report(Readiness::Lost);
    }

    /// There is no group, and none will come.
    pub(super) fn close(&mut self, why: &str) {
        self.gap = None;
        self.give_up(|_| true, why);
        self.admission.set_gate(Gate::Unready);
    }

    /// When the loop must look again though nothing happens.
    pub(super) fn next_alarm(&self) -> Option<Instant> {
        let slow = |live: &Live| live.paused.map(|since| since + self.slow_reader_limit);
        let alarms = self
            .live
            .values()
            .flat_map(|live| [Some(live.deadline), live.group_by, slow(live)])
            .flatten();
        let drain = self.drain_until.filter(|_| !self.live.is_empty());
        alarms
            .chain(drain)
            .chain(self.gap.as_ref().map(|gap| gap.until))
            .min()
    }

    /// Whether a drain is out of time and no request is left: what ranks still write to their store
    /// is not waited for.
    pub(super) fn is_drained_in_time(&self) -> bool {
        let is_over = self
            .drain_until
            .is_some_and(|until| until <= Instant::now());
        is_over && self.live.is_empty()
    }

    /// Whether a drain has come to its end. Without a group, requests that wait would wait in vain.
    pub(super) fn drained(&mut self, has_group: bool) -> bool {
        if self.drain_until.is_none() {
            return false;
        }
        if !has_group {
            self.drain_until = Some(Instant::now());
            self.tend();
        }
        self.live.is_empty()
    }

    fn submit(
        &mut self,
        Submission {
            request,
            permit,
            writer,
        }: Submission,
    ) {
        let id = self.new_sequence();
        tracing::debug!(request = %request.id, sequence = %id, "queued");
        let arrival = self.arrival(id, &request);
        self.scheduler.on_event(Event::Arrive(Box::new(arrival)));
        let (request, deadline) = (request.id, request.deadline);
        let has_group = self.gap.is_none() && self.warm_up.is_none();
        let group_by = (!has_group).then(|| Instant::now() + self.group_wait_limit);
        let live = Live {
            request,
            writer,
            permit: Some(permit),
            deadline,
            paused: None,
            prompt_logprobs: Some(Vec::new()),
            group_by,
        };
        self.live.insert(id, live);
    }

    fn arrival(&self, id: SequenceId, request: &ValidRequest) -> Arrival {
        let end = &request.end;
        let own = self.eos_ids.iter().copied();
        let (stop_ids, banned): (Vec<u32>, Vec<u32>) = match end.ignore_eos {
            true => {
                let banned = own.filter(|id| !end.stop_ids.contains(id));
                (end.stop_ids.clone(), banned.collect())
            }
            false => (
                own.chain(end.stop_ids.iter().copied()).collect(),
                Vec::new(),
            ),
        };
        let prompt_tokens = request.prompt.len() as u64;
        let (banned_at_first, banned_until) = match end.min_tokens {
            0 => (Vec::new(), 0),
            least => (stop_ids.clone(), prompt_tokens + u64::from(least)),
        };
        let init = SequenceInit {
            kv: Some((&request.kv).into()),
            sampling: Some(request.sampling.clone()),
            max_tokens: request.max_total_tokens(),
            banned,
            banned_at_first,
            banned_until,
            prompt_tokens,
            trace: request.trace.clone(),
            pooling: request.embedding.into(),
            guide: request.guide.clone(),
            calls: request.calls.as_deref().cloned(),
            ..SequenceInit::default()
        };
        Arrival {
            id,
            priority: Priority::client(request.priority),
            flow: request.flow.clone(),
            prompt: request.prompt.clone(),
            max_new_tokens: request.max_tokens,
            stop_ids: stop_ids.into(),
            init,
            cost: request.cost,
            retention_report: request.retention_report,
            map_every: request.map_every,
            reuse: request.reuse.clone(),
        }
    }

    fn hand_out(&mut self, id: SequenceId, mut token: Token) {
        let Some(live) = self.live.get_mut(&id) else {
            return;
        };
        token.prompt_logprobs = live.prompt_logprobs.take().unwrap_or_default();
        let (ended, at) = (token.ended, token.at);
        let full = live.writer.push(token);
        if ended.is_some() {
            tracing::debug!(request = %live.request, sequence = %id, ?ended, "done");
            self.live.remove(&id);
        } else if full {
            live.paused = Some(at);
            self.scheduler.on_event(Event::Pause(id));
        }
    }

    /// Ends requests for which there is no group.
    fn give_up(&mut self, which: impl Fn(SequenceId) -> bool, why: &str) {
        let given_up: Vec<_> = self
            .live
            .iter()
            .filter(|(id, _)| which(**id))
            .map(|(&id, live)| (id, live.failure(why)))
            .collect();
        for (id, failure) in given_up {
            self.scheduler.on_event(Event::Leave(id));
            self.fail(id, failure);
        }
    }

    fn fail(&mut self, id: SequenceId, error: RequestError) {
        if let Some(live) = self.live.remove(&id) {
            tracing::info!(
                request = %live.request,
                sequence = %id,
                reason = error.reason.tag(),
                "ended early"
            );
            live.writer.fail(error);
        }
    }

    fn drain(&mut self) {
        self.drain_until
            .get_or_insert(Instant::now() + self.drain_limit);
        self.admission.set_gate(Gate::Draining);
        self.report(Readiness::Draining);
    }

    fn report(&self, readiness: Readiness) {
        self.metrics.group_ready(readiness == Readiness::Ready);
        let readiness = if self.drain_until.is_some() {
            Readiness::Draining
        } else {
            readiness
        };
        self.readiness.send_replace(readiness);
    }

    fn new_sequence(&mut self) -> SequenceId {
        self.next_sequence += 1;
        SequenceId(self.next_sequence)
    }
}

/// What a step that sampled nothing says of a sequence.
fn reading(output: SequenceOutput, fed: u64) -> Reading {
    Reading {
        fed,
        cache: output.cache.unwrap_or_default(),
        retention: output.retention.unwrap_or_default(),
    }
}

/// What a step says of a sequence, for its ring.
fn after(output: SequenceOutput, at: Instant) -> Token {
    Token {
        number: 0,
        id: 0,
        logprob: output.logprob,
        cache: output.cache.unwrap_or_default(),
        retention: output.retention,
        prompt_logprobs: Vec::new(),
        embedding: output.embedding,
        ended: None,
        cached: 0,
        at,
    }
}

/// However the driver ends, in a panic too, it says so: its last word must not stand for ever.
impl Drop for State {
    fn drop(&mut self) {
        self.metrics.group_ready(false);
        self.admission.set_gate(Gate::Draining);
        self.readiness.send_replace(Readiness::Ended);
    }
}
