//! Waiting for the stream, which does not end by itself when a rank has died in the middle of a sum.
//!
//! NCCL's kernel spins on the GPU until its peers have come; only an abort of the communicator, by whoever connects the ranks, ends
//! it. So while sums are under way the stream is asked again and again, and so are they: a thread that sleeps in the driver could
//! be told of nothing.

use super::{Shared, cuda, failed, sys};
use crate::error::Result;
use crate::sums::DeviceSums;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Questions without a pause: a step of decoding takes milliseconds, and its answer should not wait.
const EAGER: u32 = 20_000;
/// Pause between later ones.
const PAUSE: Duration = Duration::from_micros(50);
/// The stream is asked as often before the sums are: that takes a lock.
const ASKED: u32 = 64;

/// Who sums with other ranks, and whether any sum may be under way.
#[derive(Default)]
pub(super) struct Sums {
    joined: Mutex<Option<Arc<dyn DeviceSums>>>,
    under_way: AtomicBool,
}

impl Sums {
    /// From now on with these.
    pub(super) fn join(&self, sums: Option<Arc<dyn DeviceSums>>) {
        *self.joined.lock().unwrap_or_else(PoisonError::into_inner) = sums;
        // Those of the epoch before were aborted, so they come to an end.
        self.under_way.store(false, Ordering::Release);
    }

    pub(super) fn joined(&self) -> Option<Arc<dyn DeviceSums>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A sum is put on the stream, or a graph that has some.
    pub(super) fn begin(&self) {
        self.under_way.store(true, Ordering::Release);
    }
}

impl Shared {
    /// Waits until all that was started is done.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device); [`Error::Sums`](crate::Error::Sums) where a sum does not come to an end.
    pub(super) fn wait(&self, op: &'static str) -> Result<()> {
        self.wait_for_sums()?;
        // SAFETY: the stream lives as long as this.
        unsafe { cuda::stream::synchronize(self.stream) }.map_err(failed(op))
    }

    /// The same where any sum is under way; otherwise it does nothing.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub(super) fn wait_for_sums(&self) -> Result<()> {
        if !self.sums.under_way.load(Ordering::Acquire) {
            return Ok(());
        }
        let Some(sums) = self.sums.joined() else { return Ok(()) };
        for asked in 0u32.. {
            // SAFETY: the stream lives as long as this.
            match unsafe { sys::cuStreamQuery(self.stream) } {
                sys::CUresult::CUDA_ERROR_NOT_READY => {}
                result => {
                    result.result().map_err(failed("wait"))?;
                    self.sums.under_way.store(false, Ordering::Release);
                    return Ok(());
                }
            }
            if asked >= EAGER || asked % ASKED == 0 {
                sums.check()?;
            }
            if asked >= EAGER {
                std::thread::sleep(PAUSE);
            } else {
                std::hint::spin_loop();
            }
        }
        Ok(())
    }
}
