//! A device that writes down what it is asked for, and asks another one: for tests of what a step launches, copies and waits for.

use super::{Arg, Device, Launch, Product};
use crate::error::Result;
use std::sync::{Mutex, PoisonError};

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
    /// A copy to the host, which waits for it and for all that was started before: the only call that does.
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
    /// A product that the vendor's library was asked for.
    Product {
        /// Rows and columns of the result.
        shape: [usize; 2],
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
        }
    }
}

/// The device.
pub struct Recorded<D> {
    device: D,
    calls: Mutex<Vec<Call>>,
}

impl<D: Device> Recorded<D> {
    /// Records what `device` is asked for from now on.
    pub fn new(device: D) -> Self {
        Self { device, calls: Mutex::default() }
    }

    /// Calls since the last time this was asked.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, call: Call) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }
}

impl<D: Device> Device for Recorded<D> {
    type Memory = D::Memory;

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

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let ([x, y, z], &Launch { kernel, threads, shared, args, .. }) = (launch.grid, launch);
        let args = args.iter().copied().map(Arg::word).collect();
        self.note(Call::Launch { kernel: kernel.into(), shape: [x, y, z, threads, shared], args });
        // SAFETY: by the caller's contract.
        unsafe { self.device.launch(launch) }
    }

    unsafe fn product(&self, product: &Product) -> Result<bool> {
        self.note(Call::Product { shape: [product.rows, product.outputs] });
        // SAFETY: by the caller's contract.
        unsafe { self.device.product(product) }
    }
}
