//! Commands captured from the stream: a step of decoding is started by one call of the driver
//! instead of hundreds.
//!
//! Launches are captured, and sums over ranks between them. Copies stay outside: what a step
//! uploads is longer or shorter, and the host waits for its answer.
//!
//! NCCL takes part in a capture as in a stream: it puts its kernel there, from a thread of its own
//! where its calls do not block. A capture of mode thread-local forbids other threads nothing, and
//! NCCL relaxes the mode itself around what it allocates. A graph keeps what NCCL made for it until
//! it is dropped, and a communicator is not given back before: see `Stream::join_sums`. Not yet run
//! on a GPU.

use std::sync::Arc;

use cudarc::driver::{result as cuda, sys};

use super::context::{Context, failed};
use crate::error::{Error, Result};

/// A graph that can be started on the stream, again and again, once at a time as the stream is in
/// order.
pub struct Graph {
    executable: sys::CUgraphExec,
    has_sums: bool,
    context: Arc<Context>,
}

// SAFETY: a graph may be used from any thread that makes its context current, which every call
// does, one at a time: the backend keeps it behind its lock.
unsafe impl Send for Graph {}

impl Graph {
    /// What `start` starts on the stream, captured instead of carried out; whether there are sums
    /// over ranks in it. The stream goes on as before, whatever happens.
    pub(super) fn of(
        context: &Arc<Context>,
        has_sums: bool,
        start: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        context.enter("capture")?;
        // Other threads may allocate and copy meanwhile: that is no concern of this capture.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `context`.
        unsafe { cuda::stream::begin_capture(context.stream, mode) }.map_err(failed("capture"))?;
        let started = start();
        // Ends the capture also when something could not be started: a stream that captures carries
        // nothing out. SAFETY: it was begun above, by this thread.
        let captured =
            unsafe { cuda::stream::end_capture(context.stream) }.map_err(failed("capture"));
        // What could not be started says more than that nothing was captured then.
        let captured = match &started {
            Ok(()) => captured?,
            Err(_) => captured.unwrap_or(std::ptr::null_mut()),
        };
        if let Err(error) = started {
            if !captured.is_null() {
                // SAFETY: it was just made, and nothing else has it.
                let _ = unsafe { cuda::graph::destroy(captured) };
            }
            return Err(error);
        }
        if captured.is_null() {
            return Err(Error::Device {
                op: "capture",
                what: "the driver made no graph".into(),
            });
        }
        // SAFETY: the graph was just made, and is not used after it was destroyed.
        let executable = unsafe {
            let made = cuda::graph::instantiate(captured, sys::CUgraphInstantiate_flags(0));
            let _ = cuda::graph::destroy(captured);
            made.map_err(failed("capture"))?
        };
        Ok(Self {
            executable,
            has_sums,
            context: context.clone(),
        })
    }

    /// Starts it on the stream.
    pub(super) fn start(&self) -> Result<()> {
        self.context.enter("replay")?;
        if self.has_sums {
            self.context.sums.begin();
        }
        // SAFETY: both live as long as this.
        unsafe { cuda::graph::launch(self.executable, self.context.stream) }
            .map_err(failed("replay"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.enter("close").is_ok() {
            // SAFETY: made in `of`, dropped once; the driver keeps what the stream has not
            // finished.
            let _ = unsafe { cuda::graph::exec_destroy(self.executable) };
        }
    }
}
