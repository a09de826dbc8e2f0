//! The checker's primitives: tokio's, each of whose operations is one step of a schedule. They can
//! be made faulty, because a checker that finds nothing in a mailbox of faulty primitives would
//! find nothing in a faulty mailbox.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use loom::sync::Mutex;

/// What is wrong with the primitives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Commands that wait when the thread ends are never dropped.
    KeptCommands,
    /// Nobody is woken by the end.
    SilentEnd,
    /// The thread does not learn that the last handle has gone.
    SilentHandles,
}

thread_local! {
    // The checker runs all threads of a model on one.
    static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
    /// What went while a panic unwound: no thread may be switched there.
    static UNWOUND: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Makes the primitives of this test faulty.
pub fn set_fault(fault: Fault) {
    FAULT.set(fault);
    // Of a model that broke: its locks are none any more.
    std::mem::forget(UNWOUND.take());
}

/// What a scenario panics with. Others are the checker's or of an assertion, and must be seen.
pub struct Asked;

pub fn catch_panic<T>(act: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(value) => Some(value),
        Err(payload) if payload.is::<Asked>() => {
            drop(UNWOUND.take());
            None
        }
        Err(payload) => resume_unwind(payload),
    }
}

/// Where threads of a model may be switched: what two ends of a channel do depends on each other.
#[derive(Clone, Debug)]
struct Steps(Arc<Mutex<()>>);

impl Steps {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(())))
    }

    /// Lets other threads go first.
    fn step(&self) {
        drop(self.0.lock());
    }
}

/// An end of a channel, whose going is a step as well.
#[derive(Debug)]
struct Ended<T: 'static> {
    end: Option<T>,
    steps: Steps,
    /// The fault under which it goes in silence.
    silent: Fault,
}

impl<T: 'static> Ended<T> {
    fn new(end: T, steps: &Steps, silent: Fault) -> Self {
        Self {
            end: Some(end),
            steps: steps.clone(),
            silent,
        }
    }

    fn step(&self) -> &T {
        self.steps.step();
        self.end.as_ref().expect("taken by the drop alone")
    }

    fn step_mut(&mut self) -> &mut T {
        self.steps.step();
        self.end.as_mut().expect("taken by the drop alone")
    }

    fn take(mut self) -> T {
        self.steps.step();
        self.end.take().expect("taken by the drop alone")
    }
}

impl<T: 'static> Drop for Ended<T> {
    fn drop(&mut self) {
        let Some(end) = self.end.take() else { return };
        if FAULT.get() != Fault::None && FAULT.get() == self.silent {
            std::mem::forget(end);
            return;
        }
        if std::thread::panicking() {
            UNWOUND.with_borrow_mut(|unwound| unwound.push(Box::new(end)));
            return;
        }
        self.steps.step();
        drop(end);
    }
}

pub mod mpsc {
    use tokio::sync::mpsc;

    use super::{Ended, Fault, Steps, block_on};

    #[derive(Debug)]
    pub struct Sender<T: 'static>(Ended<mpsc::Sender<T>>);

    #[derive(Debug)]
    pub struct Receiver<T: 'static>(Ended<mpsc::Receiver<T>>);

    pub fn channel<T: 'static>(capacity: usize) -> (Sender<T>, Receiver<T>) {
        let (steps, (send, receive)) = (Steps::new(), mpsc::channel(capacity));
        (
            Sender(Ended::new(send, &steps, Fault::SilentHandles)),
            Receiver(Ended::new(receive, &steps, Fault::KeptCommands)),
        )
    }

    impl<T: 'static> Clone for Sender<T> {
        fn clone(&self) -> Self {
            let send = self.0.step().clone();
            Self(Ended::new(send, &self.0.steps, self.0.silent))
        }
    }

    impl<T: 'static> Sender<T> {
        pub async fn send(&self, value: T) -> Result<(), mpsc::error::SendError<T>> {
            self.0.step().send(value).await
        }
    }

    impl<T: 'static> Receiver<T> {
        pub fn blocking_recv(&mut self) -> Option<T> {
            block_on(self.0.step_mut().recv())
        }
    }
}

pub mod oneshot {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::sync::oneshot;

    use super::{Ended, Fault, Steps};

    #[derive(Debug)]
    pub struct Sender<T: 'static>(Ended<oneshot::Sender<T>>);

    #[derive(Debug)]
    pub struct Receiver<T: 'static>(Ended<oneshot::Receiver<T>>);

    pub fn channel<T: 'static>() -> (Sender<T>, Receiver<T>) {
        let (steps, (send, receive)) = (Steps::new(), oneshot::channel());
        (
            Sender(Ended::new(send, &steps, Fault::None)),
            Receiver(Ended::new(receive, &steps, Fault::None)),
        )
    }

    impl<T: 'static> Sender<T> {
        pub fn send(self, value: T) -> Result<(), T> {
            self.0.take().send(value)
        }
    }

    impl<T: 'static> Future for Receiver<T> {
        type Output = Result<T, oneshot::error::RecvError>;

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
            Pin::new(self.0.step_mut()).poll(cx)
        }
    }
}

/// tokio's own draws lots for whom it wakes first, so that no schedule could be run again.
pub mod watch {
    use std::sync::{Arc, Mutex, MutexGuard};

    use tokio::sync::Notify;

    use super::{FAULT, Fault, Steps};

    #[derive(Debug)]
    struct Shared<T> {
        value: Mutex<T>,
        version: Mutex<Version>,
        changed: Notify,
        steps: Steps,
    }

    #[derive(Debug, Default)]
    struct Version {
        number: u64,
        is_last: bool,
    }

    #[derive(Debug)]
    pub struct Sender<T>(Arc<Shared<T>>);

    #[derive(Debug)]
    pub struct Receiver<T> {
        shared: Arc<Shared<T>>,
        seen: u64,
    }

    pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
        let shared = Arc::new(Shared {
            value: Mutex::new(value),
            version: Mutex::default(),
            changed: Notify::new(),
            steps: Steps::new(),
        });
        let receiver = Receiver {
            shared: shared.clone(),
            seen: 0,
        };
        (Sender(shared), receiver)
    }

    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        // No thread of a model is switched while it is held.
        mutex.lock().expect("no panic while it is held")
    }

    impl<T> Shared<T> {
        fn tell(&self, change: impl FnOnce(&mut Version)) {
            change(&mut lock(&self.version));
            if FAULT.get() != Fault::SilentEnd {
                self.changed.notify_waiters();
            }
        }
    }

    impl<T> Sender<T> {
        pub fn send_replace(&self, value: T) {
            self.0.steps.step();
            *lock(&self.0.value) = value;
            self.0.tell(|version| version.number += 1);
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.steps.step();
            self.0.tell(|version| version.is_last = true);
        }
    }

    impl<T> Clone for Receiver<T> {
        fn clone(&self) -> Self {
            Self {
                shared: self.shared.clone(),
                seen: self.seen,
            }
        }
    }

    impl<T> Receiver<T> {
        pub fn borrow_and_update(&mut self) -> MutexGuard<'_, T> {
            self.shared.steps.step();
            self.seen = lock(&self.shared.version).number;
            lock(&self.shared.value)
        }

        pub async fn changed(&mut self) -> Result<(), ()> {
            loop {
                self.shared.steps.step();
                let notified = self.shared.changed.notified();
                {
                    let version = lock(&self.shared.version);
                    if version.number != self.seen {
                        self.seen = version.number;
                        return Ok(());
                    }
                    if version.is_last {
                        return Err(());
                    }
                }
                notified.await;
            }
        }
    }
}

/// Sleeps until it is woken.
struct Sleeper(loom::sync::Notify);

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

/// Runs a future on this thread. Its waker does nothing when it is cloned: tokio clones one with a
/// lock of its own held, where no other thread of the model may run.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let sleeper = Arc::new(Sleeper(loom::sync::Notify::new()));
    let waker = Waker::from(sleeper.clone());
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        sleeper.0.wait();
    }
}

/// Begins a future and drops it.
pub fn poll_once(future: impl Future) {
    let mut future = pin!(future);
    let _ = future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
}
