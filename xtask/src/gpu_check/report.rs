//! A run of the stages as JSON and as Markdown: the files that are committed under `tests/gpu`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::goals::{self, Goal};
use super::outcome::{Ended, Outcome, Run};

/// Writes `report.json` and `report.md`.
///
/// # Errors
/// When they cannot be written.
pub fn write(run: &Run, folder: &Path) -> Result<()> {
    let json = format!("{:#}\n", json(run));
    let written = fs::create_dir_all(folder)
        .and_then(|()| fs::write(folder.join("report.json"), json))
        .and_then(|()| fs::write(folder.join("report.md"), markdown(run)));
    written.with_context(|| format!("cannot write to {}", folder.display()))
}

fn json(run: &Run) -> Value {
    json!({
        "bundle": run.manifest,
        "date": run.machine.date,
        "gpu": run.machine.gpu,
        "libraries": run.machine.libraries.found,
        "minutes": run.minutes,
        "passed": run.bad().is_empty(),
        "stages": run.stages.iter().map(Ended::json).collect::<Vec<_>>(),
        "goals": goals::all(run).iter().map(Goal::json).collect::<Vec<_>>(),
    })
}

fn markdown(run: &Run) -> String {
    let mut text = heading(run) + &stages_table(run) + &goals_table(run);
    for stage in &run.stages {
        text += &details(stage);
    }
    text
}

/// What was run, where and when.
fn heading(run: &Run) -> String {
    let or_none = |text: &str| match text {
        "" => "none found".to_owned(),
        _ => text.to_owned(),
    };
    let commit = run.manifest["commit"].as_str().unwrap_or("unknown");
    let changed = match run.manifest["changed"] == true {
        true => ", with uncommitted changes",
        false => "",
    };
    let tried = match run.manifest["profile"] == "dev" {
        true => "; development profile: no figure counts",
        false => "",
    };
    format!(
        "# GPU check of {} UTC\n\n- GPU and driver: {}\n- Libraries: {}\n- Commit: \
         {commit}{changed}{tried}\n- Minutes given: {}\n\n",
        run.machine.date,
        or_none(&run.machine.gpu),
        or_none(&run.machine.libraries.found.join("; ")),
        run.minutes
    )
}

fn stages_table(run: &Run) -> String {
    let mut text =
        "| stage | what it shows | outcome | seconds | reason |\n|---|---|---|---|---|\n"
            .to_owned();
    for stage in &run.stages {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.1} | {} |",
            stage.name,
            stage.what,
            stage.outcome.word(),
            stage.seconds,
            cell(stage.outcome.reason())
        );
    }
    text
}

fn goals_table(run: &Run) -> String {
    let mut text =
        "\n## Goals\n\n| goal | wanted | measured | verdict |\n|---|---|---|---|\n".to_owned();
    for goal in goals::all(run) {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            goal.name,
            goal.want,
            cell(&goal.measured()),
            goal.word()
        );
    }
    text
}

/// A stage's figures, and the end of what it printed when it did not pass.
fn details(stage: &Ended) -> String {
    let mut text = String::new();
    if !stage.figures.is_empty() {
        let _ = writeln!(text, "\n## Figures of `{}`\n\n```json", stage.name);
        for figure in &stage.figures {
            let _ = writeln!(text, "{}", shortened(figure));
        }
        text += "```\n";
    }
    if stage.outcome != Outcome::Passed && !stage.tail.is_empty() {
        let (name, tail) = (&stage.name, stage.tail.join("\n"));
        let _ = writeln!(text, "\n## End of `{name}`\n\n```text\n{tail}\n```");
    }
    text
}

/// Text inside a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
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
    use crate::gpu_check::outcome::{Ended, Machine};

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

    fn run(stages: Vec<Ended>) -> Run {
        let machine = Machine {
            date: "2026-01-02 03:04".into(),
            ..Machine::default()
        };
        Run {
            manifest: json!({"commit": "abc", "changed": true}),
            machine,
            minutes: 9.5,
            stages,
        }
    }

    #[test]
    fn a_run_without_a_driver_says_so_for_every_stage_and_is_no_pass() {
        let missing = "no CUDA driver on this machine";
        let run = run(vec![
            ended("device", &format!("error: {missing}"), Some(1)),
            ended(
                "conformance",
                &format!("SKIPPED: {missing}\ntest result: ok. 3 passed"),
                Some(0),
            ),
        ]);
        assert_eq!(run.bad(), ["device (failed)", "conformance (not run)"]);
        let (text, json) = (markdown(&run), json(&run));
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
        write(&run(vec![ended("device", "{}", Some(0))]), &folder).unwrap();
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
