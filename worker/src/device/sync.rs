//! What the mailbox is made of. The tests of schedules put a checker's primitives in their place.

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use tokio::sync::{mpsc, oneshot, watch};

/// What `act` returns; `None` where it panics. Nothing that it owns is looked at after that.
pub fn catch_panic<T>(act: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(act)).ok()
}
