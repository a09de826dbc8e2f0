//! A device that fails and a device thread that panics: the process ends with the code that asks
//! its supervisor for another one, and a request that runs is told why it ends.

use std::time::Instant;

use palimpsest_tests::tiny_model;

use crate::group::{Process, ask, await_that, free, is_ok};
use crate::serving::Serving;

/// Asks the supervisor to start the process anew.
const RESTART: Option<i32> = Some(75);

const BODY: &str = r#"{"prompt": "a", "max_tokens": 50, "ignore_eos": true}"#;

/// The first step is the warm-up's.
fn serve_with_fault(fault: &str) {
    let serving = Serving::start_with(&[], &["--inject-fault", fault]);
    let answer = serving.send("POST", "/v1/completions", "", BODY);
    assert!(answer.starts_with("HTTP/1.0 50"), "{answer}");
    assert!(
        answer.contains("group_lost") || answer.contains("rank_failed"),
        "{answer}"
    );
    let ended = serving.ended();
    assert_eq!(ended.code, RESTART, "{}", ended.log);
    assert!(
        ended.log.contains("this process can serve no longer"),
        "{}",
        ended.log
    );
}

#[test]
fn serve_ends_when_its_device_fails() {
    serve_with_fault("loss@4");
}

#[test]
fn serve_ends_when_its_device_thread_panics() {
    serve_with_fault("panic@4");
}

#[test]
fn serve_ends_when_the_device_of_a_shared_model_fails() {
    let serving = Serving::start_with(&[], &["--tp", "2", "--inject-fault", "panic@4"]);
    let answer = serving.send("POST", "/v1/completions", "", BODY);
    assert!(answer.starts_with("HTTP/1.0 50"), "{answer}");
    assert_eq!(serving.ended().code, RESTART);
}

fn rank_with_fault(fault: &str) {
    let model = tiny_model(1);
    let model = model.path().to_str().expect("UTF-8");
    let (rank_at, grpc, http) = (free(), free(), free());
    let mut rank = Process::loaded_rank_with(&rank_at, model, &[], &["--inject-fault", fault]);
    let args = [
        "coordinator",
        "--ranks",
        &rank_at,
        "--listen",
        &grpc,
        "--http",
        &http,
    ];
    let _coordinator = Process::start(&args, &[]);
    await_that(Instant::now(), || is_ok(&http, "/readyz"));
    let asking = std::thread::spawn({
        let http = http.clone();
        move || ask(&http, "POST", "/v1/completions", "", BODY).expect("an answer")
    });
    assert_eq!(rank.code(), RESTART);

    // Its supervisor starts another one, which goes on with the request.
    let _rank = Process::loaded_rank(&rank_at, model, &[]);
    let answer = asking.join().expect("no panic");
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
}

#[test]
fn a_rank_ends_when_its_device_fails_and_another_goes_on() {
    rank_with_fault("loss@4");
}

#[test]
fn a_rank_ends_when_its_device_thread_panics_and_another_goes_on() {
    rank_with_fault("panic@4");
}
