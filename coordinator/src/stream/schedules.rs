//! The ring under loom, which runs a short scenario under every schedule of its two threads.
//!
//! The file of the ring is compiled here a second time, made of the checker's locks. Each property
//! stands beside faults of those primitives that break it and must be found.

#[path = "ring.rs"]
#[allow(clippy::duplicate_mod, reason = "the same file over other primitives")]
#[allow(dead_code, reason = "the scenarios need less than the driver")]
mod ring;
mod sync;

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::internal::v1::CacheState;
use palimpsest_proto::v1::RetentionReport;
use tokio::time::Instant;

use self::ring::{Item, Reader, ReaderState, Reading, Token, Writer, ring};
use self::sync::{Fault, Notify, block_on, set_fault};
use crate::scheduler::Ending;

/// Tokens that a ring holds here.
const CAPACITY: usize = 2;

/// Runs a scenario under all schedules of at most four forced switches, and returns how
/// many they were, or what was found.
fn explore(fault: Fault, scenario: fn()) -> Result<u64, String> {
    set_fault(fault);
    let schedules = Arc::new(AtomicU64::new(0));
    let counted = schedules.clone();
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        model.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            scenario();
        });
    }));
    set_fault(Fault::None);

    let schedules = schedules.load(Ordering::Relaxed);
    outcome.map(|()| schedules).map_err(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        format!("schedule {schedules}: {}", text.unwrap_or_default())
    })
}

/// An end of a ring that is left as it is when the model is broken: its lock is none any more.
struct Owned<T>(Option<T>);

impl<T> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("taken by the drop alone")
    }
}

impl<T> DerefMut for Owned<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("taken by the drop alone")
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        let end = self.0.take();
        if std::thread::panicking() {
            std::mem::forget(end);
        }
    }
}

/// Both ends of a ring.
fn small_ring(driver: Arc<Notify>) -> (Owned<Writer>, Owned<Reader>) {
    let (writer, reader) = ring(CAPACITY, driver);
    (Owned(Some(writer)), Owned(Some(reader)))
}

fn token(id: u32, ended: Option<Ending>) -> Token {
    Token {
        number: 0,
        id,
        logprob: None,
        cache: CacheState::default(),
        retention: None,
        prompt_logprobs: Vec::new(),
        embedding: None,
        ended,
        cached: 0,
        at: Instant::now(),
    }
}

/// What the driver does with a sequence: pushes its tokens, pauses at a full ring until half of it
/// is free, and gives up when nobody reads. Returns whether it pushed all of them.
fn drive(writer: &Writer, driver: &Notify, tokens: u32) -> bool {
    for id in 0..tokens {
        let ended = (id + 1 == tokens).then_some(Ending::Length);
        if writer.reader() != ReaderState::Reads {
            return false;
        }
        let full = writer.push(token(id, ended));
        while full && !writer.has_room() && writer.reader() == ReaderState::Reads {
            block_on(driver.notified());
        }
    }
    true
}

/// More tokens than the ring holds, to a reader that wants them all.
fn all_tokens() {
    const TOKENS: u32 = 4;
    let driver = Arc::new(Notify::new());
    let (writer, mut reader) = small_ring(driver.clone());
    let reads = loom::thread::spawn(move || {
        let mut ids = Vec::new();
        while let Some(token) = block_on(reader.token()).expect("no error was sent") {
            assert_eq!(token.number, u64::from(token.id));
            ids.push(token.id);
        }
        assert_eq!(ids, (0..TOKENS).collect::<Vec<_>>());
    });
    drive(&writer, &driver, TOKENS);
    // The last token is an end of its own: this one does not count.
    drop(writer);
    reads.join().expect("the reader has every token");
}

/// A reader that goes after one token: a driver that pauses must hear of it.
fn a_reader_that_goes() {
    let driver = Arc::new(Notify::new());
    let (writer, mut reader) = small_ring(driver.clone());
    let reads = loom::thread::spawn(move || {
        let token = block_on(reader.token()).expect("no error was sent");
        assert_eq!(token.map(|token| token.id), Some(0));
    });
    assert!(
        !drive(&writer, &driver, 8),
        "the ring held more than it may"
    );
    assert_eq!(writer.reader(), ReaderState::Gone);
    reads.join().expect("the reader has its token");
}

/// A writer that goes in the middle: the reader has what was pushed, and then the error.
fn a_writer_that_fails() {
    let (writer, mut reader) = small_ring(Arc::new(Notify::new()));
    let reads = loom::thread::spawn(move || {
        let token = block_on(reader.token()).expect("the token comes before the error");
        assert_eq!(token.map(|token| token.id), Some(0));
        let error = block_on(reader.token()).expect_err("the request failed");
        assert_eq!(error.reason, Reason::GroupLost);
    });
    writer.push(token(0, None));
    writer.fail(RequestError::new(Reason::GroupLost, "the group is gone"));
    drop(writer);
    reads.join().expect("the reader has its answer");
}

/// A prompt that is told of twice before its token: the reader has the last reading at least, and
/// the token behind it.
fn a_prompt_that_is_told_of() {
    let (writer, mut reader) = small_ring(Arc::new(Notify::new()));
    let reads = loom::thread::spawn(move || {
        let mut fed = Vec::new();
        let last = loop {
            match block_on(reader.next()).expect("no error was sent") {
                Some(Item::Reading(reading)) => fed.push(reading.fed),
                other => break other,
            }
        };
        assert!(matches!(last, Some(Item::Token(token)) if token.id == 0));
        assert_eq!(fed.last(), Some(&2), "{fed:?}");
        assert!(fed.is_sorted(), "{fed:?}");
    });
    for fed in 1..=2 {
        writer.tell(Reading {
            fed,
            cache: CacheState::default(),
            retention: RetentionReport::default(),
        });
    }
    writer.push(token(0, Some(Ending::Length)));
    drop(writer);
    reads.join().expect("the reader has its token");
}

/// Requires that every schedule of the sound ring is right, and that there were many.
fn holds(scenario: fn()) {
    let schedules = explore(Fault::None, scenario).expect("every schedule is right");
    println!("{schedules} schedules");
    assert!(schedules > 50, "{schedules} schedules");
}

/// Requires that a scenario finds the fault: somebody waits for ever.
fn is_found(fault: Fault, scenario: fn()) {
    let found = explore(fault, scenario).expect_err("the fault is found");
    println!("{fault:?}: {found}");
    assert!(found.contains("deadlock"), "{fault:?}: {found}");
}

#[test]
fn a_reader_has_every_token_in_order() {
    holds(all_tokens);
}

#[test]
fn a_reader_that_goes_frees_the_writer() {
    holds(a_reader_that_goes);
}

#[test]
fn a_reader_has_the_error_behind_the_tokens() {
    holds(a_writer_that_fails);
}

#[test]
fn a_reader_hears_of_the_prompt_before_its_token() {
    holds(a_prompt_that_is_told_of);
}

#[test]
fn a_notification_that_is_not_kept_is_found() {
    is_found(Fault::NoPermit, all_tokens);
    is_found(Fault::NoPermit, a_writer_that_fails);
    is_found(Fault::NoPermit, a_prompt_that_is_told_of);
}

#[test]
fn a_reader_that_goes_in_silence_is_found() {
    is_found(Fault::NoWake, a_reader_that_goes);
}
