//! One snapshot that is kept somewhere, and what it is worth.

use super::chain::Name;

/// Whether a tier has a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Place {
    /// No.
    #[default]
    Absent,
    /// Ranks bring it there: so many have answered, and what went wrong on one of them.
    Coming { done: u32, error: Option<String> },
    /// On every rank.
    Here,
}

impl Place {
    /// Ranks are told to bring it there.
    pub(super) const fn coming() -> Self {
        Self::Coming {
            done: 0,
            error: None,
        }
    }

    /// Whether ranks are bringing it there.
    pub(super) const fn is_coming(&self) -> bool {
        matches!(self, Self::Coming { .. })
    }
}

/// The snapshot that was kept before this one in the same chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) name: Name,
    pub(super) position: u64,
}

/// A snapshot.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Tokens it is the state of; unknown until a prompt is found to begin with them.
    pub(super) position: Option<u64>,
    pub(super) parent: Option<Parent>,
    /// Bytes on the fullest rank.
    pub(super) bytes: u64,
    pub(super) memory: Place,
    pub(super) store: Place,
    /// Sequences that began with it, and the one that left it.
    pub(super) uses: u64,
    /// The clock of each tier when it was last used: what the entries that were evicted before
    /// were worth.
    pub(super) since: Clocks,
    /// Sequences that are to begin with it and have not been in a plan yet.
    pub(super) awaited_by: u64,
    /// The last plan that needs it.
    pub(super) needed_in: u64,
    /// A rank could not read it from the store. Nobody tries again in this epoch: the store may
    /// only have been slow, so it stays there until it is written anew or makes room.
    pub(super) is_unreadable: bool,
}

/// One clock for each tier.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Clocks {
    pub(super) memory: f64,
    pub(super) store: f64,
}

/// Tokens of a snapshot that was found in a tier, until a prompt tells its position.
const UNKNOWN_TOKENS: u64 = 4096;

impl Entry {
    /// One that is nowhere yet.
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            position: None,
            parent: None,
            bytes,
            memory: Place::Absent,
            store: Place::Absent,
            uses: 0,
            since: Clocks::default(),
            awaited_by: 0,
            needed_in: 0,
            is_unreadable: false,
        }
    }

    /// What a tier loses with it: the tokens that would be read again, per byte, as often as it
    /// was used. The clock at its last use makes those grow old that are used no more.
    ///
    /// Source: GreedyDual-Size with frequency (Cao and Irani, USITS 1997; Cherkasova, HPL-98-69).
    pub(super) fn value(&self, since: f64) -> f64 {
        if self.is_unreadable {
            return since;
        }
        let from = self.parent.map_or(0, |parent| parent.position);
        let tokens = match self.position {
            Some(at) => at.saturating_sub(from).max(1),
            None => UNKNOWN_TOKENS,
        };
        since + self.uses as f64 * tokens as f64 / self.bytes.max(1) as f64
    }

    /// Whether no sequence begins with it in the plan that comes after `plans` others, or later.
    pub(super) const fn is_free(&self, plans: u64) -> bool {
        self.awaited_by == 0 && self.needed_in <= plans
    }

    /// Whether no tier has it, and none will.
    pub(super) fn is_gone(&self) -> bool {
        self.memory == Place::Absent && self.store == Place::Absent
    }
}
