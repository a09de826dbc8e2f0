//! Sessions of a process that is killed, and the commands about them.

use std::process::{Command, Output, Stdio};

use palimpsest_tests::tiny_model;
use serde_json::Value;

use crate::serving::Serving;

/// A server of sessions in a directory.
fn serve(model: &tempfile::TempDir, store: &str) -> Serving {
    Serving::start_over(model.path(), &[], &["--session-store", store])
}

fn run(serving: &Serving, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_palimpsest"))
        .arg("session")
        .args(args)
        .args(["--server", &serving.grpc])
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

/// The object that a command prints.
pub fn json(serving: &Serving, args: &[&str]) -> Value {
    let output = run(serving, &[args, &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {said}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

pub fn refusal(serving: &Serving, args: &[&str]) -> String {
    let output = run(serving, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The text of an answer, greedy.
fn answer(serving: &Serving, session: &str, prompt: &str) -> String {
    let output = run(
        serving,
        &[
            "generate",
            session,
            "--prompt",
            prompt,
            "--raw",
            "--max-tokens",
            "5",
        ],
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_session_goes_on_after_its_server_was_killed() {
    let (model, store) = (tiny_model(1), tempfile::tempdir().expect("a directory"));
    let store = store.path().display().to_string();
    let serving = serve(&model, &store);
    let made = json(
        &serving,
        &[
            "create",
            "doc",
            "--kv-budget",
            "64",
            "--ttl-seconds",
            "3600",
        ],
    );
    assert_eq!(
        (&made["session_id"], &made["kv"]["budget"]),
        (&"doc".into(), &64.into())
    );
    let read = json(
        &serving,
        &["append", "doc", "--raw", "--prompt", "Once upon a time"],
    );
    assert_eq!(read["tokens"], read["usage"]["prompt_tokens"]);
    json(&serving, &["fork", "doc", "other"]);
    let first = answer(&serving, "doc", " there was");
    let shown = json(&serving, &["show", "doc"]);
    serving.signal("KILL");
    assert_eq!(serving.ended().code, None);

    let serving = serve(&model, &store);
    let listed = json(&serving, &["list"]);
    let names = listed["data"].as_array().expect("a list").iter();
    let names: Vec<_> = names
        .map(|one| one["session_id"].as_str().expect("a name"))
        .collect();
    assert_eq!(names, ["doc", "other"]);
    let found = json(&serving, &["show", "doc"]);
    for field in ["tokens", "created", "used", "expires", "kv"] {
        assert_eq!(found[field], shown[field], "{field}");
    }
    assert_eq!(found["state"], "suspended");
    assert_eq!(answer(&serving, "other", " there was"), first);
    let moved = json(&serving, &["suspend", "doc"]);
    assert_eq!(moved["state"], "suspended");
    assert_eq!(json(&serving, &["resume", "doc"])["state"], "idle");
    json(&serving, &["delete", "doc"]);
    let said = refusal(&serving, &["show", "doc"]);
    assert!(said.contains("session_unknown"), "{said}");
    let said = refusal(&serving, &["append", "other", "--prompt", "x"]);
    assert!(
        said.contains("bad_session"),
        "text and messages do not mix: {said}"
    );
}

#[test]
fn two_services_do_not_share_a_place_of_sessions() {
    let (model, store) = (tiny_model(1), tempfile::tempdir().expect("a directory"));
    let store = store.path().display().to_string();
    let first = serve(&model, &store);
    let second = Command::new(env!("CARGO_BIN_EXE_palimpsest"))
        .args(["serve", "--listen", "127.0.0.1:0", "--no-http"])
        .args(["--session-store", &store])
        .arg("--model")
        .arg(model.path())
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("is in use by process"), "{said}");
    // The lock of a process that was killed is nobody's.
    first.signal("KILL");
    first.ended();
    serve(&model, &store).stop();
}

#[test]
fn a_disk_that_takes_no_more_costs_what_was_not_written_and_nothing_else() {
    let (model, disk) = (tiny_model(1), tempfile::tempdir().expect("a directory"));
    let place = |name| disk.path().join(name).display().to_string();
    let (sessions, states) = (place("sessions"), place("states"));
    let stores = ["--session-store", &sessions, "--snapshot-store", &states];
    let args = [&stores[..], &["--session-max-tokens", "100000"]].concat();
    let serving = Serving::start_on_full_disk(model.path(), &args);
    json(&serving, &["create", "doc"]);
    let opening = ["append", "doc", "--raw", "--prompt", "Once upon a time"];
    json(&serving, &opening);
    let before = json(&serving, &["show", "doc"]);
    // Its record would be longer than a file may be.
    let long = "there was a king. ".repeat(130);
    let said = refusal(&serving, &["append", "doc", "--raw", "--prompt", &long]);
    assert!(said.contains("store_unavailable"), "{said}");
    let said = refusal(&serving, &["suspend", "doc"]);
    assert!(said.contains("store_unavailable"), "{said}");
    for field in ["tokens", "used", "state"] {
        let shown = json(&serving, &["show", "doc"]);
        assert_eq!(shown[field], before[field], "{field}");
    }
    json(&serving, &["fork", "doc", "copy"]);
    let told = answer(&serving, "copy", " there was");
    serving.signal("KILL");
    serving.ended();

    let serving = Serving::start_over(model.path(), &[], &args);
    assert_eq!(json(&serving, &["show", "doc"])["tokens"], before["tokens"]);
    assert_eq!(answer(&serving, "doc", " there was"), told);
    json(&serving, &["append", "doc", "--raw", "--prompt", &long]);
    json(&serving, &["suspend", "doc"]);
    serving.stop();
}
