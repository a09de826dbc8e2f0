//! A mask that is being made.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use palimpsest_guide::{Error, Mask};

use crate::cancel::Cancel;

/// How often one who waits looks whether the step was abandoned.
const PAUSE: Duration = Duration::from_millis(20);

/// A mask that is being made on another thread.
pub struct Pending(Receiver<Result<Mask, Error>>);

impl Pending {
    /// Where the mask is sent, and where it comes.
    pub(super) fn new() -> (SyncSender<Result<Mask, Error>>, Self) {
        let (reply, mask) = mpsc::sync_channel(1);
        (reply, Self(mask))
    }

    /// Waits for the mask, or for what is wrong with the guide.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`] when the step was abandoned meanwhile.
    pub(crate) fn wait(&self, cancel: &Cancel) -> crate::Result<Result<Mask, Error>> {
        loop {
            match self.0.recv_timeout(PAUSE) {
                Ok(mask) => return Ok(mask),
                Err(RecvTimeoutError::Timeout) => cancel.check()?,
                // The thread is gone, or the library's panic ended the job.
                Err(RecvTimeoutError::Disconnected) => return Ok(Err(Error::Stuck)),
            }
        }
    }
}
