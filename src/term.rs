//! The terminal: progress for people.

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Whether somebody watches standard error.
pub fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Exit code of a process which the signal for a pipe that nobody reads ended (SIGPIPE, which Rust
/// ignores).
const BROKEN_PIPE: i32 = 128 + 13;

/// Ends the process because nobody reads its output any more, as `head` does when it has enough:
/// no fault of ours.
pub fn end_unread() -> ! {
    std::process::exit(BROKEN_PIPE)
}

/// Writes to standard output, for somebody to read now.
pub fn emit(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => end_unread(),
        written => written,
    }
}

/// A progress bar on standard error, hidden when nobody watches.
pub fn progress(len: u64, what: impl Into<Cow<'static, str>>) -> ProgressBar {
    if !is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{msg:>14} [{bar:32}] {percent:>3}% {elapsed} (left: {eta})");
    ProgressBar::new(len)
        .with_style(style.expect("a constant template"))
        .with_message(what)
}

/// A spinner on standard error, hidden when nobody watches.
pub fn spinner(what: &'static str) -> ProgressBar {
    if !is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(what);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// A progress bar of bytes on standard error, hidden when nobody watches.
pub fn transfer(bytes: u64, what: impl Into<Cow<'static, str>>) -> ProgressBar {
    if !is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    );
    ProgressBar::new(bytes)
        .with_style(style.expect("a constant template"))
        .with_message(what)
}

/// Bytes for people.
pub fn bytes(count: u64) -> String {
    let mib = count as f64 / f64::from(1 << 20);
    if mib >= 1024.0 {
        format!("{:.2} GiB", mib / 1024.0)
    } else {
        format!("{mib:.1} MiB")
    }
}
