//! The context of a GPU, with the stream that everything runs on.

use cudarc::driver::{result as cuda, sys};

use super::waiting::{Sums, wait_until};
use crate::error::{Error, Result};

/// Turns the driver's errors into [`Error::Device`] of an operation.
pub(super) fn failed(op: &'static str) -> impl Fn(cuda::DriverError) -> Error {
    move |error| {
        let text = error.error_string().map_or_else(
            |_| format!("{error:?}"),
            |text| text.to_string_lossy().into_owned(),
        );
        Error::Device { op, what: text }
    }
}

/// A context and its stream. Whatever lies in the context holds this.
pub(super) struct Context {
    pub(super) device: sys::CUdevice,
    handle: sys::CUcontext,
    pub(super) stream: sys::CUstream,
    pub(super) sums: Sums,
}

// SAFETY: handles of the driver may be used from any thread that makes the context current, which
// every call does.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Makes a context of the device current, with a stream of its own.
    pub(super) fn open(device: sys::CUdevice) -> Result<Self> {
        // SAFETY: the device exists; released when this is dropped.
        let context = unsafe { cuda::primary_ctx::retain(device) }.map_err(failed("open"))?;
        // SAFETY: the context was just retained.
        unsafe { cuda::ctx::set_current(context) }.map_err(failed("open"))?;
        let stream =
            cuda::stream::create(cuda::stream::StreamKind::NonBlocking).map_err(failed("open"))?;
        Ok(Self {
            device,
            handle: context,
            stream,
            sums: Sums::default(),
        })
    }

    /// Makes the context current on this thread.
    pub(super) fn enter(&self, op: &'static str) -> Result<()> {
        // SAFETY: the context is retained until this is dropped.
        unsafe { cuda::ctx::set_current(self.handle) }.map_err(failed(op))
    }

    /// Waits until all that was started is done.
    ///
    /// # Errors
    /// [`Error::Device`]; [`Error::Sums`] where a sum does not come to an end.
    pub(super) fn wait(&self, op: &'static str) -> Result<()> {
        self.wait_for_sums()?;
        // SAFETY: the stream lives as long as this.
        unsafe { cuda::stream::synchronize(self.stream) }.map_err(failed(op))
    }

    /// Waits until all that was started is done where any sum is under way; otherwise it does
    /// nothing.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub(super) fn wait_for_sums(&self) -> Result<()> {
        if !self.sums.are_under_way() {
            return Ok(());
        }
        let Some(sums) = self.sums.joined() else {
            return Ok(());
        };
        let is_done = || {
            // SAFETY: the stream lives as long as this.
            match unsafe { sys::cuStreamQuery(self.stream) } {
                sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
                result => result.result().map(|()| true).map_err(failed("wait")),
            }
        };
        wait_until(is_done, &*sums)?;
        self.sums.end();
        Ok(())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.enter("close").is_ok() {
            // SAFETY: made in `open`, and nothing that used it is left: all of that holds this.
            let _ = unsafe { cuda::stream::destroy(self.stream) };
        }
        // SAFETY: retained in `open`.
        let _ = unsafe { cuda::primary_ctx::release(self.device) };
    }
}
