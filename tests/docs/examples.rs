//! The programs of `examples/`, over a tiny model.

use std::path::{Path, PathBuf};
use std::process::Command;

use palimpsest_tests::tiny_model;

use crate::session::{Session, python_packages, repository};

/// What each of them is asked.
const QUESTION: &str = "Hello";

#[test]
fn the_example_in_rust_runs() {
    let client = built_example("client");
    let said = ask(&format!(
        "'{}' {QUESTION} http://127.0.0.1:50051",
        client.display()
    ));
    assert!(said.contains("entries held per KV head"), "{said}");
}

#[test]
fn the_example_in_python_over_grpc_runs() {
    if python_packages().is_none() {
        eprintln!("SKIPPED: `cargo xtask test` installs the Python packages");
        return;
    }
    let said = ask(&format!(
        "python3 examples/grpc_client.py {QUESTION} 127.0.0.1:50051"
    ));
    assert!(said.contains("entries held per KV head"), "{said}");
}

#[test]
fn the_example_in_python_over_openai_runs() {
    if python_packages().is_none() {
        eprintln!("SKIPPED: `cargo xtask test` installs the Python packages");
        return;
    }
    let said = ask(&format!(
        "python3 examples/openai_client.py {QUESTION} http://127.0.0.1:8000/v1"
    ));
    assert!(said.contains("entries held per KV head"), "{said}");
}

#[test]
fn the_example_with_curl_runs() {
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: curl is not installed; `cargo xtask test` installs it");
        return;
    }
    let said = ask(&format!(
        "sh examples/curl.sh {QUESTION} http://127.0.0.1:8000"
    ));
    assert!(
        said.contains("held_slots") && said.contains("[DONE]"),
        "{said}"
    );
}

/// An example is read in one sitting.
#[test]
fn examples_are_short() {
    for entry in std::fs::read_dir(repository().join("examples")).expect("the examples") {
        let path = entry.expect("an entry").path();
        let lines = std::fs::read_to_string(&path)
            .expect("text")
            .lines()
            .count();
        assert!(
            (20..=60).contains(&lines),
            "{}: {lines} lines",
            path.display()
        );
    }
}

/// Runs a command while the tiny model is served, and returns what it printed.
fn ask(command: &str) -> String {
    let model = tiny_model(1);
    let mut session = Session::start();
    let arguments = "--threads 1 --kv-memory-mib 64 --stride 16 --kv-budget 64";
    session.serve(&format!(
        "palimpsest serve {arguments} --model '{}'",
        model.path().display()
    ));
    let output = session.shell(command);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {printed}{said}");
    printed
}

/// Path of an example, which cargo builds with the tests, beside the program.
fn built_example(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_palimpsest"));
    let folder = program.parent().expect("a folder").join("examples");
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build --example {name}`",
        path.display()
    );
    path
}
