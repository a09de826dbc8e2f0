//! Seconds by events on the stream.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result as cuda, sys};

use super::context::{Context, failed};
use crate::error::Result;

/// A point on the stream.
pub(super) struct Event {
    handle: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: an event may be used from any thread that makes its context current, which every call
// does.
unsafe impl Send for Event {}

impl Event {
    /// The point that the stream has reached with what was started so far.
    pub(super) fn now(context: &Arc<Context>) -> Result<Self> {
        context.enter("event")?;
        let handle =
            cuda::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed("event"))?;
        let event = Self {
            handle,
            context: context.clone(),
        };
        // SAFETY: both were made in this context and live on.
        unsafe { cuda::event::record(handle, context.stream) }.map_err(failed("event"))?;
        Ok(event)
    }

    /// Seconds from `self` to `end`, after waiting for that.
    pub(super) fn until(&self, end: &Self) -> Result<f64> {
        self.context.enter("event")?;
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
        if self.context.enter("event").is_ok() {
            // SAFETY: made in `now`, dropped once.
            let _ = unsafe { cuda::event::destroy(self.handle) };
        }
    }
}

/// A kernel or product between two events.
struct Span {
    name: String,
    start: Event,
    end: Event,
}

/// Times kernels one by one while it is asked to.
#[derive(Default)]
pub(super) struct Timer(Mutex<Option<Vec<Span>>>);

impl Timer {
    fn spans(&self) -> MutexGuard<'_, Option<Vec<Span>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether kernels are timed.
    pub(super) fn is_on(&self) -> bool {
        self.spans().is_some()
    }

    /// Times kernels from now on.
    pub(super) fn start(&self) {
        *self.spans() = Some(Vec::new());
    }

    /// Times none from now on; returns the seconds of each kernel since [`Self::start`].
    pub(super) fn stop(&self) -> Result<Vec<(String, f64)>> {
        let timed = self.spans().take().unwrap_or_default();
        timed
            .into_iter()
            .map(|Span { name, start, end }| Ok((name, start.until(&end)?)))
            .collect()
    }

    /// Begins the span of a kernel, where kernels are timed.
    pub(super) fn begin(&self, context: &Arc<Context>) -> Result<Option<Event>> {
        self.is_on().then(|| Event::now(context)).transpose()
    }

    /// Ends what [`Self::begin`] began.
    pub(super) fn end(
        &self,
        context: &Arc<Context>,
        name: &str,
        start: Option<Event>,
    ) -> Result<()> {
        let Some(start) = start else { return Ok(()) };
        let end = Event::now(context)?;
        if let Some(spans) = &mut *self.spans() {
            spans.push(Span {
                name: name.to_owned(),
                start,
                end,
            });
        }
        Ok(())
    }
}
