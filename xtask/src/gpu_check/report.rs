//! What a run of the stages found, as JSON and as Markdown: the files that are committed under
//! `tests/gpu`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::goals::{self, Goal};

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
    fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "FAILED",
            Self::TimedOut => "TIMED OUT",
            Self::NotRun(_) => "NOT RUN",
        }
    }

    fn reason(&self) -> &str {
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

    fn json(&self) -> Value {
        json!({
            "name": self.name, "what": self.what, "outcome": self.outcome.word(), "reason": self.outcome.reason(),
            "seconds": self.seconds, "limit_seconds": self.limit_seconds, "figures": self.figures, "tail": self.tail,
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
    /// Libraries of CUDA that the loader knows.
    pub libraries: Vec<String>,
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
        let known = says(Command::new("ldconfig").arg("-p")).unwrap_or_default();
        let wanted = |line: &&str| {
            ["libcuda.so", "libcublas.so", "libnccl.so"]
                .iter()
                .any(|name| line.contains(name))
        };
        Self {
            date: says(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M"])).unwrap_or_default(),
            gpu: says(Command::new("nvidia-smi").args([query, "--format=csv,noheader"]))
                .unwrap_or_default(),
            libraries: known
                .lines()
                .map(str::trim)
                .filter(wanted)
                .map(str::to_owned)
                .collect(),
        }
    }
}

/// A run.
#[derive(Debug, Clone)]
pub struct Report {
    /// What the bundle was made of.
    pub manifest: Value,
    /// Where it ran.
    pub machine: Machine,
    /// Minutes it had.
    pub minutes: f64,
    /// What was tried so far.
    pub stages: Vec<Ended>,
}

impl Report {
    /// Stages that did not pass.
    pub fn bad(&self) -> Vec<String> {
        let bad = self
            .stages
            .iter()
            .filter(|stage| stage.outcome != Outcome::Passed);
        bad.map(|stage| format!("{} ({})", stage.name, stage.outcome.word().to_lowercase()))
            .collect()
    }

    /// Writes `report.json` and `report.md`.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let json = format!("{:#}\n", self.json());
        let written = fs::create_dir_all(folder)
            .and_then(|()| fs::write(folder.join("report.json"), json))
            .and_then(|()| fs::write(folder.join("report.md"), self.markdown()));
        written.with_context(|| format!("cannot write to {}", folder.display()))
    }

    fn json(&self) -> Value {
        let Machine {
            date,
            gpu,
            libraries,
        } = &self.machine;
        json!({
            "bundle": self.manifest, "date": date, "gpu": gpu, "libraries": libraries, "minutes": self.minutes,
            "passed": self.bad().is_empty(), "stages": self.stages.iter().map(Ended::json).collect::<Vec<_>>(),
            "goals": goals::all(self).iter().map(Goal::json).collect::<Vec<_>>(),
        })
    }

    fn markdown(&self) -> String {
        let Machine {
            date,
            gpu,
            libraries,
        } = &self.machine;
        let or_none = |text: &str| {
            if text.is_empty() {
                "none found".to_owned()
            } else {
                text.to_owned()
            }
        };
        let commit = self.manifest["commit"].as_str().unwrap_or("unknown");
        let changed = if self.manifest["changed"] == true {
            ", with uncommitted changes"
        } else {
            ""
        };
        let tried = if self.manifest["profile"] == "dev" {
            "; development profile: no figure counts"
        } else {
            ""
        };
        let mut text = format!(
            "# GPU check of {date} UTC\n\n- GPU and driver: {}\n- Libraries: {}\n- Commit: \
             {commit}{changed}{tried}\n- Minutes given: {}\n\n",
            or_none(gpu),
            or_none(&libraries.join("; ")),
            self.minutes
        );
        text += "| stage | what it shows | outcome | seconds | reason |\n|---|---|---|---|---|\n";
        let cell = |text: &str| text.replace('|', "\\|");
        for stage in &self.stages {
            let Ended {
                name,
                what,
                outcome,
                seconds,
                ..
            } = stage;
            let _ = writeln!(
                text,
                "| {name} | {what} | {} | {seconds:.1} | {} |",
                outcome.word(),
                cell(outcome.reason())
            );
        }
        text +=
            "\n## Goals of issue 6\n\n| goal | wanted | measured | verdict |\n|---|---|---|---|\n";
        for goal in goals::all(self) {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} |",
                goal.name,
                goal.want,
                cell(&goal.measured()),
                goal.word()
            );
        }
        for stage in &self.stages {
            if !stage.figures.is_empty() {
                let _ = writeln!(text, "\n## Figures of `{}`\n\n```json", stage.name);
                stage
                    .figures
                    .iter()
                    .for_each(|figure| text += &format!("{}\n", shortened(figure)));
                text += "```\n";
            }
            if stage.outcome != Outcome::Passed && !stage.tail.is_empty() {
                let _ = writeln!(
                    text,
                    "\n## End of `{}`\n\n```text\n{}\n```",
                    stage.name,
                    stage.tail.join("\n")
                );
            }
        }
        text
    }
}

/// Long lists by their length: the JSON report has them.
fn shortened(figure: &Value) -> Value {
    let Value::Object(fields) = figure else {
        return figure.clone();
    };
    let short = |value: &Value| match value {
        Value::Array(values) if values.len() > 8 => json!(format!("{} values", values.len())),
        other => other.clone(),
    };
    Value::Object(
        fields
            .iter()
            .map(|(name, value)| (name.clone(), short(value)))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: &str, printed: &str, exit: Option<i32>) -> Ended {
        let mut ended = Ended {
            name: name.into(),
            what: "w".into(),
            limit_seconds: 9.0,
            ..Ended::default()
        };
        ended.read(printed, exit);
        ended
    }

    fn report(stages: Vec<Ended>) -> Report {
        let machine = Machine {
            date: "2026-01-02 03:04".into(),
            ..Machine::default()
        };
        Report {
            manifest: json!({"commit": "abc", "changed": true}),
            machine,
            minutes: 9.5,
            stages,
        }
    }

    #[test]
    fn a_run_without_a_driver_says_so_for_every_stage_and_is_no_pass() {
        let missing = "no CUDA driver on this machine";
        let report = report(vec![
            ended("device", &format!("error: {missing}"), Some(1)),
            ended(
                "conformance",
                &format!("SKIPPED: {missing}\ntest result: ok. 3 passed"),
                Some(0),
            ),
        ]);
        assert_eq!(report.bad(), ["device (failed)", "conformance (not run)"]);
        let (text, json) = (report.markdown(), report.json());
        assert_eq!(
            text.matches(missing).count(),
            5,
            "in both tables and in the ends: {text}"
        );
        assert!(
            text.contains("GPU and driver: none found")
                && text.contains("abc, with uncommitted changes"),
            "{text}"
        );
        assert_eq!(
            (&json["passed"], &json["stages"][1]["outcome"]),
            (&json!(false), &json!("NOT RUN"))
        );
        assert!(
            text.contains("| not measured: stage `kernels` was not tried | not measured |"),
            "{text}"
        );
        let goals = json["goals"].as_array().expect("a list");
        assert!(
            goals.iter().all(|goal| goal["verdict"] == "not measured"),
            "{goals:?}"
        );
    }

    #[test]
    fn both_files_are_written() {
        let folder = std::env::temp_dir().join(format!("gpu-report-{}", std::process::id()));
        report(vec![ended("device", "{}", Some(0))])
            .write(&folder)
            .unwrap();
        let json: Value =
            serde_json::from_str(&fs::read_to_string(folder.join("report.json")).unwrap()).unwrap();
        assert_eq!(
            (&json["passed"], &json["date"]),
            (&json!(true), &json!("2026-01-02 03:04"))
        );
        assert!(
            fs::read_to_string(folder.join("report.md"))
                .unwrap()
                .starts_with("# GPU check of 2026-01-02")
        );
        fs::remove_dir_all(folder).unwrap();
    }
}
