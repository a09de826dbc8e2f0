//! What a device can do: memory, copies, launches, graphs.
//!
//! [`driver`] is a GPU, through the CUDA driver. `emulated` runs the same kernel sources on the
//! host, and `recorded` writes down what another device is asked for; tests use these two. `null`
//! computes nothing, so that the host's time can be measured.

pub mod driver;
#[cfg(feature = "emulate")]
pub mod emulated;
pub mod null;
#[cfg(feature = "emulate")]
pub mod recorded;

use std::sync::Arc;

use super::launch::{Command, Launch, Product, Sum};
use crate::error::Result;
use crate::sums::DeviceSums;

/// Memory and launches of one device. Calls take effect in order; `download` returns finished
/// values.
pub trait Device: Send + Sync + 'static {
    /// Memory on the device; freed when dropped.
    type Memory: Send + Sync;
    /// Commands that were captured, to be started as one.
    type Graph: Send;

    /// Name for logs, such as `NVIDIA H100 80GB HBM3`.
    fn name(&self) -> String;
    /// Bytes of dynamic shared memory that a block may ask for.
    fn shared_bytes(&self) -> usize;
    /// `bytes` zeroed bytes at a multiple of 16.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), or
    /// [`Error::Device`](crate::Error::Device) when the device is lost.
    fn alloc(&self, what: &'static str, bytes: usize) -> Result<Self::Memory>;
    /// Address for kernels.
    fn address(memory: &Self::Memory) -> u64;
    /// Copies `src` to byte `offset`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) past the end, [`Error::Device`](crate::Error::Device).
    fn upload(&self, src: &[u8], dst: &Self::Memory, offset: usize) -> Result<()>;
    /// Copies from byte `offset` to `dst`, after all commands that were started.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) past the end, [`Error::Device`](crate::Error::Device)
    /// also for a fault of an earlier kernel, [`Error::Sums`](crate::Error::Sums) for a sum that
    /// does not come to an end.
    fn download(&self, src: &Self::Memory, offset: usize, dst: &mut [u8]) -> Result<()>;
    /// Starts a kernel.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and what it reads and writes at this grid lies in
    /// memory of this device.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    unsafe fn launch(&self, launch: &Launch) -> Result<()>;
    /// Whether there is a vendor's library for products.
    fn has_products(&self) -> bool;
    /// Starts a product of bf16 matrices by the vendor's library.
    ///
    /// # Safety
    /// The addresses are of matrices of the sizes given, on this device.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device), also where there is no library.
    unsafe fn product(&self, product: &Product) -> Result<()>;
    /// Takes sums over ranks from `sums` from now on, or from nobody (`None`).
    fn join_sums(&self, sums: Option<Arc<dyn DeviceSums>>);
    /// Starts a sum over ranks.
    ///
    /// # Safety
    /// The array lies in memory of this device.
    ///
    /// # Errors
    /// [`Error::Sums`](crate::Error::Sums), and from then on of every call that waits for it;
    /// [`Error::Device`](crate::Error::Device) where there is nobody to sum with.
    unsafe fn sum(&self, sum: &Sum) -> Result<()>;
    /// Whether commands can be captured now. They cannot while kernels are timed one by one.
    fn captures(&self) -> bool;
    /// Captures commands as a graph. None of them is started.
    ///
    /// # Safety
    /// As [`Self::start`], for all of them, whenever the graph is replayed.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device); the device goes on as before.
    unsafe fn capture(&self, commands: &[Command]) -> Result<Self::Graph>;
    /// Starts the commands of a graph, in order.
    ///
    /// # Safety
    /// As [`Self::start`], for all of them.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device).
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()>;

    /// Starts a command.
    ///
    /// # Safety
    /// As [`Self::launch`], [`Self::product`] and [`Self::sum`].
    ///
    /// # Errors
    /// Theirs.
    unsafe fn start(&self, command: &Command) -> Result<()> {
        match command {
            // SAFETY: by the caller's contract.
            Command::Launch(launch) => unsafe { self.launch(launch) },
            // SAFETY: by the caller's contract.
            Command::Product(product) => unsafe { self.product(product) },
            // SAFETY: by the caller's contract.
            Command::Sum(sum) => unsafe { self.sum(sum) },
        }
    }
}
