//! What a GPU is, and seconds of it by events on its stream: for benchmarks, which report what the
//! device measured.

use std::sync::{Arc, PoisonError};

use super::{Driver, Shared, capability, cuda, driver_version, failed, sys};
use crate::cuda::at_least;
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

/// A point on the stream.
pub(super) struct Event {
    handle: sys::CUevent,
    shared: Arc<Shared>,
}

// SAFETY: an event may be used from any thread that makes its context current, which every call
// does.
unsafe impl Send for Event {}

impl Event {
    /// The point that the stream has reached with what was started so far.
    pub(super) fn now(shared: &Arc<Shared>) -> Result<Self> {
        shared.enter("event")?;
        let handle =
            cuda::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed("event"))?;
        let event = Self {
            handle,
            shared: shared.clone(),
        };
        // SAFETY: both were made in this context and live on.
        unsafe { cuda::event::record(handle, shared.stream) }.map_err(failed("event"))?;
        Ok(event)
    }

    /// Seconds from `self` to `end`, after waiting for that.
    fn until(&self, end: &Self) -> Result<f64> {
        self.shared.enter("event")?;
        // SAFETY: both events were recorded on the stream, in this order.
        let milliseconds = unsafe {
            cuda::event::synchronize(end.handle).map_err(failed("event"))?;
            cuda::event::elapsed(self.handle, end.handle).map_err(failed("event"))?
        };
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.shared.enter("event").is_ok() {
            // SAFETY: made in `now`, dropped once.
            let _ = unsafe { cuda::event::destroy(self.handle) };
        }
    }
}

/// A kernel or product between two events.
pub(super) struct Span {
    name: String,
    start: Event,
    end: Event,
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
        let multiprocessors = unsafe { cuda::device::get_attribute(self.shared.device, attribute) }
            .map_err(failed("facts"))?;
        Ok(Facts {
            name: self.name.clone(),
            capability: capability(self.shared.device)?,
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
        let start = Event::now(&self.shared)?;
        work()?;
        start.until(&Event::now(&self.shared)?)
    }

    /// Seconds of every kernel and every product that `work` starts, in order. Pauses between them
    /// do not count, so that what the host does meanwhile does not either.
    ///
    /// # Errors
    /// As [`Self::seconds`].
    pub fn kernel_seconds(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<(String, f64)>> {
        let spans = || self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        *spans() = Some(Vec::new());
        let done = work();
        let timed = spans().take().unwrap_or_default();
        done?;
        timed
            .into_iter()
            .map(|Span { name, start, end }| Ok((name, start.until(&end)?)))
            .collect()
    }

    /// Copies `bytes` from one place on the device to another.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) past an end,
    /// [`Error::Device`](crate::error::Error::Device).
    pub fn copy(
        &self,
        src: &super::DriverMemory,
        dst: &super::DriverMemory,
        bytes: usize,
    ) -> Result<()> {
        at_least("copy", "src", src.bytes, bytes)?;
        at_least("copy", "dst", dst.bytes, bytes)?;
        self.shared.enter("copy")?;
        // SAFETY: inside both allocations, by the checks.
        unsafe { cuda::memcpy_dtod_async(dst.address, src.address, bytes, self.shared.stream) }
            .map_err(failed("copy"))
    }

    /// Whether kernels are timed one by one.
    pub(super) fn times_kernels(&self) -> bool {
        self.spans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// Begins the span of a kernel where kernels are timed.
    pub(super) fn begin_span(&self) -> Result<Option<Event>> {
        self.times_kernels()
            .then(|| Event::now(&self.shared))
            .transpose()
    }

    /// Ends what [`Self::begin_span`] began.
    pub(super) fn end_span(&self, name: &str, start: Option<Event>) -> Result<()> {
        let Some(start) = start else { return Ok(()) };
        let end = Event::now(&self.shared)?;
        if let Some(spans) = &mut *self.spans.lock().unwrap_or_else(PoisonError::into_inner) {
            spans.push(Span {
                name: name.to_owned(),
                start,
                end,
            });
        }
        Ok(())
    }
}
