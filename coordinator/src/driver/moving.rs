//! Bringing the state of a session from one tier to another, as its owner asks.

use super::moves::{Forgetting, Move, MoveError, Moved, Moving, Waiter};
use super::state::State;
use crate::snapshots::{Ended, Fate, Want};

impl State {
    pub(super) fn begin_move(&mut self, moving: Moving) {
        let Moving { chain, what, done } = moving;
        let want = match what {
            Move::Suspend => Want::Store,
            Move::Resume => Want::Fetch,
            Move::Forget { shared } => {
                let position = self.scheduler.kept_of(&chain).map_or(0, |one| one.position);
                let names = self.scheduler.forget_snapshots(&chain, shared);
                let bytes = names
                    .iter()
                    .map(|name| self.scheduler.snapshot_bytes(*name));
                let forgetting = Forgetting {
                    moved: Moved {
                        position,
                        bytes: bytes.sum(),
                    },
                    names: names.into_iter().collect(),
                    error: None,
                    done,
                };
                self.forgetting.extend(forgetting.end());
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
        for erased in self.scheduler.erased() {
            if let Some(error) = &erased.error {
                let snapshot = erased.name;
                tracing::warn!(?snapshot, error, "a kept state was not removed");
            }
            self.forgetting
                .iter_mut()
                .for_each(|waiting| waiting.note(&erased));
        }
        let waiting = std::mem::take(&mut self.forgetting);
        self.forgetting = waiting.into_iter().filter_map(Forgetting::end).collect();
    }
}
