//! A conversation in the terminal, typed into a pipe.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use palimpsest_tests::tiny_model;

use crate::serving::Serving;

/// What `chat` prints for these lines.
fn chat(arguments: &[&str], typed: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_palimpsest"))
        .arg("chat")
        .args(arguments)
        .args(["--max-tokens", "5", "--temperature", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(typed.as_bytes()).expect("written");
    drop(input);
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_conversation_goes_on_and_commands_change_it() {
    let model = tiny_model(1);
    let serving = Serving::start_over(model.path(), &[], &[]);
    let typed = "/retention\nhello\n\"\"\"\ntwo\nlines\n\"\"\"\n/retention\n/budget 64\nmore\n\
                 /budget x\n/forget\n/nonsense\n/file /no/such/file\nagain\n/quit\nnever\n";
    let output = chat(&["--server", &serving.grpc], typed);
    let (said, told) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{told}");
    assert!(said.starts_with("nothing was asked yet\n"), "{said}");
    for part in [
        "a KV head holds",
        "/budget takes a number",
        "/nonsense is no command",
    ] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
    assert!(said.contains("/no/such/file"), "{said}");
    // Four answers; the second and third read what was known and what is new.
    let answers: Vec<&str> = told
        .lines()
        .filter(|line| line.contains("tokens read"))
        .collect();
    assert_eq!(answers.len(), 4, "{told}");
    let prompt = |line: &str| -> u64 {
        let numbers = line.split(|c: char| !c.is_ascii_digit());
        numbers
            .filter_map(|word| word.parse::<u64>().ok())
            .take(2)
            .sum()
    };
    assert!(prompt(answers[1]) > prompt(answers[0]), "{told}");
    assert!(
        prompt(answers[3]) < prompt(answers[2]),
        "it was to forget: {told}"
    );
}

#[test]
fn what_a_server_refuses_leaves_the_conversation_as_it_was() {
    let model = tiny_model(1);
    let serving = Serving::start_over(model.path(), &[], &[]);
    let output = chat(
        &["--server", &serving.grpc],
        "/budget 1\nhello\n/budget 0\nhello\n",
    );
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("[bad_contract"), "{told}");
    assert_eq!(told.matches("tokens read").count(), 1, "{told}");

    let output = chat(&["--server", "127.0.0.1:1"], "hello\n");
    assert!(!output.status.success());
    assert!(
        text(&output.stderr).contains("no server answers at"),
        "{output:?}"
    );
}
