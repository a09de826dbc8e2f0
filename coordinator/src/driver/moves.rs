//! What may be asked of the tiers in which states are kept, and who waits for it.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::scheduler::Scheduler;
use crate::snapshots::{Chain, Erased, Name, Want};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// The state is in the store, and no longer in host memory.
    Suspend,
    /// The state is in host memory.
    Resume,
    /// No tier has any state of the chain behind these tokens, which others have in common with
    /// it.
    Forget {
        /// Tokens.
        shared: u64,
    },
}

/// Why a state was not moved. Nothing is lost: its tokens can be read again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// No tier has any of its states.
    #[error("no state of it is kept; it will be read again when it is next used")]
    NotKept,
    /// There is no store to bring it to.
    #[error("there is no store for it: start with --snapshot-store")]
    NoStore,
    /// There is no room where it is wanted.
    #[error("there is no room for it: give --snapshot-memory-mib or --snapshot-store-mib more")]
    NoRoom,
    /// A rank could not.
    #[error("it could not be moved: {0}")]
    Failed(String),
    /// The service ends.
    #[error("the service is shutting down")]
    Ended,
}

/// What was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// The tokens that it is the state of.
    pub position: u64,
    /// Its bytes on the fullest rank; 0 if it was where it is wanted.
    pub bytes: u64,
}

/// A question to the driver.
#[derive(Debug)]
pub(super) struct Moving {
    pub(super) chain: Arc<Chain>,
    pub(super) what: Move,
    /// Told, or dropped, when it is done.
    pub(super) done: oneshot::Sender<Result<Moved, MoveError>>,
}

/// Who waits until states have left every tier.
#[derive(Debug)]
pub(super) struct Forgetting {
    /// Those that have not.
    pub(super) names: HashSet<Name>,
    /// Why one of them could not.
    pub(super) error: Option<String>,
    pub(super) moved: Moved,
    pub(super) done: oneshot::Sender<Result<Moved, MoveError>>,
}

impl Forgetting {
    /// One of the states has left, or could not.
    pub(super) fn note(&mut self, erased: &Erased) {
        if self.names.remove(&erased.name) && self.error.is_none() {
            self.error.clone_from(&erased.error);
        }
    }

    /// Tells who waits, if there is nothing left to wait for. Returns who still waits.
    pub(super) fn end(self) -> Option<Self> {
        if !self.names.is_empty() {
            // Whoever asked may have gone; the work is done all the same.
            return Some(self).filter(|one| !one.done.is_closed());
        }
        let result = match self.error {
            Some(error) => Err(MoveError::Failed(error)),
            None => Ok(self.moved),
        };
        let _ = self.done.send(result);
        None
    }
}

/// Who waits for the end of a move.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) name: Name,
    pub(super) want: Want,
    pub(super) moved: Moved,
    pub(super) what: Move,
    pub(super) done: oneshot::Sender<Result<Moved, MoveError>>,
}

impl Waiter {
    /// Tells who waits how it ended.
    pub(super) fn end(self, scheduler: &mut Scheduler, result: Result<(), MoveError>) {
        if result.is_ok() && self.what == Move::Suspend {
            scheduler.leave_memory(self.name);
        }
        // Whoever asked may have gone.
        let _ = self.done.send(result.map(|()| self.moved));
    }
}
