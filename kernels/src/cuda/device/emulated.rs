//! The emulated twin of [`Device`]: the kernels of `kernels/cu`, compiled for the host. See
//! `kernels/cu/emulated`.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Device;
use crate::cuda::checks::at_least;
use crate::cuda::launch::{Arg, Command, Launch, Product, Sum};
use crate::error::{Error, Result};
use crate::sums::{DeviceSums, Summand};

unsafe extern "C" {
    fn palimpsest_emulated_launch(
        name: *const c_char,
        grid: *const u32,
        threads: *const u32,
        shared: u32,
        seed: u64,
        args: *mut *mut c_void,
        error: *mut c_char,
        error_bytes: usize,
    ) -> c_int;
}

/// Bytes after each allocation that nobody may write.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xa5;

/// Live allocations: address to bytes.
type Live = Arc<Mutex<HashMap<usize, usize>>>;

/// The device. Launches run one block after the other on the calling thread.
pub struct Emulated {
    seed: u64,
    launches: AtomicU64,
    live: Live,
    sums: Mutex<Option<Arc<dyn DeviceSums>>>,
}

impl Emulated {
    /// A device whose blocks, warps and lanes run in an order drawn from `seed`; 0 is their natural
    /// order. Results that depend on the seed show a race.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            launches: AtomicU64::new(0),
            live: Live::default(),
            sums: Mutex::default(),
        }
    }

    /// Kernels started so far.
    pub fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }

    /// Whether every allocation's guard is whole.
    fn check_guards(&self, op: &'static str) -> Result<()> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        for (&address, &bytes) in live.iter() {
            // SAFETY: the table holds live allocations only, each `bytes + GUARD` long.
            let guard =
                unsafe { std::slice::from_raw_parts((address + bytes) as *const u8, GUARD) };
            if guard.iter().any(|&byte| byte != GUARD_BYTE) {
                return Err(Error::Device {
                    op,
                    what: format!("wrote past the end of an array of {bytes} bytes"),
                });
            }
        }
        Ok(())
    }
}

/// Zeroed host memory with a guard behind it.
pub struct EmulatedMemory {
    start: *mut u8,
    bytes: usize,
    live: Live,
}

// SAFETY: plain memory; the backend orders its calls, as a stream does.
unsafe impl Send for EmulatedMemory {}
// SAFETY: as above.
unsafe impl Sync for EmulatedMemory {}

impl EmulatedMemory {
    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes.checked_add(GUARD)?, 16).ok()
    }
}

impl Drop for EmulatedMemory {
    fn drop(&mut self) {
        self.live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&(self.start as usize));
        if let Some(layout) = Self::layout(self.bytes) {
            // SAFETY: allocated with this layout in `alloc`, freed once.
            unsafe { dealloc(self.start, layout) };
        }
    }
}

impl Device for Emulated {
    type Memory = EmulatedMemory;
    /// What a graph does is to start its commands again.
    type Graph = Vec<Command>;

    fn name(&self) -> String {
        "emulated on the host".into()
    }

    /// What the least of the GPUs that kernels are compiled for has, those of compute capability
    /// 8.6.
    fn shared_bytes(&self) -> usize {
        99 << 10
    }

    fn alloc(&self, what: &'static str, bytes: usize) -> Result<EmulatedMemory> {
        let out_of_memory = || Error::OutOfMemory { what, bytes };
        let layout = EmulatedMemory::layout(bytes).ok_or_else(out_of_memory)?;
        // SAFETY: the layout is not empty, it has a guard at least.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            return Err(out_of_memory());
        }
        // SAFETY: the allocation is `bytes + GUARD` long.
        unsafe { start.add(bytes).write_bytes(GUARD_BYTE, GUARD) };
        self.live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(start as usize, bytes);
        Ok(EmulatedMemory {
            start,
            bytes,
            live: self.live.clone(),
        })
    }

    fn address(memory: &EmulatedMemory) -> u64 {
        memory.start as u64
    }

    fn upload(&self, src: &[u8], dst: &EmulatedMemory, offset: usize) -> Result<()> {
        at_least("upload", "dst", dst.bytes, offset.saturating_add(src.len()))?;
        // SAFETY: inside the allocation, by the check; the source is another one.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), dst.start.add(offset), src.len()) };
        Ok(())
    }

    fn download(&self, src: &EmulatedMemory, offset: usize, dst: &mut [u8]) -> Result<()> {
        at_least(
            "download",
            "src",
            src.bytes,
            offset.saturating_add(dst.len()),
        )?;
        // SAFETY: inside the allocation, by the check; the destination is another one.
        unsafe {
            std::ptr::copy_nonoverlapping(src.start.add(offset), dst.as_mut_ptr(), dst.len())
        };
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        let op = "launch";
        let failed = |what: String| Error::Device { op, what };
        let name = CString::new(launch.kernel).map_err(|error| failed(error.to_string()))?;
        let mut words: Vec<u64> = launch.args.iter().copied().map(Arg::word).collect();
        let mut args: Vec<*mut c_void> = words
            .iter_mut()
            .map(|word| std::ptr::from_mut(word).cast())
            .collect();
        let count = self.launches.fetch_add(1, Ordering::Relaxed);
        let seed = if self.seed == 0 {
            0
        } else {
            self.seed.wrapping_add(count.wrapping_mul(0x9e37_79b9)) | 1
        };
        let mut text = [0; 256];
        // SAFETY: by the caller's contract; all pointers live until the call returns, which is when
        // the kernel has ended.
        let code = unsafe {
            palimpsest_emulated_launch(
                name.as_ptr(),
                launch.grid.as_ptr(),
                [launch.threads, 1, 1].as_ptr(),
                launch.shared,
                seed,
                args.as_mut_ptr(),
                text.as_mut_ptr(),
                text.len(),
            )
        };
        if code != 0 {
            // SAFETY: the callee ends its text with a zero, inside the array.
            let text = unsafe { CStr::from_ptr(text.as_ptr()) };
            return Err(failed(text.to_string_lossy().into_owned()));
        }
        self.check_guards(op)
            .map_err(|error| failed(format!("{}: {error}", launch.kernel)))
    }

    fn has_products(&self) -> bool {
        false
    }

    unsafe fn product(&self, _: &Product) -> Result<()> {
        Err(Error::Device {
            op: "matmul",
            what: "the emulated device has no library for products".into(),
        })
    }

    fn join_sums(&self, sums: Option<Arc<dyn DeviceSums>>) {
        *self.sums.lock().unwrap_or_else(PoisonError::into_inner) = sums;
    }

    unsafe fn sum(&self, sum: &Sum) -> Result<()> {
        let (start, bytes) = (sum.address as usize, sum.count * sum.element.bytes());
        let sums = self
            .sums
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let failed = |what: &str| Error::Device {
            op: "sum",
            what: what.into(),
        };
        let sums = sums.ok_or_else(|| failed("no ranks were joined"))?;
        let inside =
            |(&address, &len): (&usize, &usize)| address <= start && start + bytes <= address + len;
        if !self
            .live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(inside)
        {
            return Err(failed("the array is not in the device's memory"));
        }
        // SAFETY: inside a live allocation, by the check; the device carries out one call at a
        // time.
        let array = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, bytes) };
        sums.all_reduce(Summand::on_host(sum.element, array))
    }

    fn captures(&self) -> bool {
        true
    }

    unsafe fn capture(&self, commands: &[Command]) -> Result<Vec<Command>> {
        Ok(commands.to_vec())
    }

    unsafe fn replay(&self, graph: &Vec<Command>) -> Result<()> {
        graph.iter().try_for_each(|command| {
            // SAFETY: by the caller's contract.
            unsafe { self.start(command) }
        })
    }
}
