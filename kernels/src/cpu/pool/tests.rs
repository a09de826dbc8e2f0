//! The pool on real threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Pool;
use super::fork_join::SPIN;

/// Miri interprets, hundreds of times slower.
const MOST_TASKS: usize = if cfg!(miri) { 12 } else { 200 };
/// Regions of a thread that calls at the same time as others.
const CALLS: u32 = if cfg!(miri) { 4 } else { 100 };
/// Regions in which a task panics.
const PANICS: u32 = if cfg!(miri) { 3 } else { 20 };

#[test]
fn every_task_runs_once_in_many_regions() {
    for threads in [1, 2, 3, 5] {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads);
        for tasks in (0..MOST_TASKS).chain([5 * MOST_TASKS]) {
            let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
            pool.run(tasks, &|i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(
                counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                "{threads} threads, {tasks} tasks"
            );
        }
    }
}

#[test]
fn sleeping_workers_wake_up() {
    let pool = Pool::new(2);
    for _ in 0..5 {
        std::thread::sleep(SPIN * 20);
        // Both threads must be inside at once, or neither task returns.
        let barrier = std::sync::Barrier::new(2);
        pool.run(2, &|_| {
            barrier.wait();
        });
    }
}

#[test]
fn nested_and_concurrent_regions_run_inline() {
    let pool = Pool::new(3);
    let count = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..CALLS {
                    pool.run(4, &|_| {
                        pool.run(3, &|_| {
                            count.fetch_add(1, Ordering::Relaxed);
                        })
                    });
                }
            });
        }
    });
    assert_eq!(count.load(Ordering::Relaxed), 4 * CALLS * 4 * 3);
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_survives() {
    let pool = Pool::new(3);
    for _ in 0..PANICS {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(50, &|i| assert!(i != 17, "task seventeen"))
        }));
        let payload = result.expect_err("the panic is propagated");
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"task seventeen"));
        let count = AtomicU32::new(0);
        pool.run(50, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 50);
    }
}

#[test]
fn chunks_are_all_of_a_slice_and_no_two_overlap() {
    let pool = Pool::new(3);
    for len in [0, 1, 7, 8, 9] {
        let mut data = vec![0usize; len];
        pool.chunks(&mut data, 4, &|index, chunk| {
            for place in chunk {
                *place += index + 1;
            }
        });
        let expected: Vec<usize> = (0..len).map(|place| place / 4 + 1).collect();
        assert_eq!(data, expected);
    }
}
