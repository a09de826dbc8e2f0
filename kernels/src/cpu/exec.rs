//! Where kernels run: the threads and the instructions.

use super::pool::Pool;
use super::simd::SimdLevel;

/// Threads and instructions of a backend.
#[derive(Clone, Copy)]
pub(crate) struct Exec<'a> {
    /// Threads of the backend.
    pub(crate) pool: &'a Pool,
    /// Instructions that were found, or asked for.
    pub(crate) level: SimdLevel,
}

impl Exec<'_> {
    /// Runs `tasks` tasks on the pool when `work` values make that worth it, else here, in order.
    pub(crate) fn run(&self, tasks: usize, work: usize, task: &(dyn Fn(usize) + Sync)) {
        /// Below this many values waking the threads costs more than it gains.
        const WORTH: usize = 16 * 1024;
        if tasks > 1 && work > WORTH {
            self.pool.run(tasks, task)
        } else {
            (0..tasks).for_each(task)
        }
    }

    /// Runs `task` for every item, in parallel where items are `apart`, that is share no page, else
    /// in order, so that the later one wins.
    pub(crate) fn run_items(&self, items: usize, apart: bool, task: &(dyn Fn(usize) + Sync)) {
        if apart {
            self.pool.run(items, task)
        } else {
            (0..items).for_each(task)
        }
    }
}
