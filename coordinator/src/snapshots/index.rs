//! Which snapshots are kept, in which tier, and which go when room is short.
//!
//! All ranks hold their parts of the same snapshots, so one index stands for all of them: its bytes
//! are those of the fullest rank. Ranks do what plans say, in order. A snapshot counts as there
//! only once every rank has said so.

mod erase;
mod erased;
mod room;

use std::collections::{HashMap, HashSet};

use palimpsest_proto::internal::v1::snapshot_report::Event;
use palimpsest_proto::internal::v1::{SnapshotOrders, SnapshotReport};

pub use self::erased::Erased;
use self::erased::Erasing;
use super::chain::{Chain, Name};
use super::entry::{Clocks, Entry, Parent, Place};
use super::orders::{Ended, Fate, Orders, Want};

/// States that are kept of one text and used by nobody else, the newest among them.
const STATES_OF_A_TEXT: usize = 4;

/// Bytes of each tier on a rank; 0: there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Host memory.
    pub memory: u64,
    /// The store that outlives the ranks.
    pub store: u64,
}

/// A snapshot that a step kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Its name.
    pub name: Name,
    /// Tokens it is the state of.
    pub position: u64,
    /// Bytes on the fullest rank; 0: a rank did not keep it.
    pub bytes: u64,
    /// What was kept before it of the same sequence, with its position.
    pub after: Option<Found>,
}

/// How much is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Snapshots in host memory.
    pub in_memory: u64,
    /// Their bytes on the fullest rank.
    pub memory_bytes: u64,
    /// Snapshots in the store.
    pub in_store: u64,
    /// Their bytes on the fullest rank.
    pub store_bytes: u64,
}

/// The snapshots of a group.
#[derive(Debug)]
pub struct Index {
    room: Room,
    ranks: u32,
    entries: HashMap<Name, Entry>,
    held: Held,
    clocks: Clocks,
    orders: Orders,
    /// What ranks do in the background, and how it ended where that is known.
    pending: usize,
    ended: Vec<Ended>,
    /// Snapshots under way that a rank has not tried to read.
    untried: HashSet<Name>,
    /// What is to be in no tier, and to be offered to nobody until then.
    doomed: HashSet<Name>,
    /// What ranks are removing from the store.
    erasing: HashMap<Name, Erasing>,
    /// What was doomed and is gone, or could not be removed, since the last look.
    erased: Vec<Erased>,
    listing: Listing,
    /// Plans so far.
    plan: u64,
    /// Bytes in host memory that steps under way may keep.
    reserved: u64,
}

/// A prefix whose state is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its tokens.
    pub position: u64,
    /// Its snapshot.
    pub name: Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    Memory,
    Store,
}

impl Index {
    /// An empty index over `ranks` ranks.
    pub fn new(room: Room, ranks: u32) -> Self {
        Self {
            room,
            ranks: ranks.max(1),
            entries: HashMap::new(),
            held: Held::default(),
            clocks: Clocks::default(),
            orders: Orders::of_epoch(),
            pending: 0,
            ended: Vec::new(),
            untried: HashSet::new(),
            doomed: HashSet::new(),
            erasing: HashMap::new(),
            erased: Vec::new(),
            listing: Listing::Asked,
            plan: 0,
            reserved: 0,
        }
    }

    /// Whether anything is kept at all.
    pub const fn is_on(&self) -> bool {
        self.room.memory > 0
    }

    /// Whether there is a store.
    pub const fn has_store(&self) -> bool {
        self.is_on() && self.room.store > 0
    }

    /// Another group takes over: its ranks tell in their first step what they have. What was under
    /// way has failed.
    pub fn begin_epoch(&mut self) {
        for (&name, entry) in &self.entries {
            let tiers = [(&entry.store, Want::Store), (&entry.memory, Want::Fetch)];
            for (_, want) in tiers.into_iter().filter(|(place, _)| place.is_coming()) {
                let fate = Fate::Failed("the worker group was lost".into());
                self.ended.push(Ended { name, want, fate });
            }
        }
        self.entries.clear();
        self.erasing.clear();
        self.listing = Listing::Asked;
        self.held = Held::default();
        self.orders = Orders::of_epoch();
        self.pending = 0;
        self.reserved = 0;
    }

    /// Orders for the next plan, if there are any.
    pub fn orders(&mut self) -> Option<SnapshotOrders> {
        // Not what a sequence begins with in this very plan.
        self.release_doomed();
        self.plan += 1;
        self.is_on().then(|| self.orders.take()).flatten()
    }

    /// Whether ranks do something in the background whose end is awaited.
    pub fn has_pending(&self) -> bool {
        self.pending > 0 || !self.doomed.is_empty()
    }

    /// How much is kept.
    pub const fn held(&self) -> Held {
        self.held
    }

    /// What has ended since the last call.
    pub fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    /// The longest prefix, of at most `most` tokens, whose state is in host memory.
    pub fn in_memory(&self, chain: &Chain, most: u64) -> Option<Found> {
        self.longest(chain, most, |entry| &entry.memory)
    }

    /// The longest prefix, of at most `most` tokens, whose state is in the store.
    pub fn in_store(&self, chain: &Chain, most: u64) -> Option<Found> {
        self.longest(chain, most, |entry| match entry.is_unreadable {
            true => &Place::Absent,
            false => &entry.store,
        })
    }

    fn longest(&self, chain: &Chain, most: u64, place: fn(&Entry) -> &Place) -> Option<Found> {
        chain
            .boundaries(most)
            .find(|(_, name)| !self.doomed.contains(name) && self.has(*name, place))
            .map(|(position, name)| Found { position, name })
    }

    fn has(&self, name: Name, place: fn(&Entry) -> &Place) -> bool {
        let entry = self.entries.get(&name);
        entry.is_some_and(|entry| *place(entry) == Place::Here)
    }

    /// Whether ranks are bringing it into host memory.
    pub fn is_coming(&self, name: Name) -> bool {
        self.is_under_way(name, Want::Fetch)
    }

    /// Whether ranks are bringing it where it is wanted.
    pub fn is_under_way(&self, name: Name, want: Want) -> bool {
        self.place(name, want).is_some_and(Place::is_coming)
    }

    /// Whether it is where it is wanted.
    pub fn is_where(&self, name: Name, want: Want) -> bool {
        self.place(name, want) == Some(&Place::Here)
    }

    /// Its bytes on the fullest rank; 0 if it is not kept.
    pub fn bytes(&self, name: Name) -> u64 {
        self.entries.get(&name).map_or(0, |entry| entry.bytes)
    }

    fn place(&self, name: Name, want: Want) -> Option<&Place> {
        let entry = self.entries.get(&name)?;
        Some(match want {
            Want::Store => &entry.store,
            Want::Fetch => &entry.memory,
        })
    }

    /// A sequence is to begin with it: it stays until [`Self::begun`].
    pub fn begin_with(&mut self, found: Found) {
        let clocks = self.clocks;
        if let Some(entry) = self.entries.get_mut(&found.name) {
            entry.position = Some(found.position);
            entry.uses += 1;
            entry.since = clocks;
            entry.awaited_by += 1;
        }
    }

    /// A sequence begins with it in the plan that is being made, or never will.
    pub fn begun(&mut self, name: Name) {
        let plan = self.plan;
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.awaited_by = entry.awaited_by.saturating_sub(1);
            entry.needed_in = plan + 1;
        }
    }

    /// Makes room in host memory for a snapshot of at most `bytes` that the plan being made will
    /// keep as `name`. Returns whether it is to be kept.
    pub fn make_room(&mut self, name: Name, bytes: u64) -> bool {
        if !self.is_on() || bytes > self.room.memory {
            return false;
        }
        if self.has(name, |entry| &entry.memory) || self.is_coming(name) {
            return false;
        }
        let fits = self.evict_from_memory(bytes + self.reserved);
        if fits {
            self.reserved += bytes;
        }
        fits
    }

    /// A step kept a snapshot, or was to.
    pub fn kept(&mut self, keep: Keep) {
        if keep.bytes == 0 {
            // Some ranks may have it.
            self.orders.drop(keep.name);
            self.leave_memory(keep.name);
            return;
        }
        let clocks = self.clocks;
        let entry = self
            .entries
            .entry(keep.name)
            .or_insert_with(|| Entry::new(keep.bytes));
        entry.position = Some(keep.position);
        entry.parent = keep
            .after
            .map(|Found { position, name }| Parent { name, position });
        entry.uses += 1;
        entry.since = clocks;
        self.set(keep.name, Tier::Memory, Place::Here);
        // Two sequences may keep the same state in one step, and room may have been short between.
        self.orders.spare(keep.name);
        self.thin_out(keep.name);
        // What was reserved was an estimate.
        self.evict_from_memory(0);
    }

    /// Bounds what one text keeps: of the states before `newest` that no two sequences have begun
    /// with, the one goes that costs least to read again once there are too many. So a conversation
    /// takes as much room after a hundred turns as after a few, and the states that stay lie apart.
    fn thin_out(&mut self, newest: Name) {
        let mut own = Vec::new();
        let mut next = self.entries.get(&newest).and_then(|entry| entry.parent);
        while let Some(Parent { name, position }) = next {
            let Some(entry) = self.entries.get(&name) else {
                break;
            };
            if entry.uses <= 2 && entry.is_free(self.plan) {
                let from = entry.parent.map_or(0, |parent| parent.position);
                own.push((position.saturating_sub(from), name));
            }
            next = entry.parent;
        }
        if own.len() >= STATES_OF_A_TEXT
            && let Some((_, name)) = own.into_iter().min()
        {
            self.forget(name);
        }
    }

    /// Forgets the copy in host memory of a snapshot that a later one of the same sequence
    /// replaces, unless others began with it.
    pub fn replace(&mut self, name: Name) {
        let plan = self.plan;
        let is_free = |entry: &Entry| entry.uses <= 1 && entry.is_free(plan);
        if self.entries.get(&name).is_some_and(is_free) {
            self.leave_memory(name);
        }
    }

    /// Orders something that ranks do in the background. Returns whether it was to be ordered: it
    /// is not there already, nor under way, and it can be.
    pub fn want(&mut self, name: Name, want: Want) -> bool {
        let has_store = self.has_store();
        let Some(entry) = self.entries.get(&name) else {
            return false;
        };
        let bytes = entry.bytes;
        let (from, to, tier) = match want {
            Want::Store => (&entry.memory, &entry.store, Tier::Store),
            Want::Fetch => (&entry.store, &entry.memory, Tier::Memory),
        };
        let is_missing = match want {
            Want::Store => *to == Place::Absent || entry.is_unreadable,
            Want::Fetch => *to == Place::Absent && !entry.is_unreadable,
        };
        let is_doomed = self.doomed.contains(&name);
        if *from != Place::Here || !is_missing || to.is_coming() || !has_store || is_doomed {
            return false;
        }
        let fits = match want {
            Want::Store => self.evict_from_store(bytes),
            Want::Fetch => self.evict_from_memory(bytes + self.reserved),
        };
        if fits {
            self.set(name, tier, Place::coming());
            self.pending += 1;
            self.orders.want(name, want);
        }
        fits
    }

    /// What the ranks report with the output of a step.
    pub fn report(&mut self, reports: &[SnapshotReport]) {
        self.reserved = 0;
        let mut listed: HashMap<(Name, Event), Listed> = HashMap::new();
        for report in reports {
            let Some(name) = Name::read(&report.name) else {
                continue;
            };
            match report.event() {
                event @ (Event::InMemory | Event::InStore) => {
                    let listed = listed.entry((name, event)).or_default();
                    listed.ranks += 1;
                    listed.bytes = listed.bytes.max(report.bytes);
                }
                Event::Stored => self.advance(name, Want::Store, report),
                Event::Fetched => self.advance(name, Want::Fetch, report),
                Event::Erased => self.erased_on_a_rank(name, report),
                Event::NotListed | Event::Unspecified => {}
            }
        }
        self.listing = match self.listing {
            _ if reports.iter().any(|one| one.event() == Event::NotListed) => Listing::Failed,
            Listing::Asked => Listing::Told,
            known => known,
        };
        for ((name, event), Listed { ranks, bytes }) in listed {
            self.list(name, event, ranks == self.ranks, bytes);
        }
        self.end_doomed();
        self.evict_from_memory(0);
        self.evict_from_store(0);
    }

    /// One that was there before this coordinator, or before this epoch.
    fn list(&mut self, name: Name, event: Event, on_all: bool, bytes: u64) {
        if !on_all {
            // What only some ranks have nobody can begin with. Of a rank that could not look into
            // its store nobody knows.
            if event == Event::InMemory {
                self.orders.drop(name);
            } else if self.listing == Listing::Told {
                self.order_erase(name);
            }
            return;
        }
        let entry = self
            .entries
            .entry(name)
            .or_insert_with(|| Entry::new(bytes));
        entry.uses = entry.uses.max(1);
        let (tier, place) = match event {
            Event::InMemory => (Tier::Memory, &entry.memory),
            _ => (Tier::Store, &entry.store),
        };
        if *place == Place::Absent {
            self.set(name, tier, Place::Here);
        }
    }

    /// A rank has done its part of something, or could not. It has ended when all have answered.
    fn advance(&mut self, name: Name, want: Want, report: &SnapshotReport) {
        let ranks = self.ranks;
        let entry = self.entries.get_mut(&name);
        let place = entry.map(|entry| match want {
            Want::Store => &mut entry.store,
            Want::Fetch => &mut entry.memory,
        });
        let Some(Place::Coming { done, error }) = place else {
            // Of an epoch that is over, or of what was dropped meanwhile: it is in nobody's way.
            if want == Want::Fetch && !self.is_where(name, Want::Fetch) {
                self.orders.drop(name);
            }
            return;
        };
        *done += 1;
        if error.is_none() && !report.error.is_empty() {
            *error = Some(report.error.clone());
            // The first report of a rank that could not says whether it had tried.
            if report.waited {
                self.untried.insert(name);
            }
        }
        if *done < ranks {
            return;
        }
        let fate = error.take().map_or(Fate::Done, Fate::Failed);
        self.end(name, want, fate);
    }

    fn end(&mut self, name: Name, want: Want, fate: Fate) {
        self.pending -= 1;
        let is_done = fate == Fate::Done;
        let is_untried = self.untried.remove(&name);
        let to = if is_done { Place::Here } else { Place::Absent };
        let tier = match want {
            Want::Store => Tier::Store,
            Want::Fetch => Tier::Memory,
        };
        self.set(name, tier, to);
        if let Some(entry) = self.entries.get_mut(&name) {
            match want {
                Want::Store => entry.is_unreadable = false,
                Want::Fetch => entry.is_unreadable = !is_done && !is_untried,
            }
        }
        match want {
            // Some ranks may have their part.
            Want::Fetch if !is_done => self.orders.drop(name),
            Want::Store if !is_done => self.order_erase(name),
            _ => {}
        }
        self.ended.push(Ended { name, want, fate });
        self.forget_if_gone(name);
    }

    /// Whether a state of so many bytes could be kept in memory at all.
    pub const fn could_keep(&self, bytes: u64) -> bool {
        self.is_on() && bytes <= self.room.memory
    }

    /// Forgets a snapshot in every tier.
    pub fn forget(&mut self, name: Name) {
        self.leave_memory(name);
        self.leave_store(name);
    }

    /// Forgets the copy in host memory, unless a sequence is to begin with it.
    pub fn release(&mut self, name: Name) {
        let plan = self.plan;
        let is_free = |entry: &Entry| entry.is_free(plan);
        if self.entries.get(&name).is_some_and(is_free) {
            self.leave_memory(name);
        }
    }

    fn leave_memory(&mut self, name: Name) {
        if let Some(entry) = self.entries.get(&name)
            && entry.memory == Place::Here
        {
            self.orders.drop(name);
            self.set(name, Tier::Memory, Place::Absent);
            self.forget_if_gone(name);
        }
    }

    /// Forgets a snapshot in the store.
    pub fn leave_store(&mut self, name: Name) {
        if let Some(entry) = self.entries.get(&name)
            && entry.store == Place::Here
        {
            self.order_erase(name);
            self.set(name, Tier::Store, Place::Absent);
            self.forget_if_gone(name);
        }
    }

    /// Takes an entry out that no tier has. Those that came after it come after its parent now.
    fn forget_if_gone(&mut self, name: Name) {
        if self.entries.get(&name).is_none_or(|entry| !entry.is_gone()) {
            return;
        }
        let Some(gone) = self.entries.remove(&name) else {
            return;
        };
        for entry in self.entries.values_mut() {
            if entry.parent.is_some_and(|parent| parent.name == name) {
                entry.parent = gone.parent;
            }
        }
    }

    /// Changes where a snapshot is, and what that takes.
    fn set(&mut self, name: Name, tier: Tier, to: Place) {
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        let held = &mut self.held;
        let (place, count, sum) = match tier {
            Tier::Memory => (
                &mut entry.memory,
                &mut held.in_memory,
                &mut held.memory_bytes,
            ),
            Tier::Store => (&mut entry.store, &mut held.in_store, &mut held.store_bytes),
        };
        if *place != Place::Absent {
            *count -= 1;
            *sum -= entry.bytes;
        }
        if to != Place::Absent {
            *count += 1;
            *sum += entry.bytes;
        }
        *place = to;
    }
}

/// Whether it is known what the ranks of an epoch have. They tell once, in their first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listing {
    Asked,
    Told,
    /// A rank could not look into its store. Until the next epoch nothing counts as gone.
    Failed,
}

/// What a listing says of one snapshot in one tier.
#[derive(Debug, Default)]
struct Listed {
    ranks: u32,
    bytes: u64,
}

#[cfg(test)]
mod tests;
