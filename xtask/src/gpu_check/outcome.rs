//! What is known of a run of the stages: the machine, and how each stage ended.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::libraries::Libraries;

/// Lines of a stage's output that go into the report.
const TAIL: usize = 12;

/// How a stage ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it was to do.
    Passed,
    /// It ran, and something is wrong.
    Failed(String),
    /// Its time was over.
    #[default]
    TimedOut,
    /// It could not run, or not all of it, and says why.
    NotRun(String),
}

impl Outcome {
    /// In one or two words.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "FAILED",
            Self::TimedOut => "TIMED OUT",
            Self::NotRun(_) => "NOT RUN",
        }
    }

    /// Why it did not pass, as far as it is known.
    pub fn reason(&self) -> &str {
        match self {
            Self::Failed(why) | Self::NotRun(why) => why,
            Self::Passed | Self::TimedOut => "",
        }
    }
}

/// A stage that was tried.
#[derive(Debug, Clone, Default)]
pub struct Ended {
    /// Its name.
    pub name: String,
    /// What it shows.
    pub what: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Seconds it took.
    pub seconds: f64,
    /// Seconds it had.
    pub limit_seconds: f64,
    /// JSON objects that it printed.
    pub figures: Vec<Value>,
    /// The end of what else it printed.
    pub tail: Vec<String>,
}

impl Ended {
    /// Understands what the stage printed; `exit` is its code, `None` when its time was over.
    pub fn read(&mut self, printed: &str, exit: Option<i32>) {
        let (mut lines, mut skipped) = (Vec::new(), None);
        for line in printed
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty())
        {
            match serde_json::from_str::<Value>(line) {
                Ok(figure @ Value::Object(_)) => self.figures.push(figure),
                _ => lines.push(line.to_owned()),
            }
            // Tests that lack something say so and pass; here that is no pass.
            let reason = line
                .split_once("SKIPPED: ")
                .map(|(_, reason)| reason.to_owned());
            skipped = skipped.or(reason);
        }
        let last = lines.last().cloned().unwrap_or_default();
        self.tail = lines.split_off(lines.len().saturating_sub(TAIL));
        self.outcome = match (exit, skipped) {
            (None, _) => Outcome::TimedOut,
            (Some(0), None) => Outcome::Passed,
            (Some(0), Some(reason)) => Outcome::NotRun(reason),
            (Some(code), _) => Outcome::Failed(format!("ended with {code}: {last}")),
        };
    }

    /// The stage in one line.
    pub fn line(&self) -> String {
        let Self {
            name,
            outcome,
            seconds,
            ..
        } = self;
        format!(
            "{:<9} {name:<22} {seconds:>6.1} s  {}",
            outcome.word(),
            outcome.reason()
        )
    }

    /// The stage as the report's JSON has it.
    pub fn json(&self) -> Value {
        json!({
            "name": self.name,
            "what": self.what,
            "outcome": self.outcome.word(),
            "reason": self.outcome.reason(),
            "seconds": self.seconds,
            "limit_seconds": self.limit_seconds,
            "figures": self.figures,
            "tail": self.tail,
        })
    }
}

/// The machine, as its own tools describe it.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// When the run began, UTC.
    pub date: String,
    /// What `nvidia-smi` says of GPU and driver.
    pub gpu: String,
    /// Libraries of CUDA, and where they are taken from.
    pub libraries: Libraries,
}

impl Machine {
    /// Asks the tools; what is missing stays empty.
    pub fn ask() -> Self {
        let says = |command: &mut Command| {
            let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
            output
                .ok()
                .filter(|it| it.status.success())
                .map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned())
        };
        let query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,\
                     power.limit";
        Self {
            date: says(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M"])).unwrap_or_default(),
            gpu: says(Command::new("nvidia-smi").args([query, "--format=csv,noheader"]))
                .unwrap_or_default(),
            libraries: Libraries::find(),
        }
    }
}

/// A run, as far as it got.
#[derive(Debug, Clone)]
pub struct Run {
    /// What the bundle was made of.
    pub manifest: Value,
    /// Where it ran.
    pub machine: Machine,
    /// Minutes it had.
    pub minutes: f64,
    /// What was tried so far.
    pub stages: Vec<Ended>,
}

impl Run {
    /// Stages that did not pass.
    pub fn bad(&self) -> Vec<String> {
        let bad = self
            .stages
            .iter()
            .filter(|stage| stage.outcome != Outcome::Passed);
        bad.map(|stage| format!("{} ({})", stage.name, stage.outcome.word().to_lowercase()))
            .collect()
    }
}
