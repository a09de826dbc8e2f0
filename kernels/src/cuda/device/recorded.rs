//! A device that writes down what it is asked for, and asks another one: for tests of what a step
//! launches, copies and waits for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Device;
use crate::cuda::launch::{Arg, Command, Launch, Product, Sum};
use crate::error::{Error, Result};
use crate::sums::DeviceSums;

/// Something that a device was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Memory.
    Alloc {
        /// What for.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
    /// A copy to the device. The host does not wait.
    Upload {
        /// Its size.
        bytes: usize,
    },
    /// A copy to the host, which waits for it and for all that was started before: the only call
    /// that does.
    Wait {
        /// Its size.
        bytes: usize,
    },
    /// A kernel.
    Launch {
        /// Its name.
        kernel: String,
        /// Blocks, then threads, then bytes of dynamic shared memory.
        shape: [u32; 5],
        /// Arguments, eight bytes each.
        args: Vec<u64>,
    },
    /// Commands that were made a graph.
    Capture {
        /// How many.
        commands: usize,
    },
    /// A graph that was started.
    Replay,
    /// A product that the vendor's library was asked for.
    Product {
        /// Rows and columns of the result.
        shape: [usize; 2],
    },
    /// A sum over ranks.
    Sum {
        /// Its size.
        bytes: usize,
    },
}

impl Call {
    /// A kernel's name, or what else it was.
    pub fn name(&self) -> &str {
        match self {
            Self::Alloc { .. } => "alloc",
            Self::Upload { .. } => "upload",
            Self::Wait { .. } => "wait",
            Self::Launch { kernel, .. } => kernel,
            Self::Product { .. } => "product",
            Self::Sum { .. } => "sum",
            Self::Capture { .. } => "capture",
            Self::Replay => "replay",
        }
    }
}

/// The device.
pub struct Recorded<D> {
    device: D,
    calls: Mutex<Vec<Call>>,
    /// A fault for tests: see [`Self::refuse_captures`].
    refuses: AtomicBool,
}

impl<D: Device> Recorded<D> {
    /// Records what `device` is asked for from now on.
    pub fn new(device: D) -> Self {
        Self {
            device,
            calls: Mutex::default(),
            refuses: AtomicBool::new(false),
        }
    }

    /// A fault for tests: no capture succeeds from now on.
    pub fn refuse_captures(&self) {
        self.refuses.store(true, Ordering::Relaxed);
    }

    /// Calls since the last time this was asked.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, call: Call) {
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(call);
    }
}

impl<D: Device> Device for Recorded<D> {
    type Memory = D::Memory;
    type Graph = D::Graph;

    fn name(&self) -> String {
        self.device.name()
    }

    fn shared_bytes(&self) -> usize {
        self.device.shared_bytes()
    }

    fn alloc(&self, what: &'static str, bytes: usize) -> Result<D::Memory> {
        self.note(Call::Alloc { what, bytes });
        self.device.alloc(what, bytes)
    }

    fn address(memory: &D::Memory) -> u64 {
        D::address(memory)
    }

    fn upload(&self, src: &[u8], dst: &D::Memory, offset: usize) -> Result<()> {
        self.note(Call::Upload { bytes: src.len() });
        self.device.upload(src, dst, offset)
    }

    fn download(&self, src: &D::Memory, offset: usize, dst: &mut [u8]) -> Result<()> {
        self.note(Call::Wait { bytes: dst.len() });
        self.device.download(src, offset, dst)
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        let [x, y, z] = launch.grid;
        self.note(Call::Launch {
            kernel: launch.kernel.into(),
            shape: [x, y, z, launch.threads, launch.shared],
            args: launch.args.iter().copied().map(Arg::word).collect(),
        });
        // SAFETY: by the caller's contract.
        unsafe { self.device.launch(launch) }
    }

    fn has_products(&self) -> bool {
        self.device.has_products()
    }

    fn captures(&self) -> bool {
        self.device.captures()
    }

    unsafe fn capture(&self, commands: &[Command]) -> Result<D::Graph> {
        self.note(Call::Capture {
            commands: commands.len(),
        });
        if self.refuses.load(Ordering::Relaxed) {
            return Err(Error::Device {
                op: "capture",
                what: "refused, as was asked".into(),
            });
        }
        // SAFETY: by the caller's contract.
        unsafe { self.device.capture(commands) }
    }

    unsafe fn replay(&self, graph: &D::Graph) -> Result<()> {
        self.note(Call::Replay);
        // SAFETY: by the caller's contract.
        unsafe { self.device.replay(graph) }
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        self.note(Call::Product {
            shape: [product.rows, product.outputs],
        });
        // SAFETY: by the caller's contract.
        unsafe { self.device.product(product) }
    }

    fn join_sums(&self, sums: Option<Arc<dyn DeviceSums>>) {
        self.device.join_sums(sums);
    }

    unsafe fn sum(&self, sum: &Sum) -> Result<()> {
        self.note(Call::Sum {
            bytes: sum.count * sum.element.bytes(),
        });
        // SAFETY: by the caller's contract.
        unsafe { self.device.sum(sum) }
    }
}
