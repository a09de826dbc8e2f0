//! What a GPU is and how long it takes: for benchmarks, which report what the device measured.

use cudarc::driver::{result as cuda, sys};

use super::context::failed;
use super::requirements::{capability, driver_version};
use super::timing::Event;
use super::{Driver, DriverMemory};
use crate::cuda::checks::at_least;
use crate::error::Result;

/// A GPU and its driver, for reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Newest CUDA the driver is for, as it counts: 13000 is 13.0.
    pub driver: i32,
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// Free bytes, when asked.
    pub free: usize,
    /// Bytes in all.
    pub total: usize,
    /// Whether cuBLAS was found.
    pub blas: bool,
}

impl Driver {
    /// What this is.
    ///
    /// # Errors
    /// [`Error::Device`](crate::error::Error::Device).
    pub fn facts(&self) -> Result<Facts> {
        let (free, total) = self.memory()?;
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        // SAFETY: the device exists.
        let multiprocessors =
            unsafe { cuda::device::get_attribute(self.context.device, attribute) }
                .map_err(failed("facts"))?;
        Ok(Facts {
            name: self.name.clone(),
            capability: capability(self.context.device)?,
            driver: driver_version()?,
            multiprocessors,
            free,
            total,
            blas: self.has_blas(),
        })
    }

    /// Seconds that the stream takes for what `work` starts, pauses included.
    ///
    /// # Errors
    /// Those of `work`, and [`Error::Device`](crate::error::Error::Device).
    pub fn seconds(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let start = Event::now(&self.context)?;
        work()?;
        start.until(&Event::now(&self.context)?)
    }

    /// Seconds of every kernel and every product that `work` starts, in order. Pauses between them
    /// do not count, so that what the host does meanwhile does not either.
    ///
    /// # Errors
    /// As [`Self::seconds`].
    pub fn kernel_seconds(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<(String, f64)>> {
        self.timer.start();
        let done = work();
        let seconds = self.timer.stop();
        done?;
        seconds
    }

    /// Copies `bytes` from one place on the device to another.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) past an end,
    /// [`Error::Device`](crate::error::Error::Device).
    pub fn copy(&self, src: &DriverMemory, dst: &DriverMemory, bytes: usize) -> Result<()> {
        at_least("copy", "src", src.bytes, bytes)?;
        at_least("copy", "dst", dst.bytes, bytes)?;
        self.context.enter("copy")?;
        // SAFETY: inside both allocations, by the checks.
        unsafe { cuda::memcpy_dtod_async(dst.address, src.address, bytes, self.context.stream) }
            .map_err(failed("copy"))
    }
}
