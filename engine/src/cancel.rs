//! Ending a step from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Tells a runner to abandon the step under way, and every later one, until it joins an epoch. It
/// is looked at between layers, so a step ends within the time of one. A rank that waits for
/// another in a collective does not look: abort its communicator as well.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Abandons the step under way. Returns at once; may be called from any thread, more than once.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether steps are to be abandoned now.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Lets steps run again.
    pub(crate) fn clear(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// # Errors
    /// [`Error::Cancelled`] when the step is to be abandoned.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        Ok(())
    }
}
