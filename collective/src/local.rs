//! Ranks that are threads of one process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::checks::{add_bytes, check_gather, check_root};
use crate::communicator::{Collective, CollectiveError};

/// Makes the communicators of a group of threads.
pub struct LocalGroup;

/// A rank's end of a [`LocalGroup`]. Dropping it is the rank's death: the others' calls fail.
pub struct LocalCollective {
    rank: usize,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// What each rank brought, in two generations: a rank that is one call ahead does not disturb
    /// those still reading.
    brought: [Vec<RwLock<Vec<u8>>>; 2],
}

struct State {
    /// Calls that all ranks have come to.
    round: u64,
    arrived: Vec<bool>,
    call: Option<Call>,
    failure: Option<CollectiveError>,
}

/// What all ranks must agree on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Call {
    operation: &'static str,
    bytes: usize,
    root: usize,
}

impl LocalGroup {
    /// One end for each of `world_size` ranks, in rank order.
    #[expect(clippy::new_ret_no_self, reason = "a group is nothing but its ends")]
    pub fn new(world_size: usize) -> Vec<LocalCollective> {
        let brought = || (0..world_size).map(|_| RwLock::default()).collect();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                round: 0,
                arrived: vec![false; world_size],
                call: None,
                failure: None,
            }),
            changed: Condvar::new(),
            brought: [brought(), brought()],
        });
        (0..world_size)
            .map(|rank| LocalCollective {
                rank,
                shared: shared.clone(),
            })
            .collect()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a single assignment: a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: CollectiveError) -> CollectiveError {
        let mut state = self.state();
        let failure = state.failure.get_or_insert(error).clone();
        drop(state);
        self.changed.notify_all();
        failure
    }
}

impl LocalCollective {
    /// Brings `mine` and waits until all ranks have. Returns the generation in which to read.
    fn meet(
        &self,
        call: Call,
        mine: &[u8],
        deadline: Instant,
    ) -> Result<&[RwLock<Vec<u8>>], CollectiveError> {
        let shared = &*self.shared;
        let round = shared.state().round;
        let brought = &shared.brought[(round % 2) as usize];
        {
            let mut own = brought[self.rank]
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            own.clear();
            own.extend_from_slice(mine);
        }
        let mut state = shared.state();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        let first = *state.call.get_or_insert(call);
        if first != call {
            drop(state);
            let what = format!("rank {} called {call:?}, another {first:?}", self.rank);
            return Err(shared.fail(CollectiveError::Mismatch(what)));
        }
        state.arrived[self.rank] = true;
        if state.arrived.iter().all(|&arrived| arrived) {
            state.arrived.fill(false);
            state.call = None;
            state.round += 1;
            drop(state);
            shared.changed.notify_all();
            return Ok(brought);
        }
        while state.round == round && state.failure.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                let missing: Vec<_> = state
                    .arrived
                    .iter()
                    .enumerate()
                    .filter(|(_, here)| !**here)
                    .map(|(r, _)| r.to_string())
                    .collect();
                drop(state);
                let missing = format!("rank {}", missing.join(", "));
                return Err(shared.fail(CollectiveError::Deadline {
                    operation: call.operation,
                    missing,
                }));
            }
            state = shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        match &state.failure {
            // The call was complete before something else failed.
            _ if state.round != round => Ok(brought),
            Some(failure) => Err(failure.clone()),
            None => Ok(brought),
        }
    }

    /// Adds what all ranks brought, in rank order, so that every rank has the same bits.
    fn reduce<T: bytemuck::Pod>(
        &self,
        call: Call,
        values: &mut [T],
        deadline: Instant,
        add: impl Fn(T, T) -> T,
    ) -> Result<(), CollectiveError> {
        let brought = self.meet(call, bytemuck::cast_slice(values), deadline)?;
        for (rank, part) in brought.iter().enumerate() {
            let part = part.read().unwrap_or_else(PoisonError::into_inner);
            if rank == 0 {
                bytemuck::cast_slice_mut(values).copy_from_slice(&part);
            } else {
                add_bytes(values, &part, &add);
            }
        }
        Ok(())
    }
}

impl Collective for LocalCollective {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.shared.brought[0].len()
    }

    fn name(&self) -> &'static str {
        "local"
    }

    fn all_reduce_sum(&self, values: &mut [f32], deadline: Instant) -> Result<(), CollectiveError> {
        let call = Call {
            operation: "all_reduce_sum",
            bytes: size_of_val(values),
            root: 0,
        };
        self.reduce(call, values, deadline, |sum, part| sum + part)
    }

    fn all_reduce_counts(
        &self,
        counts: &mut [u64],
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        let call = Call {
            operation: "all_reduce_counts",
            bytes: size_of_val(counts),
            root: 0,
        };
        self.reduce(call, counts, deadline, |sum: u64, part| {
            sum.wrapping_add(part)
        })
    }

    fn all_gather(
        &self,
        mine: &[u8],
        all: &mut [u8],
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        check_gather(self.world_size(), mine, all)?;
        let call = Call {
            operation: "all_gather",
            bytes: mine.len(),
            root: 0,
        };
        let brought = self.meet(call, mine, deadline)?;
        for (rank, part) in brought.iter().enumerate() {
            let part = part.read().unwrap_or_else(PoisonError::into_inner);
            all[rank * mine.len()..(rank + 1) * mine.len()].copy_from_slice(&part);
        }
        Ok(())
    }

    fn broadcast(
        &self,
        bytes: &mut [u8],
        root: usize,
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        check_root(self.world_size(), root)?;
        let call = Call {
            operation: "broadcast",
            bytes: bytes.len(),
            root,
        };
        let mine: &[u8] = if self.rank == root { bytes } else { &[] };
        let brought = self.meet(call, mine, deadline)?;
        bytes.copy_from_slice(&brought[root].read().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    fn abort(&self) {
        self.shared.fail(CollectiveError::Aborted);
    }
}

impl Drop for LocalCollective {
    fn drop(&mut self) {
        self.shared
            .fail(CollectiveError::PeerGone(format!("rank {}", self.rank)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[test]
    fn conforms() {
        conformance::run(
            &|world_size| {
                LocalGroup::new(world_size)
                    .into_iter()
                    .map(|end| Arc::new(end) as Arc<dyn Collective>)
                    .collect()
            },
            conformance::Sums::RankOrder,
        );
    }

    #[test]
    fn a_rank_that_is_missed_is_named() {
        let group = LocalGroup::new(3);
        let deadline = Instant::now() + Duration::from_millis(20);
        let error = group[1].all_reduce_sum(&mut [1.0], deadline).unwrap_err();
        assert_eq!(
            error.to_string(),
            "all_reduce_sum ran past its deadline; missing: rank 0, 2"
        );
        assert_eq!(
            group[0].all_reduce_sum(&mut [1.0], deadline),
            Err(error),
            "a failure is sticky"
        );
    }

    #[test]
    fn different_calls_are_a_mismatch_on_all_ranks() {
        let group = LocalGroup::new(2);
        let deadline = Instant::now() + Duration::from_secs(5);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| group[1].all_reduce_sum(&mut [1.0, 2.0], deadline));
            let error = group[0].all_reduce_sum(&mut [1.0], deadline);
            assert!(
                matches!(error, Err(CollectiveError::Mismatch(_))),
                "{error:?}"
            );
            assert_eq!(other.join().unwrap(), error);
        });
    }
}
