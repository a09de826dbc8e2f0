//! Who shares a step with whom.

use std::collections::BTreeMap;

use super::sequence::{Priority, Running};
use crate::ids::SequenceId;

/// Who may be in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// All that need not be alone.
    Together,
    /// One sequence.
    Alone(SequenceId),
}

impl Turn {
    /// Whether it is this sequence's turn.
    pub(super) fn has(self, running: &Running, max_replays: u32) -> bool {
        match self {
            Self::Together => !stands_alone(running, max_replays),
            Self::Alone(id) => running.arrival.id == id,
        }
    }
}

/// Whose turn it was.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The last one that was alone.
    last_alone: Option<SequenceId>,
    was_alone: bool,
}

impl Turns {
    /// Whose turn is next. The warm-up comes first: a group that does not pass it serves nobody.
    /// Then the steps of all others together alternate with those of sequences that must be alone,
    /// one after the other.
    pub(super) fn next(
        &mut self,
        running: &BTreeMap<SequenceId, Running>,
        max_replays: u32,
    ) -> Turn {
        let ready = || running.values().filter(|running| !running.paused);
        if let Some(first) = ready().find(|one| one.arrival.priority == Priority::WARM_UP) {
            return Turn::Alone(first.arrival.id);
        }
        let alone = || {
            ready()
                .filter(|one| stands_alone(one, max_replays))
                .map(|one| one.arrival.id)
        };
        let next = alone()
            .find(|&id| self.last_alone.is_none_or(|last| id > last))
            .or_else(|| alone().next());
        let Some(next) = next else {
            return Turn::Together;
        };
        let has_company = ready().any(|one| !stands_alone(one, max_replays));
        self.was_alone = !(self.was_alone && has_company);
        if !self.was_alone {
            return Turn::Together;
        }
        self.last_alone = Some(next);
        Turn::Alone(next)
    }
}

fn stands_alone(running: &Running, max_replays: u32) -> bool {
    running.arrival.priority == Priority::WARM_UP || running.suspicion.stands_alone(max_replays)
}
