//! What is kept of a prompt outlives a process that is killed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use palimpsest_tests::{STRIDE, tiny_model};
use serde_json::Value;

use crate::serving::Serving;

fn serve(model: &Path, store: &str) -> Serving {
    Serving::start_over(model, &[], &["--snapshot-store", store])
}

/// The answer to `prompt`, and how many of its tokens were not read.
fn ask(serving: &Serving, prompt: &str) -> (String, u64) {
    let output = Command::new(env!("CARGO_BIN_EXE_palimpsest"))
        .args(["generate", "--server", &serving.grpc, "--raw", "--json"])
        .args(["--max-tokens", "5", "--prompt", prompt])
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let lines = String::from_utf8(output.stdout).expect("text");
    let events = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let (mut text, mut cached) = (String::new(), 0);
    for event in events {
        text.push_str(event["text"].as_str().unwrap_or_default());
        if let Some(count) = event["usage"]["cached_tokens"].as_u64() {
            cached = count;
        }
    }
    (text, cached)
}

/// Files of kept states below a directory.
fn files(store: &str) -> Vec<std::path::PathBuf> {
    let within = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    // A folder for the model, and one for each state.
    let models = within(&Path::new(store).join("snapshots"));
    let states = models.iter().flat_map(|model| within(model));
    states
        .flat_map(|state| within(&state))
        .filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
        .collect()
}

fn until_kept(store: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while files(store).is_empty() {
        assert!(Instant::now() < deadline, "nothing is kept in {store}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A text of some strides.
fn document() -> String {
    "Once upon a time there was a king who read. ".repeat(STRIDE as usize / 2)
}

#[test]
fn a_document_is_read_once_though_the_process_is_killed() {
    let (model, store) = (tiny_model(1), tempfile::tempdir().expect("a directory"));
    let store = store.path().display().to_string();
    let prompt = document();
    let serving = serve(model.path(), &store);
    let (first, read) = ask(&serving, &prompt);
    assert_eq!(read, 0);
    let (again, kept) = ask(&serving, &prompt);
    assert!(kept > STRIDE, "{kept} tokens were kept");
    assert_eq!(again, first);
    until_kept(&store);
    serving.signal("KILL");
    serving.ended();

    let serving = serve(model.path(), &store);
    let (after, kept) = ask(&serving, &prompt);
    assert!(kept > STRIDE, "{kept} tokens were kept");
    assert_eq!(after, first);
    serving.stop();
}

#[test]
fn a_damaged_state_is_never_served() {
    let (model, store) = (tiny_model(1), tempfile::tempdir().expect("a directory"));
    let store = store.path().display().to_string();
    let prompt = document();
    let serving = serve(model.path(), &store);
    let (first, _) = ask(&serving, &prompt);
    until_kept(&store);
    // What is under way is written before the process ends.
    serving.stop();
    for (number, file) in files(&store).iter().enumerate() {
        let mut bytes = std::fs::read(file).expect("a file");
        match number % 2 {
            0 => bytes.truncate(bytes.len() / 2),
            _ => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
        }
        std::fs::write(file, bytes).expect("room");
    }
    let serving = serve(model.path(), &store);
    let (after, kept) = ask(&serving, &prompt);
    assert_eq!((after, kept), (first, 0));
    serving.stop();
}

/// Many sessions, several clients and `kill -9`: the small form of `cargo xtask bench-state soak`,
/// which fails if anything that was acknowledged is missing or another.
#[test]
fn what_many_sessions_were_told_outlives_kills() {
    let place = tempfile::tempdir().expect("a directory");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/bench_state.py");
    let output = Command::new("python3")
        .args([
            script,
            "soak",
            "--palimpsest",
            env!("CARGO_BIN_EXE_palimpsest"),
        ])
        .args([
            "--tokens",
            "2048",
            "--sessions",
            "12",
            "--resumes",
            "150",
            "--kills",
            "2",
        ])
        .args(["--stories", "12", "--threads", "1", "--place"])
        .arg(place.path())
        .output()
        .expect("python3 runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{wrong}");
    assert!(
        said.contains("faults: []\n") && said.contains("different: []"),
        "{said}"
    );
}
