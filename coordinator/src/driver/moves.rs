//! Bringing the state of a session from one tier to another, as its owner asks.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::state::State;
use crate::scheduler::Scheduler;
use crate::snapshots::{Chain, Ended, Fate, Name, Want};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// The state is in the store, and no longer in host memory.
    Suspend,
    /// The state is in host memory.
    Resume,
    /// No tier has any state of the chain.
    Forget,
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

/// Who waits for the end of a move.
#[derive(Debug)]
pub(super) struct Waiter {
    name: Name,
    want: Want,
    moved: Moved,
    what: Move,
    done: oneshot::Sender<Result<Moved, MoveError>>,
}

impl State {
    pub(super) fn begin_move(&mut self, moving: Moving) {
        let Moving { chain, what, done } = moving;
        let want = match what {
            Move::Suspend => Want::Store,
            Move::Resume => Want::Fetch,
            Move::Forget => {
                let forgotten = Moved {
                    position: self.scheduler.kept_of(&chain).map_or(0, |one| one.position),
                    bytes: self.scheduler.forget_snapshots(&chain),
                };
                // Whoever asked may have gone; the work is done all the same.
                let _ = done.send(Ok(forgotten));
                return;
            }
        };
        let Some(found) = self.scheduler.kept_of(&chain) else {
            let _ = done.send(Err(MoveError::NotKept));
            return;
        };
        let waiter = Waiter {
            name: found.name,
            want,
            moved: Moved {
                position: found.position,
                bytes: self.scheduler.snapshot_bytes(found.name),
            },
            what,
            done,
        };
        if self.scheduler.has_snapshot(found.name, want) {
            // It leaves memory now, if it was there as well.
            let is_there = self.scheduler.has_snapshot(found.name, Want::Fetch);
            let bytes = if what == Move::Suspend && is_there {
                waiter.moved.bytes
            } else {
                0
            };
            let waiter = Waiter {
                moved: Moved {
                    bytes,
                    ..waiter.moved
                },
                ..waiter
            };
            waiter.end(&mut self.scheduler, Ok(()));
        } else if self.scheduler.move_snapshot(found.name, want) {
            self.moving.push(waiter);
        } else {
            let error = if self.scheduler.has_store() {
                MoveError::NoRoom
            } else {
                MoveError::NoStore
            };
            waiter.end(&mut self.scheduler, Err(error));
        }
    }

    /// Tells those whose moves have ended.
    pub(super) fn end_moves(&mut self) {
        for Ended { name, want, fate } in self.scheduler.moved() {
            if let Fate::Failed(error) = &fate {
                tracing::warn!(snapshot = ?name, ?want, error, "a kept state was not moved");
            }
            let is_over = |waiter: &mut Waiter| waiter.name == name && waiter.want == want;
            for waiter in self.moving.extract_if(.., is_over).collect::<Vec<_>>() {
                let result = match &fate {
                    Fate::Done => Ok(()),
                    Fate::Failed(error) => Err(MoveError::Failed(error.clone())),
                };
                waiter.end(&mut self.scheduler, result);
            }
        }
    }
}

impl Waiter {
    fn end(self, scheduler: &mut Scheduler, result: Result<(), MoveError>) {
        if result.is_ok() && self.what == Move::Suspend {
            scheduler.leave_memory(self.name);
        }
        // Whoever asked may have gone.
        let _ = self.done.send(result.map(|()| self.moved));
    }
}
