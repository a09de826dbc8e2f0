//! The pool under loom, which runs a short scenario under every schedule that its threads can have
//! and under every value that the memory model lets a load return.
//!
//! The file of the pool is compiled here a second time, made of the checker's primitives. Each
//! property stands beside faults of those primitives that break it and must be found.

#[path = "fork_join.rs"]
#[allow(clippy::duplicate_mod, reason = "the same file over other primitives")]
#[allow(dead_code, reason = "the scenarios need less than the kernels")]
mod fork_join;
mod sync;

use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};

use self::fork_join::Pool;
use self::sync::{Condvar, Fault, Mutex, UnsafeCell, set_fault};

/// What a scenario's tasks throw. Not by a macro, which would print it under every schedule.
const THROWN: &str = "thrown by a task";

thread_local! {
    /// The first panic of an exploration: what follows it is the end of a broken model.
    static FOUND: RefCell<Option<String>> = const { RefCell::new(None) };
    static EXPLORES: Cell<bool> = const { Cell::new(false) };
}

/// Keeps the first message of a panic under exploration, and prints those of other tests.
fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |info| {
            if EXPLORES.get() {
                let found = || info.to_string();
                FOUND.with_borrow_mut(|first| {
                    first.get_or_insert_with(found);
                });
            } else {
                print(info);
            }
        }));
    });
}

/// Runs a scenario under all schedules of at most `preemptions` forced switches, and returns how
/// many they were, or what was found.
fn explore(fault: Fault, preemptions: usize, scenario: fn()) -> Result<u64, String> {
    install_hook();
    set_fault(fault);
    FOUND.take();
    EXPLORES.set(true);
    let schedules = Arc::new(AtomicU64::new(0));
    let counted = schedules.clone();
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        model.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            scenario();
        });
    }));
    EXPLORES.set(false);
    set_fault(Fault::None);

    let schedules = schedules.load(Ordering::Relaxed);
    match outcome {
        Ok(()) => Ok(schedules),
        Err(_) => {
            let found = FOUND.take().unwrap_or_default();
            Err(format!("schedule {schedules}: {found}"))
        }
    }
}

/// A pool that is left as it is when the model is broken: nothing can be waited for then.
struct Owned(ManuallyDrop<Pool>);

impl Owned {
    fn new(threads: usize) -> Self {
        Self(ManuallyDrop::new(Pool::new(threads)))
    }
}

impl Deref for Owned {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        &self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: nothing looks at the pool after this.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}

/// A place per task. The checker refuses accesses that nothing orders.
struct Places(Vec<UnsafeCell<u32>>);

// SAFETY: the checker ends a schedule in which two accesses are not ordered.
unsafe impl Sync for Places {}

impl Places {
    fn new(tasks: usize) -> Self {
        Self((0..tasks).map(|_| UnsafeCell::new(0)).collect())
    }

    /// What a task does.
    fn visit(&self, task: usize) {
        // SAFETY: the checker has seen that this access is the only one.
        self.0[task].with_mut(|place| unsafe { *place += 1 });
    }

    /// How often each task ran, as the caller of the region sees it.
    fn visits(&self) -> Vec<u32> {
        let read = |place: &UnsafeCell<u32>| {
            // SAFETY: the checker has seen that no write is at the same time.
            place.with(|place| unsafe { *place })
        };
        self.0.iter().map(read).collect()
    }
}

/// Two regions; the closures and the places of one are gone when the next begins.
fn two_regions() {
    let pool = Owned::new(2);
    for _ in 0..2 {
        let places = Places::new(2);
        pool.run(2, &|task| places.visit(task));
        assert_eq!(places.visits(), [1, 1]);
    }
}

/// Two workers and one region.
fn two_workers() {
    let pool = Owned::new(3);
    let places = Places::new(2);
    pool.run(2, &|task| places.visit(task));
    assert_eq!(places.visits(), [1, 1]);
}

/// A region whose tasks wait for each other: it ends only when the worker comes, asleep or not.
fn a_region_that_needs_its_worker() {
    let pool = Owned::new(2);
    let arrived = Mutex::new(0);
    let both = Condvar::new();
    pool.run(2, &|_| {
        let mut count = arrived.lock().expect("no task panics");
        *count += 1;
        if *count == 2 {
            both.notify_all();
        }
        while *count < 2 {
            count = both.wait(count).expect("no task panics");
        }
    });
}

/// A region whose first task throws, and one after it.
fn a_thrown_task() {
    let pool = Owned::new(2);
    let result = catch_unwind(AssertUnwindSafe(|| {
        pool.run(2, &|task| {
            if task == 0 {
                resume_unwind(Box::new(THROWN));
            }
        });
    }));
    let payload = result.expect_err("the panic reaches the caller");
    assert_eq!(payload.downcast_ref::<&str>(), Some(&THROWN));

    let places = Places::new(2);
    pool.run(2, &|task| places.visit(task));
    assert_eq!(places.visits(), [1, 1]);
}

/// Two callers at once: one of them runs its region alone.
fn two_callers() {
    let pool = Arc::new(Owned::new(2));
    let call = |pool: &Pool| {
        let places = Places::new(2);
        pool.run(2, &|task| places.visit(task));
        assert_eq!(places.visits(), [1, 1]);
    };
    let other = {
        let pool = pool.clone();
        loom::thread::spawn(move || call(&pool))
    };
    call(&pool);
    other.join().expect("the other caller's region is whole");
}

/// A region in which a task starts a region: it runs alone, on the thread of the task.
fn a_nested_region() {
    let pool = Owned::new(2);
    let places = Places::new(4);
    pool.run(2, &|outer| {
        pool.run(2, &|inner| places.visit(2 * outer + inner))
    });
    assert_eq!(places.visits(), [1; 4]);
}

/// Runs a scenario on sound primitives, and requires that it is worth the name.
fn holds(preemptions: usize, scenario: fn()) {
    let start = std::time::Instant::now();
    let schedules = explore(Fault::None, preemptions, scenario).expect("every schedule is right");
    println!("{schedules} schedules in {:?}", start.elapsed());
    assert!(schedules > 100, "{schedules} schedules");
}

/// Requires that one of `scenarios` finds the fault, and that what it finds contains `expected`.
fn is_found(fault: Fault, scenario: fn(), expected: &str) {
    let found = explore(fault, 3, scenario).expect_err("the fault is found");
    println!("{fault:?}: {found}");
    assert!(found.contains(expected), "{fault:?}: {found}");
}

#[test]
fn every_task_runs_once_and_the_caller_sees_what_it_did() {
    holds(4, two_regions);
}

#[test]
fn every_task_runs_once_on_three_threads() {
    holds(2, two_workers);
}

#[test]
fn a_worker_that_falls_asleep_is_woken() {
    holds(6, a_region_that_needs_its_worker);
}

#[test]
fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
    holds(4, a_thrown_task);
}

#[test]
fn of_two_callers_one_runs_alone() {
    holds(2, two_callers);
}

#[test]
fn a_nested_region_runs_alone() {
    holds(6, a_nested_region);
}

#[test]
fn operations_that_order_nothing_are_found() {
    is_found(Fault::Relaxed, two_regions, "Causality violation");
}

#[test]
fn a_state_without_a_total_order_loses_a_wake() {
    is_found(
        Fault::NoTotalOrder,
        a_region_that_needs_its_worker,
        "deadlock",
    );
}

#[test]
fn a_worker_that_enters_a_closed_region_is_found() {
    is_found(Fault::BlindExchange, two_regions, "Causality violation");
}

#[test]
fn a_task_that_runs_twice_is_found() {
    is_found(Fault::TornAddition, two_regions, "Causality violation");
}

#[test]
fn a_worker_that_nobody_wakes_is_found() {
    is_found(Fault::NoWake, a_region_that_needs_its_worker, "deadlock");
    is_found(Fault::NoWake, two_regions, "deadlock");
}
