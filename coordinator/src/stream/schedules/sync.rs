//! The checker's primitives, which can be made faulty: a checker that finds nothing in a ring of
//! faulty primitives would find nothing in a faulty ring.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

pub use loom::sync::{Mutex, MutexGuard};

/// What is wrong with the primitives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// A notification reaches only who waits already.
    NoPermit,
    /// Nobody is notified.
    NoWake,
}

thread_local! {
    // The checker runs all threads of a model on one.
    static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
}

/// Makes the primitives of this test faulty.
pub fn set_fault(fault: Fault) {
    FAULT.set(fault);
}

/// tokio's `Notify`, each of whose operations is one step of a schedule.
#[derive(Debug, Default)]
pub struct Notify {
    step: Mutex<()>,
    notify: tokio::sync::Notify,
}

impl Notify {
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets other threads go first.
    fn step(&self) {
        drop(self.step.lock());
    }

    pub fn notify_one(&self) {
        self.step();
        match FAULT.get() {
            Fault::None => self.notify.notify_one(),
            Fault::NoPermit => self.notify.notify_waiters(),
            Fault::NoWake => {}
        }
    }

    pub async fn notified(&self) {
        self.step();
        self.notify.notified().await;
    }
}

/// Sleeps until it is woken.
#[derive(Default)]
struct Sleeper {
    woken: Mutex<bool>,
    wake: loom::sync::Condvar,
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().expect("no panic while it is held") = true;
        self.wake.notify_one();
    }
}

/// Runs a future on this thread. Its waker does nothing when it is cloned: tokio clones one with a
/// lock of its own held, where no other thread of the model may run.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let sleeper = Arc::new(Sleeper::default());
    let waker = Waker::from(sleeper.clone());
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        let mut woken = sleeper.woken.lock().expect("no panic while it is held");
        while !*woken {
            woken = sleeper.wake.wait(woken).expect("no panic while it is held");
        }
        *woken = false;
    }
}
