//! The pool itself; its parent says how it works.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::sync::{
    AtomicBool, AtomicU64, AtomicUsize, Builder, Condvar, Instant, JoinHandle, Mutex, MutexGuard,
    SPINS_PER_LOOK, UnsafeCell, spin_loop, yield_now,
};

/// How long an idle worker spins before it sleeps.
pub(super) const SPIN: Duration = Duration::from_micros(50);
/// Spins of the caller, waiting for workers to leave, before it offers its core to others.
const SPINS_BEFORE_YIELD: u32 = 2000;

/// State word: bits 0..31 count the workers inside, bit 31 says open, bits 32.. are the generation.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const GENERATION: u64 = 1 << 32;

type Task<'a> = &'a (dyn Fn(usize) + Sync);

/// The current region. The closure reference is only valid while the region is open or a worker is
/// inside.
#[derive(Clone, Copy)]
struct Job {
    task: Task<'static>,
    tasks: usize,
}

struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    panicked: AtomicBool,
    shutdown: AtomicBool,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written by the one caller that holds `Pool::busy`, only while the state is
// closed with nobody inside, and read only by workers that entered an open state; the release store
// and acquire exchange of `state` order the two.
unsafe impl Sync for Shared {}
// SAFETY: as above; the closure reference in `job` is `Sync`, so it may be used from any thread.
unsafe impl Send for Shared {}

/// A fixed set of threads that run the tasks of one region at a time together with the caller.
pub struct Pool {
    shared: Arc<Shared>,
    busy: AtomicBool,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads, the caller of [`Pool::run`] included; at least one. When the
    /// system refuses a thread the pool is smaller, which [`Pool::threads`] tells.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            panicked: AtomicBool::new(false),
            shutdown: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        let workers = (1..threads)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                Builder::new()
                    .name(format!("kernel-{index}"))
                    .spawn(move || shared.work())
                    .ok()
            })
            .collect();
        Self {
            shared,
            busy: AtomicBool::new(false),
            workers,
        }
    }

    /// Threads that take part in a region, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f(0) .. f(tasks - 1)`, each once, in no particular order and possibly at the same
    /// time; returns when all have finished. Runs inline for one task or one thread, and when the
    /// pool is in use (nested or by another thread).
    ///
    /// # Panics
    /// With the payload of the first panic of `f`; tasks not yet started are then skipped.
    pub fn run(&self, tasks: usize, f: Task<'_>) {
        if tasks <= 1 || self.workers.is_empty() || self.busy.swap(true, Ordering::Acquire) {
            (0..tasks).for_each(f);
            return;
        }
        let panic = self.region(tasks, f);
        self.busy.store(false, Ordering::Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Runs `f(i, chunk i)` on consecutive chunks of `data`, the last one possibly shorter.
    ///
    /// # Panics
    /// When `chunk` is zero, and as [`Pool::run`] does.
    pub fn chunks<T: Send>(
        &self,
        data: &mut [T],
        chunk: usize,
        f: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        assert!(chunk > 0, "chunks have a length");
        let (len, base) = (data.len(), SendPtr(data.as_mut_ptr()));
        self.run(len.div_ceil(chunk), &|i| {
            let start = i * chunk;
            let count = chunk.min(len - start);
            // SAFETY: every task index runs once and `data` is borrowed for the whole region, so
            // this is the only reference to `start .. start + count`, which lies inside `data`.
            f(i, unsafe {
                std::slice::from_raw_parts_mut(base.get().add(start), count)
            });
        });
    }

    /// One region; the caller holds `busy`.
    fn region(&self, tasks: usize, f: Task<'_>) -> Option<Box<dyn Any + Send>> {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. No worker reads the reference after this function
        // returns: it closes the state and waits until nobody is inside, and `take_tasks` does not
        // unwind.
        let task = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(f) };
        let job = Job { task, tasks };
        // SAFETY: `busy` makes this the only writer, and the last region ended closed with nobody
        // inside.
        shared.job.with_mut(|place| unsafe { *place = Some(job) });
        shared.next.store(0, Ordering::Relaxed);
        let generation = shared.state.load(Ordering::Relaxed) & !(OPEN | INSIDE);
        // Sequentially consistent, as is the sleeper's look at the state: one of the two sees the
        // other.
        shared
            .state
            .store(generation.wrapping_add(GENERATION) | OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(shared.lock());
            shared.wake.notify_all();
        }
        shared.take_tasks(job);
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD {
                spin_loop()
            } else {
                yield_now()
            }
        }
        if shared.panicked.swap(false, Ordering::Relaxed) {
            return shared
                .panic
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
        }
        None
    }
}

/// A pointer that tasks share; they must write to disjoint places.
pub(crate) struct SendPtr<T>(pub *mut T);

// SAFETY: only an address; whoever dereferences it answers for the access.
unsafe impl<T: Send> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SendPtr<T> {}

impl<T> SendPtr<T> {
    /// The address. A method, so that closures capture the whole wrapper.
    pub fn get(&self) -> *mut T {
        self.0
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::SeqCst);
        drop(self.shared.lock());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker never unwinds: `take_tasks` catches what tasks throw.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes and runs tasks until none is left or one has panicked. Does not unwind.
    fn take_tasks(&self, job: Job) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= job.tasks || self.panicked.load(Ordering::Relaxed) {
                    break;
                }
                (job.task)(index);
            }
        }));
        if let Err(payload) = result {
            self.panic
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(payload);
            self.panicked.store(true, Ordering::Relaxed);
        }
    }

    /// A worker's life.
    fn work(&self) {
        let mut seen = 0u64;
        while let Some(state) = self.wait(seen) {
            // Entering fails when the region closed or another worker entered meanwhile: look
            // again.
            if self
                .state
                .compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            seen = state >> 32;
            // SAFETY: the exchange entered an open region, so the caller neither writes `job` nor
            // returns before the worker leaves below.
            let job = self.job.with(|place| unsafe { *place });
            if let Some(job) = job {
                self.take_tasks(job);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Whether `state` is an open region that this worker has not been in.
    fn is_new(state: u64, seen: u64) -> bool {
        state & OPEN != 0 && state >> 32 != seen
    }

    /// Waits for an open region of another generation than `seen`; `None` at shutdown.
    fn wait(&self, seen: u64) -> Option<u64> {
        let mut spins = 0u32;
        let mut start = None;
        loop {
            let state = self.state.load(Ordering::Acquire);
            if Self::is_new(state, seen) {
                return Some(state);
            }
            if self.shutdown.load(Ordering::Relaxed) {
                return None;
            }
            spin_loop();
            spins += 1;
            if spins.is_multiple_of(SPINS_PER_LOOK)
                && start.get_or_insert_with(Instant::now).elapsed() > SPIN
            {
                self.sleep(seen);
                start = None;
            }
        }
    }

    /// Sleeps until there is something to look at.
    fn sleep(&self, seen: u64) {
        let guard = self.lock();
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        if !Self::is_new(self.state.load(Ordering::SeqCst), seen)
            && !self.shutdown.load(Ordering::SeqCst)
        {
            // The region may be over by the time this thread wakes: `wait` then spins and sleeps
            // again.
            drop(
                self.wake
                    .wait(guard)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}
