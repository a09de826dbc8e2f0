//! Device memory that calls use one after the other.

use super::memory::StreamMemory;
use crate::cuda::device::Device;
use crate::error::{Error, Result};

/// Bytes of the smallest workspace.
pub(crate) const LEAST_BYTES: usize = 1 << 20;

/// Memory that grows to the largest size asked for.
pub(crate) struct Workspace<D: Device> {
    memory: Option<StreamMemory<D>>,
    bytes: usize,
}

impl<D: Device> Default for Workspace<D> {
    fn default() -> Self {
        Self {
            memory: None,
            bytes: 0,
        }
    }
}

impl<D: Device> Workspace<D> {
    /// A workspace of this very memory.
    pub(super) fn of(memory: StreamMemory<D>, bytes: usize) -> Self {
        Self {
            memory: Some(memory),
            bytes,
        }
    }

    /// Whether it holds `bytes` bytes, and any at all.
    pub(super) fn holds(&self, bytes: usize) -> bool {
        self.memory.is_some() && bytes <= self.bytes
    }

    /// Bytes to allocate for `bytes` bytes.
    pub(super) fn grown(bytes: usize) -> usize {
        let grown = bytes.max(LEAST_BYTES);
        grown.checked_next_power_of_two().unwrap_or(bytes)
    }

    /// Frees the memory.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The memory, once it was reserved.
    ///
    /// # Errors
    /// [`Error::Device`] before that.
    pub(crate) fn memory(&self) -> Result<&StreamMemory<D>> {
        self.memory.as_ref().ok_or(Error::Device {
            op: "workspace",
            what: "nothing was reserved".into(),
        })
    }
}
