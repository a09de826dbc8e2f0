//! The mailbox under loom, which runs a short scenario under every schedule of its threads.
//!
//! The file of the mailbox is compiled here a second time, made of the checker's primitives. Each
//! property stands beside a fault of those primitives that breaks it and must be found.

#[path = "mailbox.rs"]
#[allow(clippy::duplicate_mod, reason = "the same file over other primitives")]
mod mailbox;
mod sync;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::mailbox::{DeviceGone, Inbox, Mailbox, mailbox};
use self::sync::{Asked, Fault, block_on, oneshot, set_fault};

/// What the thread of a scenario is asked to do.
enum Command {
    /// Answer with twice the number.
    Double(u32, oneshot::Sender<u32>),
    /// Answer, and end.
    Fail(oneshot::Sender<u32>),
    /// End without an answer.
    Panic(oneshot::Sender<u32>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Failed,
    Panicked,
}

type Handle = Mailbox<Command, End>;

/// Runs a scenario under all schedules of at most two forced switches, and returns how many they
/// were, or what was found.
fn explore(fault: Fault, scenario: fn()) -> Result<u64, String> {
    set_fault(fault);
    let schedules = Arc::new(AtomicU64::new(0));
    let counted = schedules.clone();
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
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
        let text = text.or_else(|| {
            payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
        });
        format!("schedule {schedules}: {}", text.unwrap_or_default())
    })
}

/// What the device thread does.
fn serve(inbox: Inbox<Command, End>) {
    inbox.serve(End::Panicked, |command| match command {
        Command::Double(number, done) => {
            // Whoever asked may have gone.
            let _ = done.send(2 * number);
            None
        }
        Command::Fail(done) => {
            let _ = done.send(0);
            Some(End::Failed)
        }
        // In silence: there are thousands of them.
        Command::Panic(_done) => std::panic::resume_unwind(Box::new(Asked)),
    });
}

/// A mailbox and the thread that serves it.
fn started() -> (Handle, loom::thread::JoinHandle<()>) {
    let (handle, inbox) = mailbox();
    (handle, loom::thread::spawn(move || serve(inbox)))
}

fn double(handle: &Handle, number: u32) -> Result<u32, DeviceGone> {
    block_on(handle.ask(|done| Command::Double(number, done)))
}

/// Two handles ask at once; the thread ends with the last one.
fn all_are_answered() {
    let (handle, thread) = started();
    let other = handle.clone();
    let asks = loom::thread::spawn(move || assert_eq!(double(&other, 2), Ok(4)));
    assert_eq!(double(&handle, 1), Ok(2));
    drop(handle);
    asks.join().expect("it has its answer");
    thread.join().expect("no handle is left");
}

/// One asks for what makes the thread panic, another for something else: it has its answer, or is
/// told, and both can learn why.
fn a_panic_is_told_to_all() {
    let (handle, thread) = started();
    let other = handle.clone();
    let asks = loom::thread::spawn(move || {
        let answer = double(&other, 2);
        assert!([Ok(4), Err(DeviceGone)].contains(&answer), "{answer:?}");
        assert_eq!(block_on(other.ended()), End::Panicked);
    });
    let answer = block_on(handle.ask(Command::Panic));
    assert_eq!(answer, Err(DeviceGone));
    assert_eq!(block_on(handle.ended()), End::Panicked);
    asks.join().expect("it has learnt of the end");
    thread.join().expect("the panic stays in the thread");
}

/// The device fails in a step: that step is answered before anybody learns of the end, and nothing
/// after it is.
fn the_last_step_is_answered_before_the_end() {
    let (handle, thread) = started();
    let watch = handle.clone();
    let answered = Arc::new(loom::sync::atomic::AtomicBool::new(false));
    let seen = answered.clone();
    let watches = loom::thread::spawn(move || {
        assert_eq!(block_on(watch.ended()), End::Failed);
        assert_eq!(double(&watch, 1), Err(DeviceGone));
        seen.store(true, Ordering::SeqCst);
    });
    assert_eq!(block_on(handle.ask(Command::Fail)), Ok(0));
    watches.join().expect("it has learnt of the end");
    assert!(answered.load(Ordering::SeqCst));
    thread.join().expect("it has ended");
}

/// A caller that goes away before its answer comes harms nobody: the command is carried out, and
/// the next one is answered.
fn a_caller_that_goes_harms_nobody() {
    let (handle, thread) = started();
    sync::poll_once(handle.ask(|done| Command::Double(1, done)));
    assert_eq!(double(&handle, 2), Ok(4));
    drop(handle);
    thread.join().expect("no handle is left");
}

/// Requires that every schedule of the sound mailbox is right, and that there were many.
fn holds(scenario: fn()) {
    let schedules = explore(Fault::None, scenario).expect("every schedule is right");
    println!("{schedules} schedules");
    assert!(schedules > 20, "{schedules} schedules");
}

/// Requires that a scenario finds the fault: somebody waits for ever.
fn is_found(fault: Fault, scenario: fn()) {
    let found = explore(fault, scenario).expect_err("the fault is found");
    println!("{fault:?}: {found}");
    assert!(found.contains("deadlock"), "{fault:?}: {found}");
}

#[test]
fn commands_are_answered_and_the_thread_ends_with_its_last_handle() {
    holds(all_are_answered);
}

#[test]
fn a_panic_leaves_nobody_waiting() {
    holds(a_panic_is_told_to_all);
}

#[test]
fn nobody_learns_of_the_end_before_the_last_answer() {
    holds(the_last_step_is_answered_before_the_end);
}

#[test]
fn callers_may_go_at_any_time() {
    holds(a_caller_that_goes_harms_nobody);
}

#[test]
fn commands_that_are_kept_behind_the_end_are_found() {
    is_found(Fault::KeptCommands, a_panic_is_told_to_all);
}

#[test]
fn an_end_that_is_not_told_is_found() {
    is_found(Fault::SilentEnd, the_last_step_is_answered_before_the_end);
}

#[test]
fn handles_that_go_in_silence_are_found() {
    is_found(Fault::SilentHandles, all_are_answered);
    is_found(Fault::SilentHandles, a_caller_that_goes_harms_nobody);
}
