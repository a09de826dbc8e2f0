//! What the ring is made of. The tests of schedules put a checker's primitives in their place.

pub use std::sync::{Mutex, MutexGuard};

pub use tokio::sync::Notify;
