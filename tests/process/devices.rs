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

/// A device that fails before anything is served was told from the first step's failure only by
/// chance, and the process ended with 1.
#[test]
fn serve_ends_when_its_device_fails_in_the_first_step() {
    let model = tiny_model(1);
    let path = model.path().to_str().expect("UTF-8");
    let mut args = vec!["serve", "--listen", "127.0.0.1:0", "--model", path];
    args.extend(["--threads", "1", "--inject-fault", "loss@1"]);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_palimpsest"))
        .args(&args)
        .output()
        .expect("the program runs");
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), RESTART, "{log}");
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

const SEEDED: &str = r#"{"prompt": "a", "max_tokens": 50, "ignore_eos": true, "temperature": 0}"#;

/// The text of an answer.
fn text(answer: &str) -> &str {
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    let (_, rest) = answer.split_once("\"text\":").expect("a text");
    rest.split_once(",\"").expect("more fields").0
}

/// A step that took too long left `serve` without a group for ever: every later request was
/// refused, by a process that said it was alive.
fn serve_with_stall(args: &[&str]) {
    let mut all = vec!["--inject-fault", "stall@4", "--step-seconds", "2"];
    all.extend(args);
    let serving = Serving::start_with(&[], &all);
    let started = Instant::now();
    let answer = serving.send("POST", "/v1/completions", "", SEEDED);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    let again = serving.send("POST", "/v1/completions", "", SEEDED);
    assert_eq!(text(&answer), text(&again), "it goes on where it was");
    let log = serving.stop();
    assert!(log.contains("did not answer step"), "{log}");
    assert!(log.contains("the group has formed anew"), "{log}");
}

#[test]
fn serve_goes_on_after_a_step_that_took_too_long() {
    serve_with_stall(&[]);
}

#[test]
fn serve_goes_on_after_a_step_of_a_shared_model_that_took_too_long() {
    serve_with_stall(&["--tp", "2"]);
}

#[test]
fn serve_ends_when_its_device_thread_does_not_come_back() {
    let args = ["--inject-fault", "hang@4", "--step-seconds", "2"];
    let serving = Serving::start_with(&[], &args);
    let answer = serving.send("POST", "/v1/completions", "", BODY);
    assert!(answer.starts_with("HTTP/1.0 50"), "{answer}");
    let ended = serving.ended();
    assert_eq!(ended.code, RESTART, "{}", ended.log);
}

/// A rank whose step took too long was killed for the next group: its model was loaded anew, and
/// met the same step.
#[test]
fn a_rank_abandons_a_step_that_takes_too_long_and_joins_the_next_group() {
    let model = tiny_model(1);
    let model = model.path().to_str().expect("UTF-8");
    let (rank_at, grpc, http) = (free(), free(), free());
    let faults = ["--inject-fault", "stall@4"];
    let mut rank = Process::loaded_rank_with(&rank_at, model, &[], &faults);
    let args = ["coordinator", "--ranks", &rank_at, "--step-seconds", "2"];
    let ports = ["--listen", &grpc, "--http", &http];
    let _coordinator = Process::start(&[&args[..], &ports].concat(), &[]);
    await_that(Instant::now(), || is_ok(&http, "/readyz"));
    let answer = ask(&http, "POST", "/v1/completions", "", SEEDED).expect("an answer");
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    assert!(rank.runs(), "its weights stay");
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
        "--step-seconds",
        "5",
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

#[test]
fn a_rank_ends_when_its_device_thread_does_not_come_back_and_another_goes_on() {
    rank_with_fault("hang@4");
}
