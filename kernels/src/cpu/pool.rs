//! Fork-join thread pool for short parallel regions.
//!
//! A decode step has some two hundred regions of a few microseconds each, so a region may not cost
//! a system call: workers spin for `SPIN` after their last task before they sleep, and the caller
//! takes tasks itself. A worker that has not woken up by the time the tasks are gone is not waited
//! for.
//!
//! One word of state holds the generation of the current region, whether it is open, and how many
//! workers are inside:
//! ```text
//! caller:  write job ▸ state = (generation+1, open, 0) ▸ take tasks ▸ close
//!          ▸ wait until nobody is inside
//! worker:  open and generation unseen ▸ enter (compare-exchange) ▸ take tasks ▸ leave
//! ```
//! Deliberately absent: work stealing, nested parallelism (a nested region runs inline), thread
//! affinity.
//!
//! `fork_join` is the pool; `sync` holds the primitives that it is made of, so that a test can run
//! the same file under a checker of schedules.

mod fork_join;
mod sync;

#[cfg(all(test, not(miri)))]
mod schedules;
#[cfg(test)]
mod tests;

pub use fork_join::Pool;
pub(crate) use fork_join::SendPtr;
