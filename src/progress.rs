//! Progress of work that takes minutes or hours: a bar for people, a line every so often for a log.

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use crate::term;

/// Between two lines of a log.
const EVERY: Duration = Duration::from_secs(30);
/// What is done within this time was there before, and says nothing of how long the rest takes.
const FOUND: Duration = Duration::from_secs(1);

/// Work of a known number of steps or bytes, shown on standard error.
pub struct Progress {
    started: Instant,
    shown: Shown,
}

/// What work is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Steps,
    Bytes,
}

impl Unit {
    fn say(self, count: u64) -> String {
        match self {
            Self::Steps => count.to_string(),
            Self::Bytes => term::bytes(count),
        }
    }
}

enum Shown {
    Bar(ProgressBar),
    Lines(Lines<std::io::Stderr>),
}

impl Progress {
    /// Begins work of steps; `what` is being done.
    pub fn new(what: &'static str) -> Self {
        Self::of(what.to_owned(), Unit::Steps)
    }

    /// Begins work of bytes.
    pub fn of_bytes(what: impl Into<String>) -> Self {
        Self::of(what.into(), Unit::Bytes)
    }

    fn of(what: String, unit: Unit) -> Self {
        let shown = match unit {
            _ if !term::is_terminal() => Shown::Lines(Lines::new(what, unit, std::io::stderr())),
            Unit::Steps => Shown::Bar(term::progress(1, what)),
            Unit::Bytes => Shown::Bar(term::transfer(1, what)),
        };
        Self {
            started: Instant::now(),
            shown,
        }
    }

    /// `done` of `of` steps are done.
    pub fn at(&mut self, done: u64, of: u64) {
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_length(of);
                bar.set_position(done);
            }
            Shown::Lines(lines) => lines.at(self.started.elapsed(), done, of),
        }
    }

    /// Ends. A bar goes, a log gets its last line.
    pub fn finish(mut self) {
        match &mut self.shown {
            Shown::Bar(bar) => bar.finish_and_clear(),
            Shown::Lines(lines) => lines.finish(self.started.elapsed()),
        }
    }
}

/// Lines of a log: one for the first step, further ones [`EVERY`] so often, one for the end.
struct Lines<W> {
    what: String,
    unit: Unit,
    out: W,
    /// Earliest time of the next line.
    next: Duration,
    /// Steps that were there before.
    found: u64,
    done: u64,
    of: u64,
}

impl<W: Write> Lines<W> {
    fn new(what: String, unit: Unit, out: W) -> Self {
        Self {
            what,
            unit,
            out,
            next: Duration::ZERO,
            found: 0,
            done: 0,
            of: 0,
        }
    }

    fn at(&mut self, elapsed: Duration, done: u64, of: u64) {
        (self.done, self.of) = (done, of);
        if elapsed < FOUND {
            self.found = done;
        }
        // The end has a line of its own.
        if elapsed < self.next || done == of {
            return;
        }
        self.next = elapsed + EVERY;
        let left = match done.saturating_sub(self.found) {
            0 => String::new(),
            own => {
                let each = elapsed.as_secs_f64() / own as f64;
                let left = Duration::from_secs_f64(each * of.saturating_sub(done) as f64);
                format!(", about {} left", duration(left))
            }
        };
        let (done, of) = (self.unit.say(done), self.unit.say(of));
        let line = format!("{done} of {of} after {}{left}", duration(elapsed));
        self.write(&line);
    }

    fn finish(&mut self, elapsed: Duration) {
        let (done, of) = (self.unit.say(self.done), self.unit.say(self.of));
        let line = format!("{done} of {of} in {}", duration(elapsed));
        self.write(&line);
    }

    /// A log that cannot be written is no reason to end the work.
    fn write(&mut self, line: &str) {
        let _ = writeln!(self.out, "{}: {line}", self.what);
    }
}

/// As people say it: `40 s`, `12 min`, `1 h 5 min`.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds / 60 {
        0 => format!("{seconds} s"),
        minutes @ 1..60 => format!("{minutes} min"),
        minutes => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(steps: impl IntoIterator<Item = (u64, u64)>, of: u64, end: u64) -> Vec<String> {
        let mut lines = Lines::new("tuning".into(), Unit::Steps, Vec::new());
        for (second, done) in steps {
            lines.at(Duration::from_secs(second), done, of);
        }
        lines.finish(Duration::from_secs(end));
        let text = String::from_utf8(lines.out).expect("text");
        text.lines().map(String::from).collect()
    }

    #[test]
    fn a_log_has_a_line_every_half_minute_and_one_for_the_end() {
        let steps = (1..=104).map(|step| (step * 40, step));
        let lines = log(steps, 104, 104 * 40);
        assert_eq!(lines.len(), 104);
        assert_eq!(
            lines[0],
            "tuning: 1 of 104 after 40 s, about 1 h 8 min left"
        );
        assert_eq!(
            lines[51],
            "tuning: 52 of 104 after 34 min, about 34 min left"
        );
        assert_eq!(lines[103], "tuning: 104 of 104 in 1 h 9 min");

        let quick = (1..=1000).map(|step| (step / 10, step));
        let seen = log(quick, 1000, 100);
        let at: Vec<&str> = seen.iter().map(|line| &line[8..16]).collect();
        assert_eq!(
            at,
            ["1 of 100", "300 of 1", "600 of 1", "900 of 1", "1000 of "]
        );
    }

    #[test]
    fn bytes_are_said_for_people() {
        let mut lines = Lines::new("downloading x.gguf".into(), Unit::Bytes, Vec::new());
        lines.at(Duration::from_secs(10), 1 << 20, 4 << 30);
        lines.finish(Duration::from_secs(70));
        let text = String::from_utf8(lines.out).expect("text");
        let first = "downloading x.gguf: 1.0 MiB of 4.00 GiB after 10 s, about 11 h 22 min left\n";
        let last = "downloading x.gguf: 1.0 MiB of 4.00 GiB in 1 min\n";
        assert_eq!(text, format!("{first}{last}"));
    }

    #[test]
    fn what_was_there_before_says_nothing_of_the_rest() {
        let steps = (1..=50).map(|step| (0, step)).chain([(60, 51), (120, 52)]);
        let lines = log(steps, 54, 240);
        assert_eq!(
            lines,
            [
                "tuning: 1 of 54 after 0 s",
                "tuning: 51 of 54 after 1 min, about 3 min left",
                "tuning: 52 of 54 after 2 min, about 2 min left",
                "tuning: 52 of 54 in 4 min",
            ]
        );
    }
}
