//! Running other programs, with everything they print passed on.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The cargo that started this program, else the one on PATH.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// `cargo ARGS`.
pub fn cargo_with(args: &[&str]) -> Command {
    let mut command = cargo();
    command.args(args);
    command
}

/// The command line as a reader would type it.
pub fn display(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let program = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let args = command
        .get_args()
        .map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once(program)
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs `command`, announcing it and how long it took.
///
/// # Errors
/// When it cannot be started or ends with another status than 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = announce(command);
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    finish(&line, start, status)
}

/// Runs `command` and returns its stdout; stderr is passed on.
///
/// # Errors
/// As [`run`].
pub fn output(command: &mut Command) -> Result<String> {
    let line = display(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether `command` can be started and succeeds. Prints nothing.
pub fn succeeds(command: &mut Command) -> bool {
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Runs `command`, passing on what it prints and returning it as well, with whether it succeeded.
///
/// # Errors
/// When it cannot be started.
pub fn run_and_read(command: &mut Command) -> Result<(bool, Vec<String>)> {
    let line = announce(command);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let stdout = child.stdout.take().expect("stdout was requested as a pipe");
    let stderr = child.stderr.take().expect("stderr was requested as a pipe");
    let lines = std::thread::scope(|scope| {
        let errors = scope.spawn(|| pass_on(stderr, |line| eprintln!("{line}")));
        let mut lines = pass_on(stdout, |line| println!("{line}"));
        lines.extend(errors.join().expect("the reader of stderr does not panic"));
        lines
    });
    Ok((child.wait()?.success(), lines))
}

fn pass_on(from: impl Read, print: impl Fn(&str)) -> Vec<String> {
    let mut lines = Vec::new();
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        print(&line);
        lines.push(line);
    }
    lines
}

fn announce(command: &Command) -> String {
    let line = display(command);
    println!("==> {line}");
    line
}

fn finish(line: &str, start: Instant, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    println!("    took {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}
