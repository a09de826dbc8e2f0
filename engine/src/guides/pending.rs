//! A mask that is being made.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use palimpsest_guide::{Error, Mask};

/// A mask, or what is wrong with the guide.
type Made = Result<Mask, Error>;

/// A mask that is being made on another thread.
pub struct Pending {
    reply: Receiver<Made>,
    made: Option<Made>,
}

impl Pending {
    /// Where the mask is sent, and where it comes.
    pub(super) fn new() -> (SyncSender<Made>, Self) {
        let (sender, reply) = mpsc::sync_channel(1);
        (sender, Self { reply, made: None })
    }

    /// Waits for it, but no longer than `limit`. Returns whether it has come.
    pub(crate) fn wait(&mut self, limit: Duration) -> bool {
        if self.made.is_none() {
            self.made = match self.reply.recv_timeout(limit) {
                Ok(made) => Some(made),
                Err(RecvTimeoutError::Timeout) => None,
                // The thread is gone, or the library's panic ended the job.
                Err(RecvTimeoutError::Disconnected) => Some(Err(Error::Stuck)),
            };
        }
        self.made.is_some()
    }

    /// The mask, or what is wrong with the guide, once it has come.
    pub(crate) fn made(&self) -> Option<Result<&Mask, &Error>> {
        self.made.as_ref().map(Result::as_ref)
    }
}
