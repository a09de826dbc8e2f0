//! Device memory that outlives the commands which use it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cuda::device::Device;

/// Memory that was dropped while commands which may use it were put off; `None`: none are.
pub(crate) struct Parked<D: Device>(Mutex<Option<Vec<D::Memory>>>);

impl<D: Device> Parked<D> {
    /// Nothing is put off.
    pub(super) fn none() -> Arc<Self> {
        Arc::new(Self(Mutex::new(None)))
    }

    /// Keeps what is dropped from now on.
    pub(super) fn keep(&self) {
        self.lock().get_or_insert_default();
    }

    /// Frees what was kept, and keeps nothing from now on.
    pub(super) fn free(&self) {
        let parked = self.lock().take();
        drop(parked);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<D::Memory>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory of a stream. Dropped while commands are put off, it is freed after they were started.
pub(crate) struct StreamMemory<D: Device> {
    memory: Option<D::Memory>,
    parked: Arc<Parked<D>>,
}

impl<D: Device> StreamMemory<D> {
    pub(super) fn new(memory: D::Memory, parked: Arc<Parked<D>>) -> Self {
        Self {
            memory: Some(memory),
            parked,
        }
    }

    /// Address for kernels.
    pub(crate) fn address(&self) -> u64 {
        D::address(self.memory())
    }

    pub(super) fn memory(&self) -> &D::Memory {
        self.memory.as_ref().expect("there until this is dropped")
    }
}

impl<D: Device> Drop for StreamMemory<D> {
    fn drop(&mut self) {
        if let Some(parked) = &mut *self.parked.lock() {
            parked.extend(self.memory.take());
        }
    }
}
