//! Downloads that break off and go on.

use std::fs;
use std::thread;

use super::*;
use crate::stub::Fault;

/// First bytes that were asked for, of requests to the place of large files.
fn begins(bench: &Bench) -> Vec<Option<u64>> {
    let seen = bench.stub.seen().into_iter();
    seen.filter(|seen| seen.path.starts_with("/cdn/"))
        .map(|seen| seen.from)
        .collect()
}

fn large() -> Bench {
    Bench::new([("org/x", Repository::new().large("x.gguf", bytes(5000)))])
}

fn incomplete(bench: &Bench) -> PathBuf {
    let name = format!("models--org--x/blobs/{}.incomplete", sha256(&bytes(5000)));
    bench.at(&name)
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let bench = large();
    bench.stub.plan("/cdn/", Fault::BreakOff(1000), 4);
    let fetched = bench
        .fetch("org/x")
        .expect("each attempt brings some of it");
    assert_eq!(read(&fetched.path), bytes(5000));
    let from = [None, Some(1000), Some(2000), Some(3000), Some(4000)];
    assert_eq!(begins(&bench), from);
    assert!(!incomplete(&bench).exists());
}

#[test]
fn another_process_goes_on_as_well() {
    let bench = large();
    bench.stub.plan("/cdn/", Fault::BreakOff(1500), 1);
    bench.stub.plan("/cdn/", Fault::BreakOff(0), 3);
    let said = bench.refusal("org/x");
    assert!(said.contains("cannot fetch `x.gguf`"), "{said}");
    assert!(
        !said.contains("signature"),
        "what only a server should read: {said}"
    );
    assert_eq!(read(&incomplete(&bench)), bytes(5000)[..1500]);
    assert!(
        !bench.at("models--org--x/snapshots").exists(),
        "nothing half-done is shown"
    );
    begins(&bench);
    let fetched = bench.fetch("org/x").expect("a model");
    assert_eq!(read(&fetched.path), bytes(5000));
    assert_eq!(begins(&bench), [Some(1500)]);
}

#[test]
fn a_damaged_beginning_is_fetched_anew() {
    let bench = large();
    fs::create_dir_all(bench.at("models--org--x/blobs")).expect("a directory");
    fs::write(incomplete(&bench), b"something else").expect("a file");
    let fetched = bench.fetch("org/x").expect("a model");
    assert_eq!(read(&fetched.path), bytes(5000));
    assert_eq!(begins(&bench), [Some(14), None]);
    // One that is longer than the whole is none of its beginnings.
    let bench = large();
    fs::create_dir_all(bench.at("models--org--x/blobs")).expect("a directory");
    fs::write(incomplete(&bench), bytes(6000)).expect("a file");
    assert_eq!(
        read(&bench.fetch("org/x").expect("a model").path),
        bytes(5000)
    );
    assert_eq!(begins(&bench), [None]);
}

#[test]
fn a_server_that_knows_no_parts_sends_the_whole_again() {
    let bench = large();
    bench.stub.plan("/cdn/", Fault::BreakOff(1000), 1);
    bench.stub.plan("/cdn/", Fault::WholeOnly, 1);
    let fetched = bench.fetch("org/x").expect("a model");
    assert_eq!(read(&fetched.path), bytes(5000));
}

#[test]
fn two_at_once_fetch_it_once() {
    let bench = large();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| bench.fetch("org/x").expect("a model"));
        }
    });
    assert_eq!(begins(&bench).len(), 1);
}

#[test]
fn what_passes_is_asked_for_again() {
    let bench = large();
    bench.stub.plan("/api/", Fault::Status(429, 1), 1);
    bench.stub.plan("/resolve/", Fault::Status(503, 0), 1);
    // An address that the hub sends to is good for a while only.
    bench.stub.plan("/cdn/", Fault::Status(403, 0), 1);
    let before = std::time::Instant::now();
    bench.fetch("org/x").expect("a model");
    assert!(
        before.elapsed() >= Duration::from_secs(1),
        "the hub asked for a second"
    );
}
