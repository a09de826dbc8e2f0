//! Ranks that are processes on CPUs: gloo over TCP, as Debian's `libgloo-dev` has it.
//!
//! Gloo moves the bytes of a [`Mesh`]. Each message takes a notice of the receiver, often one of
//! the sender, and the data, and all of them go through gloo's own thread, which turns in a circle
//! while the caller's thread holds a connection: where ranks have fewer cores than threads,
//! [`crate::tcp`] is many times faster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::communicator::CollectiveError;
use crate::mesh::{Mesh, MeshCollective, Round};
use crate::place::Place;
use crate::store::Store;

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
        include!("palimpsest-collective/src/gloo/shim.h");
        type Mesh;
        fn new_mesh(rank: i32, size: i32) -> Result<UniquePtr<Mesh>>;
        fn connect(
            self: Pin<&mut Mesh>,
            address: &str,
            store: &Rendezvous,
            timeout_ms: i64,
        ) -> Result<()>;
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
// SAFETY: `exchange` runs on one thread at a time, guarded by the turn of its `MeshCollective`;
// `abort` takes the mesh's own mutex before it touches what `exchange` shares.
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
pub type GlooCollective = MeshCollective<GlooMesh>;

/// Gloo's connections with the other ranks.
pub struct GlooMesh(cxx::UniquePtr<ffi::Mesh>);

impl GlooCollective {
    /// Joins the group of `place`, whose ranks find each other in `store` under `prefix`, which no
    /// other group has used. `address` is a host name or address of this machine that the other
    /// ranks reach.
    ///
    /// # Errors
    /// [`CollectiveError::Deadline`] when not all ranks come; [`CollectiveError::PeerGone`] when
    /// one cannot be reached.
    pub fn connect(
        place: Place,
        address: &str,
        store: Arc<dyn Store>,
        prefix: &str,
        deadline: Instant,
    ) -> Result<Self, CollectiveError> {
        let rendezvous = Rendezvous {
            store,
            prefix: prefix.to_owned(),
        };
        let unsupported = |error: cxx::Exception| CollectiveError::Unsupported {
            name: "gloo",
            why: error.to_string(),
        };
        let mut mesh =
            ffi::new_mesh(place.rank as i32, place.world_size as i32).map_err(unsupported)?;
        mesh.pin_mut()
            .connect(address, &rendezvous, left(deadline))
            .map_err(|error| {
                if Instant::now() >= deadline {
                    CollectiveError::Deadline {
                        operation: "rendezvous",
                        missing: error.to_string(),
                    }
                } else {
                    CollectiveError::PeerGone(error.to_string())
                }
            })?;
        Ok(Self::new(place, GlooMesh(mesh)))
    }
}

impl Mesh for GlooMesh {
    const NAME: &'static str = "gloo";

    fn exchange(&self, round: Round<'_>) -> Result<(), CollectiveError> {
        let Round {
            slot,
            operation,
            out,
            into,
            deadline,
        } = round;
        let spans = |spans: &[crate::mesh::Span]| -> Vec<Span> {
            spans
                .iter()
                .map(|span| Span {
                    start: span.start,
                    len: span.len,
                })
                .collect()
        };
        let outgoing = Outgoing {
            bytes: out.bytes,
            spans: &spans(out.spans),
        };
        let recvs = spans(into.spans);
        match self
            .0
            .exchange(slot, outgoing, into.bytes, &recvs, left(deadline))
        {
            Ok(Outcome::Done) => Ok(()),
            Ok(Outcome::Aborted) => Err(CollectiveError::Aborted),
            Ok(_) => Err(CollectiveError::Deadline {
                operation,
                missing: "unknown to gloo".into(),
            }),
            Err(error) => Err(CollectiveError::PeerGone(error.to_string())),
        }
    }

    fn abort(&self) {
        self.0.abort();
    }
}

/// Milliseconds until a deadline, at least one.
fn left(deadline: Instant) -> i64 {
    let left = deadline
        .saturating_duration_since(Instant::now())
        .as_millis();
    i64::try_from(left)
        .unwrap_or(i64::MAX)
        .clamp(1, i64::from(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::communicator::Collective;
    use crate::conformance;
    use crate::memory_store::MemoryStore;

    fn group(world_size: usize) -> Vec<Arc<dyn Collective>> {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let deadline = Instant::now() + Duration::from_secs(20);
        let connect = |rank| {
            let (store, place) = (store.clone(), Place { rank, world_size });
            std::thread::spawn(move || {
                GlooCollective::connect(place, "127.0.0.1", store, "epoch-1", deadline)
            })
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
        let (store, place) = (
            Arc::new(MemoryStore::default()),
            Place {
                rank: 0,
                world_size: 2,
            },
        );
        let started = Instant::now();
        let deadline = started + Duration::from_millis(300);
        let error = GlooCollective::connect(place, "127.0.0.1", store, "epoch-1", deadline)
            .map(|_| ())
            .unwrap_err();
        assert!(
            matches!(&error, CollectiveError::Deadline { .. }),
            "{error}"
        );
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
