//! The CUDA backend: kernels of `kernels/cu`, launched through a small [`Device`] trait.
//!
//! [`Device`] has two twins. [`driver`] is a GPU, through the CUDA driver. `emulated` (feature
//! `emulate`) runs the very same kernel sources on the host, every CUDA thread as a fiber, so the
//! conformance suite covers what the kernels compute, their barriers and their indexing where there
//! is no GPU. What it cannot show is speed.
//!
//! A call packs its descriptors (items, page tables, lengths) into one upload and launches over all
//! items at once. In a step of decoding both are put off until its end, so that it is one upload
//! and one graph (`queue.rs`). Calls of one backend take turns: they share the device memory for
//! descriptors and for partial results.

mod attention;
mod backend;
mod command;
pub mod driver;
#[cfg(feature = "emulate")]
pub mod emulated;
mod graphs;
mod items;
mod latent;
mod memory;
mod observe;
mod pack;
mod queue;
#[cfg(feature = "emulate")]
pub mod recorded;
mod room;
mod sample;
mod score;
mod select;
mod slots;
mod sums;
mod tables;
mod weights;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use command::{Command, Sum};
use pack::{Pack, Part};
pub use queue::bucket;
use queue::{Held, Queue};

use crate::error::{Error, Result, at_least};
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
    /// Bytes of dynamic shared memory that a block without any other may ask for.
    fn shared_bytes(&self) -> usize;
    /// `bytes` zeroed bytes at a multiple of 16.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or [`Error::Device`] when the device is lost.
    fn alloc(&self, what: &'static str, bytes: usize) -> Result<Self::Memory>;
    /// Address for kernels.
    fn address(memory: &Self::Memory) -> u64;
    /// Copies `src` to byte `offset`.
    ///
    /// # Errors
    /// [`Error::Shape`] past the end, [`Error::Device`].
    fn upload(&self, src: &[u8], dst: &Self::Memory, offset: usize) -> Result<()>;
    /// Copies from byte `offset` to `dst`.
    ///
    /// # Errors
    /// [`Error::Shape`] past the end, [`Error::Device`] also for a fault of an earlier kernel,
    /// [`Error::Sums`] for a sum that does not come to an end.
    fn download(&self, src: &Self::Memory, offset: usize, dst: &mut [u8]) -> Result<()>;
    /// Starts a kernel.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and what it reads and writes at this grid lies in
    /// memory of this device.
    ///
    /// # Errors
    /// [`Error::Device`].
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()>;
    /// Whether there is a vendor's library for products.
    fn has_products(&self) -> bool;
    /// The product of bf16 matrices by the vendor's library.
    ///
    /// # Safety
    /// The addresses are of matrices of the sizes given, on this device.
    ///
    /// # Errors
    /// [`Error::Device`], also where there is no library.
    unsafe fn product(&self, product: &Product) -> Result<()>;
    /// Takes sums over ranks from now on from `sums`. `None`: from nobody.
    fn join_sums(&self, sums: Option<Arc<dyn DeviceSums>>);
    /// Starts a sum over ranks.
    ///
    /// # Safety
    /// The array lies in memory of this device.
    ///
    /// # Errors
    /// [`Error::Sums`], and from then on of every call that waits for it; [`Error::Device`] where
    /// there is nobody to sum with.
    unsafe fn sum(&self, sum: &Sum) -> Result<()>;
    /// Whether commands can be captured now. Not while kernels are timed one by one.
    fn captures(&self) -> bool;
    /// Captures commands as a graph. None of them is started.
    ///
    /// # Safety
    /// As [`Command::start`], for all of them, whenever the graph is replayed.
    ///
    /// # Errors
    /// [`Error::Device`]; the device goes on as before.
    unsafe fn capture(&self, commands: &[Command]) -> Result<Self::Graph>;
    /// Starts the commands of a graph, in order.
    ///
    /// # Safety
    /// As [`Command::start`], for all of them.
    ///
    /// # Errors
    /// [`Error::Device`].
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()>;
}

/// A kernel with its grid and arguments.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Function of `kernels/cu`.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block, a multiple of 32.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Arguments in order.
    pub args: &'a [Arg],
}

/// One argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// Address on the device, 0 for none.
    Pointer(u64),
    /// 32-bit unsigned.
    U32(u32),
    /// 64-bit unsigned.
    U64(u64),
    /// Single.
    F32(f32),
}

impl PartialEq for Arg {
    /// Whether a kernel that takes an argument of this type reads the same bits.
    fn eq(&self, other: &Self) -> bool {
        self.word() == other.word()
    }
}

impl Arg {
    /// The argument's bytes, first in an eight-byte word.
    fn word(self) -> u64 {
        let narrow = |bits: u32| {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&bits.to_ne_bytes());
            u64::from_ne_bytes(bytes)
        };
        match self {
            Self::Pointer(address) => address,
            Self::U64(value) => value,
            Self::U32(value) => narrow(value),
            Self::F32(value) => narrow(value.to_bits()),
        }
    }
}

/// `out[rows, outputs] (+)= x[rows, cols] · w[outputs, cols]ᵀ`, bf16 in, f32 out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// Address of `x`, rows of `stride` elements.
    pub x: u64,
    /// Address of `w`, rows of `stride` elements.
    pub w: u64,
    /// Address of `out`.
    pub out: u64,
    /// `T`.
    pub rows: usize,
    /// `N`.
    pub outputs: usize,
    /// Elements of a row of `x` and `w`; zeros beyond the reduced axis.
    pub stride: usize,
    /// Add to what `out` holds.
    pub accumulate: bool,
}

/// Type of weights on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// bfloat16 weights and activations in products, f32 sums: tensor cores.
    #[default]
    Bf16,
    /// f32 throughout: for parity with the CPU.
    F32,
}

/// The backend over a device.
pub struct CudaBackend<D: Device> {
    device: Queue<D>,
    precision: Precision,
    work: Mutex<Work<D>>,
    spare: select::Spare<D>,
}

/// Device memory that calls share.
struct Work<D: Device> {
    /// Descriptors of the call.
    stage: Region<D>,
    /// Partial results of the call.
    scratch: Region<D>,
    /// What ranks sum in fixed point.
    fixed: Region<D>,
}

/// Device memory that grows to the largest size asked for.
struct Region<D: Device> {
    memory: Option<Held<D>>,
    bytes: usize,
}

impl<D: Device> Region<D> {
    fn address(&mut self, device: &Queue<D>, what: &'static str, bytes: usize) -> Result<u64> {
        if bytes > self.bytes || self.memory.is_none() {
            let grown = bytes
                .max(1 << 20)
                .checked_next_power_of_two()
                .unwrap_or(bytes);
            // The old one goes first: together they might not fit.
            self.memory = None;
            self.bytes = 0;
            self.memory = Some(device.alloc(what, grown)?);
            self.bytes = grown;
        }
        Ok(self.memory.as_ref().map_or(0, Held::address))
    }

    fn memory(&self) -> Result<&Held<D>> {
        self.memory.as_ref().ok_or(Error::Device {
            op: "download",
            what: "nothing was computed".into(),
        })
    }
}

impl<D: Device> CudaBackend<D> {
    /// A backend over `device`.
    pub fn new(device: D, precision: Precision) -> Self {
        let empty = || Region {
            memory: None,
            bytes: 0,
        };
        Self {
            device: Queue::new(device),
            precision,
            work: Mutex::new(Work {
                stage: empty(),
                scratch: empty(),
                fixed: empty(),
            }),
            spare: select::Spare::<D>::default(),
        }
    }

    /// The same; whether steps of decoding are captured as graphs, which they are unless this says
    /// no. Either way the same kernels run with the same arguments.
    #[must_use]
    pub fn with_graphs(self, wanted: bool) -> Self {
        self.device.want_graphs(wanted);
        self
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device.device
    }

    fn work(&self) -> MutexGuard<'_, Work<D>> {
        // Every call overwrites what it uses: a panic elsewhere leaves nothing behind.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Launches unless the grid is empty. Callers have checked that shapes, tables and buffers
    /// agree.
    fn run(&self, launch: Launch<'_>) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        // SAFETY: every caller is in this module, passes the arguments that the kernel declares,
        // and has checked buffer lengths and page tables against the grid; all memory of this
        // backend is `Held`.
        unsafe { self.device.launch(&launch) }
    }
}

/// Array of f32 on a device.
pub struct Buffer<D: Device> {
    memory: Held<D>,
    len: usize,
}

impl<D: Device> Buffer<D> {
    /// Values it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first value, for libraries that work on device memory.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    fn arg(&self) -> Arg {
        Arg::Pointer(self.address())
    }
}

/// Checks that `what` has exactly `want` elements.
fn exactly(op: &'static str, what: &'static str, got: usize, want: usize) -> Result<()> {
    if got == want {
        Ok(())
    } else {
        Err(Error::Shape {
            op,
            what,
            got,
            want,
        })
    }
}
