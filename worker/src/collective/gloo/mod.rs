//! Ranks that are processes on CPUs: gloo over TCP, as Debian's `libgloo-dev` has it.
//!
//! Gloo moves the bytes; sums are taken here, in rank order, so that every rank has the same bits and the same as
//! [`super::local`]. Short vectors go from everyone to everyone in one round; long ones are summed in slices, each by one
//! rank, and gathered in a second round.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Collective, CollectiveError, Store, add_bytes, check_gather, check_root};
use crate::shard::{Place, even};

#[cxx::bridge(namespace = "palimpsest")]
mod ffi {
    /// A part of a buffer, in bytes.
    #[derive(Clone, Copy)]
    struct Span {
        start: usize,
        len: usize,
    }

    /// What goes to every rank.
    struct Outgoing<'a> {
        bytes: &'a [u8],
        spans: &'a [Span],
    }

    /// How an exchange ended.
    enum Outcome {
        Done,
        Aborted,
        Late,
    }

    extern "Rust" {
        type Rendezvous;
        fn set(self: &Rendezvous, key: &CxxString, value: &[u8]) -> Result<()>;
        fn get(self: &Rendezvous, key: &CxxString, timeout_ms: i64) -> Result<Vec<u8>>;
    }

    unsafe extern "C++" {
        include!("palimpsest-worker/src/collective/gloo/shim.h");
        type Mesh;
        fn new_mesh(rank: i32, size: i32) -> Result<UniquePtr<Mesh>>;
        fn connect(self: Pin<&mut Mesh>, address: &str, store: &Rendezvous, timeout_ms: i64) -> Result<()>;
        fn exchange(
            self: &Mesh,
            slot: u64,
            out: Outgoing<'_>,
            into: &mut [u8],
            recvs: &[Span],
            timeout_ms: i64,
        ) -> Result<Outcome>;
        fn abort(self: &Mesh);
    }
}

use ffi::{Outcome, Outgoing, Span};

// SAFETY: a mesh owns its gloo context, which is not tied to a thread.
unsafe impl Send for ffi::Mesh {}
// SAFETY: `exchange` runs on one thread at a time, guarded by `GlooCollective::turn`; `abort` takes the mesh's own mutex
// before it touches what `exchange` shares.
unsafe impl Sync for ffi::Mesh {}

/// Our store as gloo calls it.
struct Rendezvous {
    store: Arc<dyn Store>,
    prefix: String,
}

impl Rendezvous {
    fn key(&self, key: &cxx::CxxString) -> String {
        format!("{}/{}", self.prefix, key.to_string_lossy())
    }

    fn set(&self, key: &cxx::CxxString, value: &[u8]) -> Result<(), CollectiveError> {
        self.store.set(&self.key(key), value)
    }

    fn get(&self, key: &cxx::CxxString, timeout_ms: i64) -> Result<Vec<u8>, CollectiveError> {
        let left = Duration::from_millis(timeout_ms.max(0).unsigned_abs());
        self.store.get(&self.key(key), Instant::now() + left)
    }
}

/// A rank's end of a group of processes.
pub struct GlooCollective {
    place: Place,
    mesh: cxx::UniquePtr<ffi::Mesh>,
    /// One exchange at a time; what failed stays.
    turn: Mutex<Option<CollectiveError>>,
    /// Number of the next exchange: messages of one never mix with those of another.
    slot: AtomicU64,
    scratch: Mutex<Vec<u8>>,
}

/// Vectors of up to so many bytes are summed in one round.
const ONE_ROUND: usize = 32 << 10;

impl GlooCollective {
    /// Joins the group of `place`, whose ranks find each other in `store` under `prefix`, which no other group has used.
    /// `address` is a host name or address of this machine that the other ranks reach.
    ///
    /// # Errors
    /// [`CollectiveError::Deadline`] when not all ranks come; [`CollectiveError::PeerGone`] when one cannot be reached.
    pub fn connect(
        place: Place,
        address: &str,
        store: Arc<dyn Store>,
        prefix: &str,
        deadline: Instant,
    ) -> Result<Self, CollectiveError> {
        let rendezvous = Rendezvous { store, prefix: prefix.to_owned() };
        let unsupported = |error: cxx::Exception| CollectiveError::Unsupported { name: "gloo", why: error.to_string() };
        let mut mesh = ffi::new_mesh(place.rank as i32, place.world_size as i32).map_err(unsupported)?;
        mesh.pin_mut().connect(address, &rendezvous, left(deadline)).map_err(|error| {
            if Instant::now() >= deadline {
                CollectiveError::Deadline { operation: "rendezvous", missing: error.to_string() }
            } else {
                CollectiveError::PeerGone(error.to_string())
            }
        })?;
        Ok(Self { place, mesh, turn: Mutex::new(None), slot: AtomicU64::new(0), scratch: Mutex::default() })
    }

    fn exchange(
        &self,
        operation: &'static str,
        (bytes, spans): (&[u8], &[Span]),
        (into, recvs): (&mut [u8], &[Span]),
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        let mut failed = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(error) = &*failed {
            return Err(error.clone());
        }
        let slot = self.slot.fetch_add(1, Ordering::Relaxed);
        let error = match self.mesh.exchange(slot, Outgoing { bytes, spans }, into, recvs, left(deadline)) {
            Ok(Outcome::Done) => return Ok(()),
            Ok(Outcome::Aborted) => CollectiveError::Aborted,
            Ok(_) => CollectiveError::Deadline { operation, missing: "unknown to gloo".into() },
            Err(error) => CollectiveError::PeerGone(error.to_string()),
        };
        *failed = Some(error.clone());
        Err(error)
    }

    /// Sends `mine` to all, and puts what they send, `lens[r]` bytes from rank `r`, side by side into `all`.
    fn gather(
        &self,
        operation: &'static str,
        mine: &[u8],
        (all, lens): (&mut [u8], &[usize]),
        deadline: Instant,
    ) -> Result<(), CollectiveError> {
        let recvs = side_by_side(lens);
        let own = recvs[self.place.rank];
        let sends = vec![Span { start: 0, len: mine.len() }; lens.len()];
        self.exchange(operation, (mine, &sends), (all, &recvs), deadline)?;
        all[own.start..own.start + own.len].copy_from_slice(mine);
        Ok(())
    }

    fn reduce<T: bytemuck::Pod>(
        &self,
        operation: &'static str,
        values: &mut [T],
        deadline: Instant,
        add: impl Fn(T, T) -> T,
    ) -> Result<(), CollectiveError> {
        let Place { rank, world_size } = self.place;
        let mut scratch = self.scratch.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if size_of_val(values) <= ONE_ROUND {
            let mine: &[u8] = bytemuck::cast_slice(values);
            let lens = vec![mine.len(); world_size];
            scratch.resize(mine.len() * world_size, 0);
            self.gather(operation, mine, (&mut scratch, &lens), deadline)?;
            sum_parts(values, &scratch, add);
            return Ok(());
        }
        // A slice for every rank: sent to it, summed there, and sent back.
        let width = size_of::<T>();
        let slices: Vec<usize> = (0..world_size).map(|r| even(values.len(), r, world_size).len() * width).collect();
        let (sends, own) = (side_by_side(&slices), even(values.len(), rank, world_size));
        let recvs = side_by_side(&vec![own.len() * width; world_size]);
        scratch.resize(own.len() * width * world_size, 0);
        self.exchange(operation, (bytemuck::cast_slice(values), &sends), (&mut scratch, &recvs), deadline)?;
        let mut slice = values[own.clone()].to_vec();
        scratch[recvs[rank].start..][..recvs[rank].len].copy_from_slice(bytemuck::cast_slice(&slice));
        sum_parts(&mut slice, &scratch, add);
        self.gather(operation, bytemuck::cast_slice(&slice), (bytemuck::cast_slice_mut(values), &slices), deadline)
    }
}

/// Sums equally long parts that lie side by side, in order.
fn sum_parts<T: bytemuck::Pod>(sum: &mut [T], parts: &[u8], add: impl Fn(T, T) -> T) {
    let len = size_of_val(sum);
    if len == 0 {
        return;
    }
    for (index, part) in parts.chunks_exact(len).enumerate() {
        if index == 0 {
            bytemuck::cast_slice_mut(sum).copy_from_slice(part);
        } else {
            add_bytes(sum, part, &add);
        }
    }
}

fn side_by_side(lens: &[usize]) -> Vec<Span> {
    let place = |start: &mut usize, &len: &usize| {
        let span = Span { start: *start, len };
        *start += len;
        Some(span)
    };
    lens.iter().scan(0, place).collect()
}

/// Milliseconds until a deadline, at least one.
fn left(deadline: Instant) -> i64 {
    let left = deadline.saturating_duration_since(Instant::now()).as_millis();
    i64::try_from(left).unwrap_or(i64::MAX).clamp(1, i64::from(i32::MAX))
}

impl Collective for GlooCollective {
    fn rank(&self) -> usize {
        self.place.rank
    }

    fn world_size(&self) -> usize {
        self.place.world_size
    }

    fn name(&self) -> &'static str {
        "gloo"
    }

    fn all_reduce_sum(&self, values: &mut [f32], deadline: Instant) -> Result<(), CollectiveError> {
        self.reduce("all_reduce_sum", values, deadline, |sum, part| sum + part)
    }

    fn all_reduce_counts(&self, counts: &mut [u64], deadline: Instant) -> Result<(), CollectiveError> {
        self.reduce("all_reduce_counts", counts, deadline, |sum: u64, part| sum.wrapping_add(part))
    }

    fn all_gather(&self, mine: &[u8], all: &mut [u8], deadline: Instant) -> Result<(), CollectiveError> {
        check_gather(self.world_size(), mine, all)?;
        let lens = vec![mine.len(); self.world_size()];
        self.gather("all_gather", mine, (all, &lens), deadline)
    }

    fn broadcast(&self, bytes: &mut [u8], root: usize, deadline: Instant) -> Result<(), CollectiveError> {
        check_root(self.world_size(), root)?;
        let own = self.rank() == root;
        let nothing = Span { start: 0, len: 0 };
        let all = Span { start: 0, len: bytes.len() };
        let sends = vec![if own { all } else { nothing }; self.world_size()];
        let mut recvs = vec![nothing; self.world_size()];
        recvs[root].len = if own { 0 } else { bytes.len() };
        if own {
            return self.exchange("broadcast", (bytes, &sends), (&mut [], &recvs), deadline);
        }
        self.exchange("broadcast", (&[], &sends), (bytes, &recvs), deadline)
    }

    fn abort(&self) {
        self.mesh.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::{MemoryStore, conformance};

    fn group(world_size: usize) -> Vec<Arc<dyn Collective>> {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let deadline = Instant::now() + Duration::from_secs(20);
        let connect = |rank| {
            let (store, place) = (store.clone(), Place { rank, world_size });
            std::thread::spawn(move || GlooCollective::connect(place, "127.0.0.1", store, "epoch-1", deadline))
        };
        let ranks: Vec<_> = (0..world_size).map(connect).collect();
        let end = |rank: std::thread::JoinHandle<Result<GlooCollective, CollectiveError>>| {
            Arc::new(rank.join().expect("no panic").expect("a group")) as Arc<dyn Collective>
        };
        ranks.into_iter().map(end).collect()
    }

    #[test]
    fn conforms() {
        conformance::run(&group, conformance::Sums::RankOrder);
    }

    #[test]
    fn a_group_that_is_never_complete_is_given_up_in_time() {
        let (store, place) = (Arc::new(MemoryStore::default()), Place { rank: 0, world_size: 2 });
        let started = Instant::now();
        let deadline = started + Duration::from_millis(300);
        let error = GlooCollective::connect(place, "127.0.0.1", store, "epoch-1", deadline).map(|_| ()).unwrap_err();
        assert!(matches!(&error, CollectiveError::Deadline { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
