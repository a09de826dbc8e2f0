//! The in-memory twin of NCCL, for tests, those of other crates too: ranks are threads, and nothing
//! is done before it was polled a few times. Its devices are those whose memory is the host's, such
//! as the emulated one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use palimpsest_kernels::sums::{Place as SumPlace, Summand};

use super::NcclCollective;
use super::api::{Api, ApiError, Call, Element, Operation, UniqueId};
use crate::communicator::CollectiveError;
use crate::memory_store::MemoryStore;
use crate::place::Place;

/// Polls that say "in progress" although all is done: callers must not rely on the first.
const LAZY_POLLS: u64 = 3;

/// Communicators of one process.
pub struct Fake {
    /// As [`Api::version`] says it.
    pub version: u32,
    /// Held as long as captured graphs are to name communicators: NCCL gives none back before.
    pub graphs: Mutex<()>,
    groups: Mutex<HashMap<UniqueId, Arc<Mutex<Group>>>>,
    ids: AtomicU64,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            version: 23_003,
            graphs: Mutex::default(),
            groups: Mutex::default(),
            ids: AtomicU64::new(1),
        }
    }
}

impl Fake {
    /// A library of another version.
    pub fn of_version(version: u32) -> Self {
        Self {
            version,
            ..Self::default()
        }
    }
}

/// Groups as many ranks as there are libraries, each of which comes to one store.
///
/// # Panics
/// When a rank's thread does.
pub fn connect(
    fakes: Vec<Arc<Fake>>,
    limit: Duration,
) -> Vec<Result<NcclCollective<Fake>, CollectiveError>> {
    let (store, world_size) = (MemoryStore::default(), fakes.len());
    std::thread::scope(|scope| {
        let join = |(rank, fake)| {
            let store = &store;
            let place = Place { rank, world_size };
            let deadline = Instant::now() + limit;
            scope.spawn(move || NcclCollective::connect(fake, place, store, "epoch-1", deadline))
        };
        let threads: Vec<_> = fakes.into_iter().enumerate().map(join).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    })
}

struct Group {
    arrived: usize,
    /// A rank ended its end: what a network transport reports to the others.
    gone: Option<usize>,
    calls: HashMap<u64, Pending>,
}

struct Pending {
    call: Call,
    data: Vec<Option<Vec<u8>>>,
    taken: usize,
}

/// A rank's end.
pub struct FakeComm {
    place: Place,
    group: Arc<Mutex<Group>>,
    /// Number of the next call.
    next: AtomicU64,
    polls: AtomicU64,
}

impl FakeComm {
    fn group<T>(&self, read: impl FnOnce(&mut Group) -> T) -> T {
        read(
            &mut self
                .group
                .lock()
                .expect("no test panics while it holds this"),
        )
    }
}

impl Api for Fake {
    type Comm = FakeComm;

    fn version(&self) -> Result<u32, ApiError> {
        Ok(self.version)
    }

    fn unique_id(&self) -> Result<UniqueId, ApiError> {
        let mut id = [0; 128];
        id[..8].copy_from_slice(&self.ids.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        Ok(id)
    }

    fn init(&self, place: Place, id: &UniqueId) -> Result<FakeComm, ApiError> {
        let mut groups = self
            .groups
            .lock()
            .expect("no test panics while it holds this");
        let new = || {
            Arc::new(Mutex::new(Group {
                arrived: 0,
                gone: None,
                calls: HashMap::new(),
            }))
        };
        let group = groups.entry(*id).or_insert_with(new).clone();
        group
            .lock()
            .expect("no test panics while it holds this")
            .arrived += 1;
        Ok(FakeComm {
            place,
            group,
            next: AtomicU64::new(0),
            polls: AtomicU64::new(0),
        })
    }

    fn start(&self, comm: &FakeComm, call: Call, data: &[u8]) -> Result<(), ApiError> {
        let number = comm.next.fetch_add(1, Ordering::Relaxed);
        comm.polls.store(0, Ordering::Relaxed);
        comm.group(|group| {
            let new = || Pending {
                call,
                data: vec![None; comm.place.world_size],
                taken: 0,
            };
            let pending = group.calls.entry(number).or_insert_with(new);
            if pending.call != call {
                return Err(ApiError::Usage(format!(
                    "{call:?}, another rank {:?}",
                    pending.call
                )));
            }
            pending.data[comm.place.rank] = Some(data.to_vec());
            Ok(())
        })
    }

    fn poll(&self, comm: &FakeComm) -> Result<bool, ApiError> {
        let is_lazy = comm.polls.fetch_add(1, Ordering::Relaxed) < LAZY_POLLS;
        let number = comm.next.load(Ordering::Relaxed);
        comm.group(|group| {
            let is_whole = match number.checked_sub(1) {
                None => group.arrived == comm.place.world_size,
                Some(last) => group
                    .calls
                    .get(&last)
                    .is_some_and(|call| call.data.iter().all(Option::is_some)),
            };
            match group.gone {
                Some(rank) if !is_whole => {
                    Err(ApiError::Failed(format!("ncclRemoteError: rank {rank}")))
                }
                _ => Ok(is_whole && !is_lazy),
            }
        })
    }

    fn finish(&self, comm: &FakeComm, out: &mut [u8]) -> Result<(), ApiError> {
        let number = comm.next.load(Ordering::Relaxed) - 1;
        comm.group(|group| {
            let pending = group.calls.get_mut(&number).expect("it was started");
            let data: Vec<&[u8]> = pending
                .data
                .iter()
                .map(|data| data.as_deref().expect("it is whole"))
                .collect();
            match pending.call {
                Call {
                    operation: Operation::AllReduce,
                    element,
                } => out.copy_from_slice(&sum(element, &data)),
                Call {
                    operation: Operation::AllGather,
                    ..
                } => out.copy_from_slice(&data.concat()),
                Call {
                    operation: Operation::Broadcast { root },
                    ..
                } => out.copy_from_slice(data[root]),
            }
            pending.taken += 1;
            if pending.taken == comm.place.world_size {
                group.calls.remove(&number);
            }
        });
        Ok(())
    }

    fn enqueue(&self, comm: &FakeComm, summand: &mut Summand<'_>) -> Result<(), ApiError> {
        let call = Call {
            operation: Operation::AllReduce,
            element: summand.element().into(),
        };
        self.start(comm, call, on_host(summand)?)
    }

    fn complete(&self, comm: &FakeComm, summand: &mut Summand<'_>) -> Result<(), ApiError> {
        self.finish(comm, on_host(summand)?)
    }

    fn abort(&self, comm: FakeComm) {
        let _graphs = self
            .graphs
            .lock()
            .expect("no test panics while it holds this");
        comm.group(|group| {
            group.gone = group.gone.or(Some(comm.place.rank));
            // What this rank brought to a collective that is not complete goes with it.
            for pending in group
                .calls
                .values_mut()
                .filter(|pending| pending.data.iter().any(Option::is_none))
            {
                pending.data[comm.place.rank] = None;
            }
        });
    }
}

fn on_host<'a>(summand: &'a mut Summand<'_>) -> Result<&'a mut [u8], ApiError> {
    match summand.place() {
        SumPlace::Host(bytes) => Ok(bytes),
        SumPlace::Stream { .. } => Err(ApiError::Unsupported("there is no GPU in memory".into())),
    }
}

/// From the last rank to the first: an order of its own, as the library has.
fn sum(element: Element, data: &[&[u8]]) -> Vec<u8> {
    let width = element.bytes();
    let mut total = data[data.len() - 1].to_vec();
    for part in data.iter().rev().skip(1) {
        for (total, part) in total.chunks_exact_mut(width).zip(part.chunks_exact(width)) {
            match element {
                Element::F32 => {
                    let added: f32 = bytemuck::pod_read_unaligned::<f32>(total)
                        + bytemuck::pod_read_unaligned::<f32>(part);
                    total.copy_from_slice(&added.to_ne_bytes());
                }
                Element::U64 => {
                    let added = bytemuck::pod_read_unaligned::<u64>(total)
                        .wrapping_add(bytemuck::pod_read_unaligned(part));
                    total.copy_from_slice(&added.to_ne_bytes());
                }
                Element::U8 => total[0] += part[0],
            }
        }
    }
    total
}
