//! Ranks that are processes on GPUs: NCCL, as a thin communicator that never blocks.
//!
//! Every call of the library returns at once and is polled until its deadline, because a
//! communicator that waits inside NCCL cannot be aborted safely, and NCCL does not notice by itself
//! that a rank of the same host has died. Who does notice, the coordinator, makes the rank join the
//! next epoch, which aborts this communicator from another thread.
//!
//! Sums are NCCL's: taken in an order of its own, the same bits on all ranks. Those of a step's
//! layers are put on the engine's own stream and into its graphs, and nothing of them goes over the
//! host (`sums.rs`). What the host has or asks for, gathers of logits and sums of counts, is copied
//! to a buffer on the device and back.
//!
//! A communicator is given back by a thread of its own: NCCL waits there until no captured graph
//! names it, and the engine, which drops those graphs, must not wait for that in turn.
//!
//! The library is reached through [`Api`], whose in-memory twin has the same non-blocking manners;
//! the conformance suite runs over that. On a GPU this has not been run yet.

pub mod api;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
#[expect(
    unsafe_code,
    reason = "FFI: symbols of a library that is loaded when it is asked for"
)]
pub mod library;
mod sums;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use palimpsest_kernels::sums::DeviceSums;

use self::api::{Api, ApiError, Call, Element, Operation, UniqueId};
use crate::checks::{check_gather, check_root};
use crate::communicator::{Collective, CollectiveError};
use crate::place::Place;
use crate::store::Store;

const NAME: &str = "nccl";
/// Polls without a pause: a sum over NVLink takes some ten microseconds.
const EAGER_POLLS: u32 = 2000;
/// Pause between later polls.
const PAUSE: Duration = Duration::from_micros(50);

/// A rank's end of a group of processes.
pub struct NcclCollective<A: Api> {
    place: Place,
    api: Arc<A>,
    /// Held for single calls of the library, never while waiting: NCCL wants one thread at a time
    /// in a communicator.
    state: Mutex<State<A>>,
    /// Set before the lock is asked for, so that a call under way ends.
    aborted: AtomicBool,
    /// One collective at a time.
    turn: Mutex<()>,
    /// When sums on the device have to be done.
    deadline: Mutex<Instant>,
}

struct State<A: Api> {
    comm: Option<A::Comm>,
    failed: Option<CollectiveError>,
}

impl<A: Api> NcclCollective<A> {
    /// Joins the group of `place`, whose ranks find each other in `store` under `prefix`, which no
    /// other group has used.
    ///
    /// # Errors
    /// [`CollectiveError::Unsupported`] when ranks have different versions of NCCL;
    /// [`CollectiveError::Deadline`] when not all of them come; [`CollectiveError::PeerGone`] when
    /// the library reports an error.
    pub fn connect(
        api: Arc<A>,
        place: Place,
        store: &dyn Store,
        prefix: &str,
        deadline: Instant,
    ) -> Result<Self, CollectiveError> {
        agree_on_version(&*api, place, store, prefix, deadline)?;
        let key = format!("{prefix}/nccl-id");
        if place.rank == 0 {
            store.set(&key, &api.unique_id().map_err(failure)?)?;
        }
        let id = store.get(&key, deadline)?;
        let id: UniqueId = id
            .try_into()
            .map_err(|_| CollectiveError::Mismatch("rank 0 set an id that is not NCCL's".into()))?;
        let comm = api.init(place, &id).map_err(failure)?;
        let state = Mutex::new(State {
            comm: Some(comm),
            failed: None,
        });
        let (aborted, turn) = (AtomicBool::new(false), Mutex::new(()));
        let this = Self {
            place,
            api,
            state,
            aborted,
            turn,
            deadline: Mutex::new(deadline),
        };
        this.wait("ncclCommInitRankConfig", deadline)?;
        Ok(this)
    }

    fn state(&self) -> MutexGuard<'_, State<A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the communicator, and does not wait for its end. The first error stays.
    fn fail(&self, error: CollectiveError) -> CollectiveError {
        let mut state = self.state();
        let first = state.failed.get_or_insert(error).clone();
        let comm = state.comm.take();
        drop(state);
        if let Some(comm) = comm {
            let api = self.api.clone();
            let ended = std::thread::Builder::new()
                .name("nccl-abort".into())
                .spawn(move || api.abort(comm));
            if let Err(error) = ended {
                tracing::error!(%error, "no thread to end a communicator with: it stays as it is");
            }
        }
        first
    }

    /// Calls the library once, unless the communicator is gone.
    fn with<T>(
        &self,
        call: impl FnOnce(&A, &A::Comm) -> Result<T, ApiError>,
    ) -> Result<T, CollectiveError> {
        if self.aborted.load(Ordering::Acquire) {
            return Err(self.fail(CollectiveError::Aborted));
        }
        let state = self.state();
        let comm = match (&state.failed, &state.comm) {
            (Some(error), _) => return Err(error.clone()),
            (None, Some(comm)) => comm,
            (None, None) => return Err(CollectiveError::Aborted),
        };
        let result = call(&self.api, comm);
        drop(state);
        result.map_err(|error| self.fail(failure(error)))
    }

    /// Polls until what was started is done.
    fn wait(&self, operation: &'static str, deadline: Instant) -> Result<(), CollectiveError> {
        let mut polls = 0;
        while !self.with(|api, comm| api.poll(comm))? {
            if Instant::now() >= deadline {
                let missing = "unknown to NCCL".into();
                return Err(self.fail(CollectiveError::Deadline { operation, missing }));
            }
            polls += 1;
            if polls < EAGER_POLLS {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    /// One collective: `data` goes out, `out` comes back. Nothing is sent for empty data, which is
    /// empty on all ranks.
    fn call(
        &self,
        call: Call,
        data: &[u8],
        out: &mut [u8],
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if data.is_empty() {
            return self.with(|_, _| Ok(()));
        }
        self.with(|api, comm| api.start(comm, call, data))?;
        self.wait(call.operation.name(), deadline)?;
        self.with(|api, comm| api.finish(comm, out))
    }

    fn sum<T: bytemuck::Pod>(
        &self,
        element: Element,
        values: &mut [T],
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        let data = bytemuck::cast_slice(values).to_vec();
        let call = Call {
            operation: Operation::AllReduce,
            element,
        };
        self.call(call, &data, bytemuck::cast_slice_mut(values), deadline)
    }
}

/// What the library says, as the engine knows it.
fn failure(error: ApiError) -> CollectiveError {
    match error {
        ApiError::Unsupported(why) => CollectiveError::Unsupported { name: NAME, why },
        ApiError::Usage(what) => CollectiveError::Mismatch(what),
        ApiError::Failed(what) => CollectiveError::PeerGone(what),
    }
}

/// Ranks with different versions of NCCL may hang or worse, so they refuse each other by name.
fn agree_on_version(
    api: &impl Api,
    place: Place,
    store: &dyn Store,
    prefix: &str,
    deadline: Instant,
) -> Result<(), CollectiveError> {
    let own = api.version().map_err(failure)?;
    let key = |rank: usize| format!("{prefix}/nccl-version-{rank}");
    store.set(&key(place.rank), &own.to_le_bytes())?;
    for rank in 0..place.world_size {
        let found = store.get(&key(rank), deadline)?;
        if found != own.to_le_bytes() {
            let theirs = <[u8; 4]>::try_from(&found[..]).map_or(0, u32::from_le_bytes);
            let [own, theirs] = [own, theirs].map(api::dotted);
            let why = format!(
                "rank {} has NCCL {own}, rank {rank} has {theirs}: use one image",
                place.rank
            );
            return Err(CollectiveError::Unsupported { name: NAME, why });
        }
    }
    Ok(())
}

impl<A: Api> Collective for NcclCollective<A> {
    fn rank(&self) -> usize {
        self.place.rank
    }

    fn world_size(&self) -> usize {
        self.place.world_size
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn all_reduce_sum(&self, values: &mut [f32], deadline: Instant) -> Result<(), CollectiveError> {
        self.sum(Element::F32, values, deadline)
    }

    fn all_reduce_counts(
        &self,
        counts: &mut [u64],
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        self.sum(Element::U64, counts, deadline)
    }

    fn all_gather(
        &self,
        mine: &[u8],
        all: &mut [u8],
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        check_gather(self.place.world_size, mine, all)?;
        self.call(
            Call {
                operation: Operation::AllGather,
                element: Element::U8,
            },
            mine,
            all,
            deadline,
        )
    }

    fn broadcast(
        &self,
        bytes: &mut [u8],
        root: usize,
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        check_root(self.place.world_size, root)?;
        let data = bytes.to_vec();
        self.call(
            Call {
                operation: Operation::Broadcast { root },
                element: Element::U8,
            },
            &data,
            bytes,
            deadline,
        )
    }

    fn device_sums(self: Arc<Self>) -> Option<Arc<dyn DeviceSums>> {
        Some(self)
    }

    fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.fail(CollectiveError::Aborted);
    }
}

impl<A: Api> Drop for NcclCollective<A> {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
mod tests;
