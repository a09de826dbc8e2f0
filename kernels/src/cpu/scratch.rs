//! Memory of matrix products, which is used again from call to call.

use std::sync::{Mutex, PoisonError};

/// Memory for rearranged activations of one product.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Activations that were rounded.
    pub(crate) words: Vec<u32>,
    /// Activations in tiles.
    pub(crate) values: Vec<f32>,
}

/// Memory of as many products as ran at the same time so far.
#[derive(Default)]
pub(crate) struct ScratchPool(Mutex<Vec<Scratch>>);

impl ScratchPool {
    /// Memory for one product, which [`Self::put`] gives back.
    pub(crate) fn take(&self) -> Scratch {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.pop().unwrap_or_default()
    }

    /// Keeps the memory for another product.
    pub(crate) fn put(&self, scratch: Scratch) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(scratch);
    }
}
