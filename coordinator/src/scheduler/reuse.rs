//! Beginning with what is kept, and keeping what others may begin with.
//!
//! A sequence that starts begins with the longest prefix of its prompt whose state is kept in host
//! memory. It waits in two cases, and lets others pass: a longer prefix is being read from the
//! store, or a sequence that runs is about to reach one. So a text that many ask about at once is
//! read once.

use std::ops::RangeInclusive;

use palimpsest_proto::internal::v1::{SequenceOutput, SequenceStep};

use super::sequence::{Hold, Place, Running, Waiting};
use super::{Lineage, Scheduler};
use crate::ids::SequenceId;
use crate::snapshots::{Chain, Ended, Erased, Found, Held, Keep, Name, Want};

impl Scheduler {
    /// Lets those go on for whom nothing is on its way any more.
    pub(super) fn release_holds(&mut self) {
        let held = self.waiting.iter().filter_map(|(place, one)| {
            let hold = one.hold.filter(|hold| !self.still_holds(*hold));
            hold.map(|_| *place)
        });
        for place in held.collect::<Vec<_>>() {
            if let Some(waiting) = self.waiting.get_mut(&place) {
                waiting.hold = None;
            }
        }
    }

    /// Has the sequence at `place` wait if a longer prefix than there is comes. Returns whether it
    /// does.
    pub(super) fn is_held(&mut self, place: Place) -> bool {
        let hold = self.find_hold(place);
        if let Some(waiting) = self.waiting.get_mut(&place) {
            waiting.hold = hold;
        }
        hold.is_some()
    }

    fn still_holds(&self, hold: Hold) -> bool {
        match hold {
            Hold::Follows { leader, until } => self
                .running
                .get(&leader)
                .is_some_and(|leader| !leader.paused && leader.fed < until),
            Hold::Fetches(name) => self.index.is_coming(name),
        }
    }

    fn find_hold(&mut self, place: Place) -> Option<Hold> {
        let waiting = self.waiting.get(&place)?;
        // Who is read anew after a loss may be at fault: it waits for nobody, and nobody for it.
        let is_new = waiting.answer.is_empty() && waiting.suspicion.losses() == 0;
        let reuse = waiting.arrival.reuse.as_ref().filter(|_| is_new)?;
        let chain = reuse.chain.clone();
        let most = waiting.known_tokens().saturating_sub(1);
        let in_memory = self.index.in_memory(&chain, most);
        let ready = in_memory.map_or(0, |found| found.position);
        if let Some(stored) = self.index.in_store(&chain, most)
            && stored.position > ready
            && self.index.want(stored.name, Want::Fetch)
        {
            return Some(Hold::Fetches(stored.name));
        }
        let wanted = ready + 1..=most;
        self.find_leader(place, &chain, wanted)
    }

    /// Who reads more of the same text than is `ready`, and has it kept where the two part.
    fn find_leader(
        &mut self,
        place: Place,
        chain: &Chain,
        wanted: RangeInclusive<u64>,
    ) -> Option<Hold> {
        let stride = chain.stride();
        let most = wanted.end() / stride * stride;
        let shared = |leader: &Running| {
            let lineage = leader.lineage.as_ref()?;
            let reads_on = leader.prefilling && !leader.paused && leader.suspicion.losses() == 0;
            // Nobody waits for one that others overtake, nor for a state that cannot be kept.
            let is_served = leader.arrival.priority <= place.priority
                && self.index.could_keep(leader.arrival.cost.bytes());
            let until = lineage.chain().shared(chain).min(most);
            let is_ahead = wanted.contains(&until) && until > leader.fed;
            (reads_on && is_served && is_ahead).then_some(until)
        };
        let (until, leader) = self
            .running
            .iter()
            .filter_map(|(id, running)| Some((shared(running)?, *id)))
            // The first to come of those that read as far.
            .max_by_key(|&(until, id)| (until, std::cmp::Reverse(id)))?;
        let lineage = self.running.get_mut(&leader)?.lineage.as_mut()?;
        lineage.keep(until);
        Some(Hold::Follows { leader, until })
    }

    /// What a sequence that starts now begins with, and what it will leave.
    pub(super) fn lineage(&mut self, waiting: &Waiting) -> Option<Lineage> {
        let arrival = &waiting.arrival;
        let reuse = arrival.reuse.as_ref().filter(|_| self.index.is_on())?;
        let tokens: Vec<u32> = match waiting.answer.is_empty() {
            // The chain has all of a prompt already.
            true => Vec::new(),
            false => arrival
                .prompt
                .iter()
                .chain(&waiting.answer)
                .copied()
                .collect(),
        };
        let prompt = arrival.prompt.len() as u64;
        let all = Lineage::new(reuse, &tokens, prompt, None);
        let most = waiting.known_tokens().saturating_sub(1);
        let began = self.index.in_memory(all.chain(), most);
        if let Some(found) = began {
            self.index.begin_with(found);
        }
        let mut lineage = Lineage::new(reuse, &tokens, prompt, began);
        if let Some(before) = self.sightings.see(&reuse.chain) {
            lineage.keep(before);
        }
        Some(lineage)
    }

    /// After a sequence's part of a plan is made: has its state kept where that is wanted.
    pub(super) fn keep_after(&mut self, step: &mut SequenceStep) {
        let id = SequenceId(step.sequence);
        let Some(running) = self.running.get_mut(&id) else {
            return;
        };
        if step.tokens.is_empty() {
            // The step before it has seen to that.
            return;
        }
        let bytes = running.arrival.cost.bytes();
        let end = step.position + step.tokens.len() as u64;
        let Running {
            arrival,
            answer,
            lineage,
            ..
        } = running;
        let Some(lineage) = lineage else { return };
        if let Some(began) = lineage.began().filter(|_| step.init.is_some()) {
            self.index.begun(began.name);
        }
        let read = arrival.prompt.iter().chain(&*answer).take(end as usize);
        let Some(found) = lineage.wanted_at(end, read) else {
            return;
        };
        if self.index.make_room(found.name, bytes) {
            let Found { position, name } = found;
            let keep = Keep {
                name,
                position,
                bytes: 0,
                after: lineage.last(),
            };
            self.keeping.insert(id, keep);
            step.keep = name.bytes();
        }
    }

    /// What a step kept of a sequence, which may have left meanwhile.
    pub(super) fn note_kept(&mut self, output: &SequenceOutput) {
        let id = SequenceId(output.sequence);
        let Some(keeping) = self.keeping.remove(&id) else {
            return;
        };
        let is_good = output.error.is_empty();
        let bytes = if is_good { output.kept_bytes } else { 0 };
        self.index.kept(Keep { bytes, ..keeping });
        let running = self.running.get_mut(&id).filter(|_| bytes > 0);
        let Some(lineage) = running.and_then(|running| running.lineage.as_mut()) else {
            return;
        };
        let Keep { name, position, .. } = keeping;
        if let Some(before) = lineage.took(Found { position, name }) {
            self.index.replace(before);
        }
    }

    /// A sequence failed in its first step, which was to begin with a snapshot. Ranks could not, so
    /// it waits again, to read what it would have begun with. Returns whether that is so.
    pub(super) fn reads_instead(&mut self, id: SequenceId) -> bool {
        let began = self.running.get(&id).and_then(|running| {
            let began = running.lineage.as_ref()?.began()?;
            (running.fed == began.position).then_some(began)
        });
        let Some(began) = began else { return false };
        let Some(running) = self.remove(id) else {
            return false;
        };
        tracing::warn!(sequence = %id, "a snapshot could not be used; its tokens are read again");
        self.index.forget(began.name);
        self.wait(Waiting {
            arrival: running.arrival,
            answer: running.answer,
            paused: running.paused,
            suspicion: running.suspicion,
            hold: None,
        });
        true
    }

    /// A sequence is over: what it leaves goes to the store, where there is one.
    pub(super) fn leave_behind(&mut self, running: &Running) {
        for name in running.lineage.iter().flat_map(Lineage::ends) {
            self.index.want(name, Want::Store);
        }
    }

    /// Snapshots that are kept.
    pub const fn kept(&self) -> Held {
        self.index.held()
    }

    /// The last state of a chain that any tier has.
    pub fn kept_of(&self, chain: &Chain) -> Option<Found> {
        let tiers = [
            self.index.in_memory(chain, u64::MAX),
            self.index.in_store(chain, u64::MAX),
        ];
        tiers
            .into_iter()
            .flatten()
            .max_by_key(|found| found.position)
    }

    /// Whether a snapshot is where it is wanted.
    pub fn has_snapshot(&self, name: Name, want: Want) -> bool {
        self.index.is_where(name, want)
    }

    /// Has a snapshot brought to another tier. Returns whether that is under way now.
    pub fn move_snapshot(&mut self, name: Name, want: Want) -> bool {
        self.index.want(name, want) || self.index.is_under_way(name, want)
    }

    /// What became of snapshots that were to be moved, since the last call.
    pub fn moved(&mut self) -> Vec<Ended> {
        self.index.take_ended()
    }

    /// Forgets the copy of a snapshot in host memory, unless a sequence is to begin with it.
    pub fn leave_memory(&mut self, name: Name) {
        self.index.release(name);
    }

    /// Has the states of a chain behind its first `shared` tokens leave every tier, however many
    /// have begun with them. Returns those that there may be: [`Self::erased`] tells when they
    /// are gone.
    pub fn forget_snapshots(&mut self, chain: &Chain, shared: u64) -> Vec<Name> {
        let behind = chain.boundaries(u64::MAX);
        let names: Vec<Name> = behind
            .filter(|&(position, name)| position > shared && self.index.may_be_kept(name))
            .map(|(_, name)| name)
            .collect();
        names.iter().for_each(|name| self.index.doom(*name));
        names
    }

    /// What has left every tier, or could not, since the last call.
    pub fn erased(&mut self) -> Vec<Erased> {
        self.index.take_erased()
    }

    /// Bytes of a snapshot on the fullest rank; 0 if it is not kept.
    pub fn snapshot_bytes(&self, name: Name) -> u64 {
        self.index.bytes(name)
    }

    /// Whether ranks have a store.
    pub const fn has_store(&self) -> bool {
        self.index.has_store()
    }
}
