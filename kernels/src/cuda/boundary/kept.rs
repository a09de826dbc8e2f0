//! Lists of slots that stay and of slots that go, on the device.

use std::sync::PoisonError;

use crate::cuda::backend::{CudaBackend, SizedMemory, SpareMemory};
use crate::cuda::device::Device;
use crate::cuda::launch::PtrMut;
use crate::cuda::stream::StreamMemory;
use crate::error::Result;

/// Lists of slots that stay and of slots that go, for some heads.
pub struct Kept<D: Device> {
    /// For each head two counts: slots that stay, and the first that goes. Then those that stay,
    /// then those that go, each head's from the sum of the lengths before it on. There until this
    /// is dropped.
    memory: Option<SizedMemory<D>>,
    lens: Vec<usize>,
    spare: SpareMemory<D>,
}

/// Where the lists lie.
pub(crate) struct ListPointers {
    /// Two of each head.
    pub(crate) counts: PtrMut<u32>,
    /// Slots that stay.
    pub(crate) keeps: PtrMut<u32>,
    /// Slots that go.
    pub(crate) losts: PtrMut<u32>,
}

impl<D: Device> Kept<D> {
    /// Memory for the lists of heads of so many slots.
    pub(super) fn new(backend: &CudaBackend<D>, lens: Vec<usize>) -> Result<Self> {
        let slots: usize = lens.iter().sum();
        let bytes = (4 * (2 * lens.len() + 2 * slots)).next_power_of_two();
        let spare = &backend.spare_lists;
        let mut memories = spare.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = match memories.iter().position(|spare| spare.bytes >= bytes) {
            Some(index) => memories.swap_remove(index),
            None => SizedMemory {
                memory: backend.stream.alloc("lists of slots", bytes)?,
                bytes,
            },
        };
        Ok(Self {
            memory: Some(memory),
            lens,
            spare: spare.clone(),
        })
    }

    /// Slots of each head.
    pub(crate) fn lens(&self) -> &[usize] {
        &self.lens
    }

    /// Slots of all heads.
    pub(super) fn slots(&self) -> usize {
        self.lens.iter().sum()
    }

    pub(super) fn memory(&self) -> &StreamMemory<D> {
        let memory = self.memory.as_ref();
        &memory.expect("there until this is dropped").memory
    }

    /// Where the lists lie.
    pub(crate) fn lists(&self) -> ListPointers {
        let counts = PtrMut::<u32>::at(self.memory().address());
        let keeps = counts.skip(2 * self.lens.len());
        ListPointers {
            counts,
            keeps,
            losts: keeps.skip(self.slots()),
        }
    }
}

impl<D: Device> Drop for Kept<D> {
    fn drop(&mut self) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.extend(self.memory.take());
    }
}
