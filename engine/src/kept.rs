//! Snapshots in the host memory of a rank, by name. The device thread keeps states here and begins
//! sequences with them; another thread writes them to a store and reads them back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::snapshot::Snapshot;

/// The snapshots that a rank has in host memory; cheap to clone.
#[derive(Clone)]
pub struct Kept(Arc<Shared>);

struct Shared {
    most: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    snapshots: HashMap<Bytes, Arc<Snapshot>>,
    bytes: u64,
}

/// One of them, in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSnapshot {
    /// Its name, which is the coordinator's.
    pub name: Bytes,
    /// Its bytes.
    pub bytes: u64,
}

impl Kept {
    /// Room for snapshots of `most` bytes in all; 0: none are kept.
    pub fn new(most: u64) -> Self {
        Self(Arc::new(Shared {
            most,
            state: Mutex::default(),
        }))
    }

    /// Bytes that all of them may take.
    pub fn room(&self) -> u64 {
        self.0.most
    }

    /// Keeps a snapshot, in place of one of the same name. Returns whether there was room: the
    /// coordinator makes that before, so it is a bound and no policy.
    pub fn insert(&self, name: Bytes, snapshot: Arc<Snapshot>) -> bool {
        let mut state = self.lock();
        let before = state.snapshots.get(&name).map_or(0, |one| size(one));
        let bytes = state.bytes - before + size(&snapshot);
        if bytes > self.0.most {
            return false;
        }
        state.bytes = bytes;
        state.snapshots.insert(name, snapshot);
        true
    }

    /// The snapshot of that name.
    pub fn get(&self, name: &[u8]) -> Option<Arc<Snapshot>> {
        self.lock().snapshots.get(name).cloned()
    }

    /// Forgets a snapshot, if there is one of that name. Who has taken it out still has it.
    pub fn remove(&self, name: &[u8]) {
        let mut state = self.lock();
        if let Some(gone) = state.snapshots.remove(name) {
            state.bytes -= size(&gone);
        }
    }

    /// All of them, in the order of their names.
    pub fn list(&self) -> Vec<KeptSnapshot> {
        let state = self.lock();
        let mut all: Vec<_> = state
            .snapshots
            .iter()
            .map(|(name, snapshot)| KeptSnapshot {
                name: name.clone(),
                bytes: size(snapshot),
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that may panic happens under the lock.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(snapshot: &Snapshot) -> u64 {
    snapshot.bytes() as u64
}
