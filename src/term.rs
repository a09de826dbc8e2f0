//! The terminal: progress for people, silence for pipes.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Whether somebody watches standard error.
pub fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// A progress bar on standard error, hidden when nobody watches.
pub fn progress(len: u64, what: &'static str) -> ProgressBar {
    if !is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{msg:>14} [{bar:32}] {percent:>3}% {elapsed} (left: {eta})");
    ProgressBar::new(len)
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
