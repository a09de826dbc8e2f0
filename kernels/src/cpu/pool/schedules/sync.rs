//! The checker's primitives, which can be made faulty: a checker that finds nothing in a pool of
//! faulty primitives would find nothing in a faulty pool.

use std::cell::Cell;
use std::sync::LockResult;
use std::sync::atomic::Ordering;
use std::time::Duration;

use loom::sync::atomic::fence;

pub(super) use loom::cell::UnsafeCell;
pub(super) use loom::hint::spin_loop;
pub(super) use loom::sync::{Mutex, MutexGuard};
pub(super) use loom::thread::{Builder, JoinHandle, yield_now};

/// A worker looks once before it sleeps: more spins are the same schedules again.
pub(super) const SPINS_PER_LOOK: u32 = 1;

/// What is wrong with the primitives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// Nothing.
    None,
    /// Nothing is ordered by an atomic operation.
    Relaxed,
    /// Atomic operations release and acquire, but have no total order.
    NoTotalOrder,
    /// An exchange succeeds whatever the word holds.
    BlindExchange,
    /// An addition is a load and a store.
    TornAddition,
    /// Nobody is woken.
    NoWake,
}

thread_local! {
    // The checker runs all threads of a model on one.
    static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
}

/// Makes the primitives of this test faulty.
pub(super) fn set_fault(fault: Fault) {
    FAULT.set(fault);
}

/// Carries `operation` out with the order that the fault leaves of `order`. The checker knows
/// sequential consistency of fences alone, so an operation of that order stands between two.
fn ordered<R>(order: Ordering, operation: impl FnOnce(Ordering) -> R) -> R {
    match (FAULT.get(), order) {
        (Fault::Relaxed, _) => operation(Ordering::Relaxed),
        (Fault::NoTotalOrder, _) => operation(order),
        (_, Ordering::SeqCst) => {
            fence(Ordering::SeqCst);
            let result = operation(order);
            fence(Ordering::SeqCst);
            result
        }
        _ => operation(order),
    }
}

/// An atomic of the checker's, with the operations that all of them have here.
macro_rules! atomic {
    ($name:ident, $value:ty) => {
        pub(super) struct $name(loom::sync::atomic::$name);

        impl $name {
            pub(super) fn new(value: $value) -> Self {
                Self(loom::sync::atomic::$name::new(value))
            }

            pub(super) fn load(&self, order: Ordering) -> $value {
                ordered(order, |order| self.0.load(order))
            }

            pub(super) fn store(&self, value: $value, order: Ordering) {
                ordered(order, |order| self.0.store(value, order));
            }
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicU64, u64);
atomic!(AtomicUsize, usize);

impl AtomicBool {
    pub(super) fn swap(&self, value: bool, order: Ordering) -> bool {
        ordered(order, |order| self.0.swap(value, order))
    }
}

impl AtomicUsize {
    pub(super) fn fetch_add(&self, value: usize, order: Ordering) -> usize {
        if FAULT.get() == Fault::TornAddition {
            let before = self.0.load(Ordering::Acquire);
            self.0.store(before + value, Ordering::Release);
            return before;
        }
        ordered(order, |order| self.0.fetch_add(value, order))
    }

    pub(super) fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
        ordered(order, |order| self.0.fetch_sub(value, order))
    }
}

impl AtomicU64 {
    pub(super) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        ordered(order, |order| self.0.fetch_sub(value, order))
    }

    pub(super) fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        ordered(order, |order| self.0.fetch_and(value, order))
    }

    pub(super) fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        if FAULT.get() == Fault::BlindExchange {
            return Ok(self.0.fetch_add(new - current, success));
        }
        let failure = match FAULT.get() {
            Fault::Relaxed => Ordering::Relaxed,
            _ => failure,
        };
        ordered(success, |success| {
            self.0.compare_exchange(current, new, success, failure)
        })
    }
}

pub(super) struct Condvar(loom::sync::Condvar);

impl Condvar {
    pub(super) fn new() -> Self {
        Self(loom::sync::Condvar::new())
    }

    pub(super) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.0.wait(guard)
    }

    pub(super) fn notify_all(&self) {
        if FAULT.get() != Fault::NoWake {
            self.0.notify_all();
        }
    }
}

/// A clock on which every wait was long: a worker may fall asleep at any time.
pub(super) struct Instant;

impl Instant {
    pub(super) fn now() -> Self {
        Self
    }

    pub(super) fn elapsed(&self) -> Duration {
        Duration::MAX
    }
}
