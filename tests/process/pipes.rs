//! What is piped into a program that does not read it all.

use std::process::{Command, Stdio};

#[test]
fn a_command_whose_output_nobody_reads_ends_quietly() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/assets/indexers/smollm2-135m-instruct.safetensors"
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_palimpsest"));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let ended = command
        .args(["inspect", file])
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .expect("it starts");
    assert_eq!(ended.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
}
