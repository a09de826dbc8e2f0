//! A device that accepts everything and computes nothing: what the host does for a step can be
//! timed with it where there is no GPU, for models and caches that fit in no memory here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Device;
use crate::cuda::checks::at_least;
use crate::cuda::launch::{Command, Launch, Product, Sum};
use crate::error::Result;
use crate::sums::DeviceSums;

/// Shared memory of a block of an H100 or H200, less what a kernel may have besides.
const SHARED_BYTES: usize = 226 << 10;

/// The device. Its clock are counters of what it was asked for.
#[derive(Debug, Default)]
pub struct Null {
    /// The next free address: no two arrays overlap.
    next: AtomicU64,
    asked: Asked,
}

/// Counters of a device.
#[derive(Debug, Default)]
struct Asked {
    uploads: AtomicU64,
    uploaded: AtomicU64,
    waits: AtomicU64,
    commands: AtomicU64,
    captures: AtomicU64,
    replays: AtomicU64,
}

/// What a device was asked for so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Copies to the device.
    pub uploads: u64,
    /// Their bytes.
    pub uploaded: u64,
    /// Copies to the host, for each of which the host waits.
    pub waits: u64,
    /// Commands that were started one by one.
    pub commands: u64,
    /// Graphs that were captured.
    pub captures: u64,
    /// Graphs that were started.
    pub replays: u64,
}

/// Addresses of an array, behind which there is nothing.
#[derive(Debug)]
pub struct NullMemory {
    address: u64,
    bytes: usize,
}

impl Null {
    /// What it was asked for since it was made.
    pub fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            uploads: get(&self.asked.uploads),
            uploaded: get(&self.asked.uploaded),
            waits: get(&self.asked.waits),
            commands: get(&self.asked.commands),
            captures: get(&self.asked.captures),
            replays: get(&self.asked.replays),
        }
    }
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

impl Device for Null {
    type Memory = NullMemory;
    type Graph = ();

    fn name(&self) -> String {
        "nothing".into()
    }

    fn shared_bytes(&self) -> usize {
        SHARED_BYTES
    }

    fn alloc(&self, _what: &'static str, bytes: usize) -> Result<NullMemory> {
        let size = (bytes.max(1) as u64).next_multiple_of(256);
        let address = (1 << 40) + self.next.fetch_add(size, Ordering::Relaxed);
        Ok(NullMemory { address, bytes })
    }

    fn address(memory: &NullMemory) -> u64 {
        memory.address
    }

    fn upload(&self, src: &[u8], dst: &NullMemory, offset: usize) -> Result<()> {
        at_least("upload", "dst", dst.bytes, offset.saturating_add(src.len()))?;
        add(&self.asked.uploads, 1);
        add(&self.asked.uploaded, src.len());
        Ok(())
    }

    fn download(&self, src: &NullMemory, offset: usize, dst: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(dst.len());
        at_least("download", "src", src.bytes, end)?;
        add(&self.asked.waits, 1);
        dst.fill(0);
        Ok(())
    }

    unsafe fn launch(&self, _launch: &Launch) -> Result<()> {
        add(&self.asked.commands, 1);
        Ok(())
    }

    fn has_products(&self) -> bool {
        true
    }

    unsafe fn product(&self, _product: &Product) -> Result<()> {
        add(&self.asked.commands, 1);
        Ok(())
    }

    fn join_sums(&self, _sums: Option<Arc<dyn DeviceSums>>) {}

    unsafe fn sum(&self, _sum: &Sum) -> Result<()> {
        add(&self.asked.commands, 1);
        Ok(())
    }

    fn captures(&self) -> bool {
        true
    }

    unsafe fn capture(&self, _commands: &[Command]) -> Result<()> {
        add(&self.asked.captures, 1);
        Ok(())
    }

    unsafe fn replay(&self, _graph: &()) -> Result<()> {
        add(&self.asked.replays, 1);
        Ok(())
    }
}
