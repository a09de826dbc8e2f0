//! What every [`Collective`] must do, as one suite that all implementations run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use palimpsest_kernels::sums::{DeviceSums, SumElement, Summand};

use crate::communicator::{Collective, CollectiveError};
use crate::store::Store;

/// Makes the ends of a group of so many ranks, in rank order; every call makes a new group.
pub type MakeGroup<'a> = &'a dyn Fn(usize) -> Vec<Arc<dyn Collective>>;

/// Long enough for any machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// A deadline that is meant to pass.
const SHORT: Duration = Duration::from_millis(200);
/// Lengths: none, one, odd, beyond a cache line, beyond what any implementation sends in one piece.
const LENGTHS: [usize; 7] = [0, 1, 3, 17, 1000, 4097, 300_007];

/// In which order an implementation adds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sums {
    /// From rank 0 on: the bits of a sum are known.
    RankOrder,
    /// In an order of its own: sums are right up to rounding, and the same bits on all ranks.
    SomeOrder,
}

/// Runs the suite.
///
/// # Panics
/// With what is wrong.
pub fn run(make: MakeGroup<'_>, sums: Sums) {
    for world_size in [1, 2, 3, 4] {
        let group = make(world_size);
        for (rank, end) in group.iter().enumerate() {
            assert_eq!((end.rank(), end.world_size()), (rank, world_size));
        }
        on_all(&group, sums_are_right_and_the_same_bits_on_all_ranks);
        if sums == Sums::RankOrder {
            on_all(&group, sums_are_in_rank_order);
        }
        on_all(&group, counts_are_exact);
        on_all(&group, gathers_are_in_rank_order);
        on_all(&group, every_root_broadcasts);
        on_all(&group, wrong_use_is_refused_and_harmless);
        on_all(&group, many_small_calls_in_a_row);
    }
    a_deadline_passes(&make(3));
    an_abort_ends_a_call_under_way(&make(3));
    a_death_is_noticed(make(3));
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Runs `test` on a thread for each rank.
fn on_all(group: &[Arc<dyn Collective>], test: fn(&dyn Collective)) {
    std::thread::scope(|scope| {
        for end in group {
            scope.spawn(|| test(&**end));
        }
    });
}

/// Values whose sum depends on the order of addition.
fn value(rank: usize, index: usize) -> f32 {
    let bits = (rank as u32 * 7_919 + index as u32).wrapping_mul(2_654_435_761);
    (bits >> 8) as f32 * 10f32.powi((bits % 13) as i32 - 12)
}

fn sums_are_right_and_the_same_bits_on_all_ranks(end: &dyn Collective) {
    for len in LENGTHS {
        let mut values: Vec<f32> = (0..len).map(|i| value(end.rank(), i)).collect();
        end.all_reduce_sum(&mut values, soon()).expect("a sum");
        for (i, &found) in values.iter().enumerate() {
            let parts = || (0..end.world_size()).map(|rank| f64::from(value(rank, i)));
            let (sum, size) = (parts().sum::<f64>(), parts().map(f64::abs).sum::<f64>());
            assert!(
                (f64::from(found) - sum).abs() <= 1e-6 * size,
                "element {i} of {len}: {found} for {sum}"
            );
        }
        let mine: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut all = vec![0; mine.len() * end.world_size()];
        end.all_gather(&mine, &mut all, soon()).expect("a gather");
        assert!(
            all.chunks(mine.len().max(1)).all(|theirs| theirs == mine),
            "ranks differ in a sum of {len}"
        );
    }
}

fn sums_are_in_rank_order(end: &dyn Collective) {
    for len in LENGTHS {
        let mut values: Vec<f32> = (0..len).map(|i| value(end.rank(), i)).collect();
        end.all_reduce_sum(&mut values, soon()).expect("a sum");
        for (i, found) in values.iter().enumerate() {
            let expected =
                (1..end.world_size()).fold(value(0, i), |sum, rank| sum + value(rank, i));
            assert_eq!(found.to_bits(), expected.to_bits(), "element {i} of {len}");
        }
    }
}

fn counts_are_exact(end: &dyn Collective) {
    for len in LENGTHS {
        let large = (1u64 << 60) + end.rank() as u64;
        let mut counts: Vec<u64> = (0..len as u64).map(|i| large + i).collect();
        end.all_reduce_counts(&mut counts, soon())
            .expect("a sum of counts");
        let n = end.world_size() as u64;
        for (i, &found) in counts.iter().enumerate() {
            assert_eq!(
                found,
                n * ((1 << 60) + i as u64) + n * (n - 1) / 2,
                "element {i} of {len}"
            );
        }
    }
}

fn gathers_are_in_rank_order(end: &dyn Collective) {
    for len in LENGTHS {
        let mine: Vec<u8> = (0..len).map(|i| (i * 31 + end.rank()) as u8).collect();
        let mut all = vec![0xEE; len * end.world_size()];
        end.all_gather(&mine, &mut all, soon()).expect("a gather");
        for (rank, part) in all.chunks_exact(len.max(1)).enumerate() {
            assert!(
                part.iter()
                    .enumerate()
                    .all(|(i, &byte)| byte == (i * 31 + rank) as u8),
                "part {rank} of {len}"
            );
        }
    }
}

fn every_root_broadcasts(end: &dyn Collective) {
    for root in 0..end.world_size() {
        for len in LENGTHS {
            let mut bytes: Vec<u8> = (0..len).map(|i| (i * 17 + end.rank()) as u8).collect();
            end.broadcast(&mut bytes, root, soon())
                .expect("a broadcast");
            assert!(
                bytes
                    .iter()
                    .enumerate()
                    .all(|(i, &byte)| byte == (i * 17 + root) as u8),
                "{len} from {root}"
            );
        }
    }
}

fn wrong_use_is_refused_and_harmless(end: &dyn Collective) {
    let n = end.world_size();
    let refused = end.all_gather(&[1, 2], &mut vec![0; 2 * n + 1], soon());
    assert!(
        matches!(refused, Err(CollectiveError::Misuse(_))),
        "{refused:?}"
    );
    let refused = end.broadcast(&mut [1], n, soon());
    assert!(
        matches!(refused, Err(CollectiveError::Misuse(_))),
        "{refused:?}"
    );
    let mut value = [1.0];
    end.all_reduce_sum(&mut value, soon())
        .expect("nothing was sent by the refused calls");
    assert_eq!(value, [n as f32]);
}

/// Ranks that run ahead of one another must not mix calls up.
fn many_small_calls_in_a_row(end: &dyn Collective) {
    for i in 0..300u64 {
        if (i + end.rank() as u64).is_multiple_of(97) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut counts = [i, end.rank() as u64];
        end.all_reduce_counts(&mut counts, soon())
            .expect("a small call");
        let n = end.world_size() as u64;
        assert_eq!(counts, [n * i, n * (n - 1) / 2]);
    }
}

/// Rank 0 is late: the others give up in time, and it does not wait for them afterwards.
fn a_deadline_passes(group: &[Arc<dyn Collective>]) {
    let waiting = AtomicUsize::new(group.len() - 1);
    std::thread::scope(|scope| {
        for end in &group[1..] {
            scope.spawn(|| {
                let started = Instant::now();
                let result = end.all_reduce_sum(&mut [0.0; 100], started + SHORT);
                assert!(result.is_err(), "nobody was there");
                assert!(
                    started.elapsed() < SHORT + PATIENCE / 2,
                    "{:?}",
                    started.elapsed()
                );
                assert!(
                    end.all_reduce_sum(&mut [0.0], soon()).is_err(),
                    "a failure is sticky"
                );
                waiting.fetch_sub(1, Ordering::SeqCst);
            });
        }
        while waiting.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let started = Instant::now();
        assert!(
            group[0]
                .all_reduce_sum(&mut [0.0; 100], started + SHORT)
                .is_err(),
            "the others have given up"
        );
        assert!(
            started.elapsed() < SHORT + PATIENCE / 2,
            "{:?}",
            started.elapsed()
        );
    });
}

/// Another thread of the same rank ends the epoch while a call waits.
fn an_abort_ends_a_call_under_way(group: &[Arc<dyn Collective>]) {
    std::thread::scope(|scope| {
        let end = &group[1];
        let call = scope.spawn(|| {
            let started = Instant::now();
            (end.broadcast(&mut [0; 64], 0, soon()), started.elapsed())
        });
        std::thread::sleep(SHORT / 2);
        end.abort();
        end.abort();
        let (result, took) = call.join().expect("the call returns");
        assert!(
            matches!(result, Err(CollectiveError::Aborted)),
            "{result:?}"
        );
        assert!(took < PATIENCE / 2, "{took:?}");
        assert!(matches!(
            end.all_reduce_sum(&mut [0.0], soon()),
            Err(CollectiveError::Aborted)
        ));
    });
}

/// A rank that goes away while the others wait for it.
fn a_death_is_noticed(mut group: Vec<Arc<dyn Collective>>) {
    let last = group.pop().expect("three ranks");
    std::thread::scope(|scope| {
        for end in &group {
            scope.spawn(|| {
                let started = Instant::now();
                let result = end.all_reduce_counts(&mut [0; 64], soon());
                assert!(result.is_err(), "a rank is gone");
                assert!(
                    started.elapsed() < PATIENCE / 2,
                    "noticed after {:?}",
                    started.elapsed()
                );
            });
        }
        std::thread::sleep(SHORT / 2);
        drop(last);
    });
}

/// Runs the suite of [`DeviceSums`], for implementations that sum what lies in the host's memory
/// too.
///
/// # Panics
/// With what is wrong.
pub fn run_device_sums(make: MakeGroup<'_>) {
    for world_size in [1, 2, 3, 5] {
        let group = make(world_size);
        on_every_rank(&group, sums_of_words_wrap_around);
        on_every_rank(&group, sums_of_floats_are_those_of_the_collective);
        on_every_rank(&group, words_are_gathered_in_rank_order);
    }
    device_sums_have_a_deadline(&make(2));
    device_sums_end_with_their_epoch(&make(2));
}

/// Runs `test` on a thread for each rank.
fn on_every_rank(group: &[Arc<dyn Collective>], test: fn(&Arc<dyn Collective>)) {
    std::thread::scope(|scope| {
        for end in group {
            scope.spawn(|| test(end));
        }
    });
}

/// The sums of a rank, which have to be done until then.
fn device_sums(end: &Arc<dyn Collective>, deadline: Instant) -> Arc<dyn DeviceSums> {
    let sums = end.clone().device_sums().expect("it has some");
    sums.set_deadline(deadline);
    sums
}

fn sum_words(sums: &dyn DeviceSums, words: &mut [u64]) -> Result<(), palimpsest_kernels::Error> {
    sums.all_reduce(Summand::on_host(
        SumElement::U64,
        bytemuck::cast_slice_mut(words),
    ))
}

fn sums_of_words_wrap_around(end: &Arc<dyn Collective>) {
    let sums = device_sums(end, soon());
    for len in &LENGTHS[1..] {
        let mut words: Vec<u64> = (0..*len as u64)
            .map(|i| u64::MAX - i * end.rank() as u64)
            .collect();
        sum_words(&*sums, &mut words).expect("a sum");
        let ranks = 0..end.world_size() as u64;
        for (i, found) in words.iter().enumerate() {
            let want = ranks.clone().fold(0u64, |sum, rank| {
                sum.wrapping_add(u64::MAX - i as u64 * rank)
            });
            assert_eq!(*found, want, "element {i} of {len}");
        }
        sums.check().expect("nothing is wrong");
    }
}

/// Calls of both kinds come in one order.
fn sums_of_floats_are_those_of_the_collective(end: &Arc<dyn Collective>) {
    let sums = device_sums(end, soon());
    for len in &LENGTHS[1..] {
        let values: Vec<f32> = (0..*len).map(|i| value(end.rank(), i)).collect();
        let (mut there, mut here) = (values.clone(), values);
        sums.all_reduce(Summand::on_host(
            SumElement::F32,
            bytemuck::cast_slice_mut(&mut there),
        ))
        .expect("a sum");
        end.all_reduce_sum(&mut here, soon()).expect("a sum");
        assert!(
            there
                .iter()
                .zip(&here)
                .all(|(there, here)| there.to_bits() == here.to_bits()),
            "{len} values"
        );
    }
}

fn words_are_gathered_in_rank_order(end: &Arc<dyn Collective>) {
    let gathered = device_sums(end, soon())
        .gather(7 * end.rank() as u64)
        .expect("words");
    assert_eq!(
        gathered,
        (0..end.world_size() as u64)
            .map(|rank| 7 * rank)
            .collect::<Vec<_>>()
    );
}

/// What a failed sum says as a collective would.
fn cause(result: Result<(), palimpsest_kernels::Error>) -> CollectiveError {
    match result.expect_err("it cannot succeed") {
        palimpsest_kernels::Error::Sums(cause) => {
            *cause.downcast().expect("what failed is a collective")
        }
        other => panic!("{other:?}"),
    }
}

fn device_sums_have_a_deadline(group: &[Arc<dyn Collective>]) {
    let sums = device_sums(&group[0], Instant::now() + SHORT);
    let error = cause(sum_words(&*sums, &mut [1, 2]));
    assert!(matches!(error, CollectiveError::Deadline { .. }), "{error}");
    // A failure is sticky, for whoever waits for the stream too, and whatever the deadline then is.
    sums.set_deadline(soon());
    assert_eq!(
        [cause(sum_words(&*sums, &mut [1])), cause(sums.check())],
        [error.clone(), error]
    );
    let waiting = device_sums(&group[1], Instant::now());
    assert!(
        waiting.check().is_err(),
        "who waits for the stream has the same deadline"
    );
}

fn device_sums_end_with_their_epoch(group: &[Arc<dyn Collective>]) {
    std::thread::scope(|scope| {
        let (end, sums) = (&group[1], device_sums(&group[1], soon()));
        let call = scope.spawn(move || sum_words(&*sums, &mut [0; 64]));
        std::thread::sleep(SHORT / 2);
        end.abort();
        assert_eq!(
            cause(call.join().expect("the call returns")),
            CollectiveError::Aborted
        );
        assert_eq!(
            cause(device_sums(end, soon()).check()),
            CollectiveError::Aborted
        );
    });
}

/// What every [`Store`] must do. The store must be empty under the keys `conformance/*`.
///
/// # Panics
/// With what is wrong.
pub fn run_store(store: &dyn Store) {
    let values: [&[u8]; 3] = [b"", b"\0\xff binary", &[7; 100_000]];
    for (i, value) in values.into_iter().enumerate() {
        let key = format!("conformance/{i}");
        store.set(&key, value).expect("a value is set");
        assert_eq!(
            store.get(&key, soon()).expect("a value that was set"),
            value
        );
    }
    let started = Instant::now();
    let missing = store.get("conformance/never", started + SHORT);
    assert!(
        matches!(missing, Err(CollectiveError::Deadline { .. })),
        "{missing:?}"
    );
    assert!(
        started.elapsed() < SHORT + PATIENCE / 2,
        "{:?}",
        started.elapsed()
    );
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| store.get("conformance/late", soon()));
        std::thread::sleep(SHORT / 2);
        store
            .set("conformance/late", b"here")
            .expect("a value is set");
        assert_eq!(
            waiting
                .join()
                .expect("no panic")
                .expect("a value that came late"),
            b"here"
        );
    });
}
