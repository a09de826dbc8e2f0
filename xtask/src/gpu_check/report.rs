//! What a run of the stages found, as JSON and as Markdown: the files that are committed under `tests/gpu`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::{Value, json};

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
        for line in printed.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
            match serde_json::from_str::<Value>(line) {
                Ok(figure @ Value::Object(_)) => self.figures.push(figure),
                _ => lines.push(line.to_owned()),
            }
            // Tests that lack something say so and pass; here that is no pass.
            let reason = line.split_once("SKIPPED: ").map(|(_, reason)| reason.to_owned());
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
        let Self { name, outcome, seconds, .. } = self;
        format!("{:<9} {name:<22} {seconds:>6.1} s  {}", outcome.word(), outcome.reason())
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
            output.ok().filter(|it| it.status.success()).map(|it| String::from_utf8_lossy(&it.stdout).trim().to_owned())
        };
        let query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit";
        let known = says(Command::new("ldconfig").arg("-p")).unwrap_or_default();
        let wanted = |line: &&str| ["libcuda.so", "libcublas.so", "libnccl.so"].iter().any(|name| line.contains(name));
        Self {
            date: says(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M"])).unwrap_or_default(),
            gpu: says(Command::new("nvidia-smi").args([query, "--format=csv,noheader"])).unwrap_or_default(),
            libraries: known.lines().map(str::trim).filter(wanted).map(str::to_owned).collect(),
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

/// A figure that the issue asks for.
#[derive(Debug, PartialEq)]
struct Target {
    name: &'static str,
    want: String,
    got: Option<f64>,
    met: bool,
}

impl Report {
    /// Stages that did not pass.
    pub fn bad(&self) -> Vec<String> {
        let bad = self.stages.iter().filter(|stage| stage.outcome != Outcome::Passed);
        bad.map(|stage| format!("{} ({})", stage.name, stage.outcome.word().to_lowercase())).collect()
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
        let Machine { date, gpu, libraries } = &self.machine;
        let targets = self.targets().into_iter();
        json!({
            "bundle": self.manifest, "date": date, "gpu": gpu, "libraries": libraries, "minutes": self.minutes,
            "passed": self.bad().is_empty(), "stages": self.stages.iter().map(Ended::json).collect::<Vec<_>>(),
            "targets": targets.map(|t| json!({"name": t.name, "want": t.want, "got": t.got, "met": t.met}))
                .collect::<Vec<_>>(),
        })
    }

    fn markdown(&self) -> String {
        let Machine { date, gpu, libraries } = &self.machine;
        let or_none = |text: &str| if text.is_empty() { "none found".to_owned() } else { text.to_owned() };
        let commit = self.manifest["commit"].as_str().unwrap_or("unknown");
        let changed = if self.manifest["changed"] == true { ", with uncommitted changes" } else { "" };
        let tried = if self.manifest["profile"] == "dev" { "; development profile: no figure counts" } else { "" };
        let mut text = format!(
            "# GPU check of {date} UTC\n\n- GPU and driver: {}\n- Libraries: {}\n- Commit: {commit}{changed}{tried}\n- Minutes given: {}\n\n",
            or_none(gpu),
            or_none(&libraries.join("; ")),
            self.minutes
        );
        text += "| stage | what it shows | outcome | seconds | reason |\n|---|---|---|---|---|\n";
        let cell = |text: &str| text.replace('|', "\\|");
        for stage in &self.stages {
            let Ended { name, what, outcome, seconds, .. } = stage;
            let _ =
                writeln!(text, "| {name} | {what} | {} | {seconds:.1} | {} |", outcome.word(), cell(outcome.reason()));
        }
        text += "\n| figure | wanted | measured | met |\n|---|---|---|---|\n";
        for Target { name, want, got, met } in self.targets() {
            let got = got.map_or_else(|| "not measured".into(), |got| format!("{got:.3}"));
            let _ = writeln!(text, "| {name} | {want} | {got} | {} |", if met { "yes" } else { "no" });
        }
        for stage in &self.stages {
            if !stage.figures.is_empty() {
                let _ = writeln!(text, "\n## Figures of `{}`\n\n```json", stage.name);
                stage.figures.iter().for_each(|figure| text += &format!("{}\n", shortened(figure)));
                text += "```\n";
            }
            if stage.outcome != Outcome::Passed && !stage.tail.is_empty() {
                let _ = writeln!(text, "\n## End of `{}`\n\n```text\n{}\n```", stage.name, stage.tail.join("\n"));
            }
        }
        text
    }

    fn figures(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.stages.iter().flat_map(|stage| &stage.figures).filter(move |figure| figure["kind"] == kind)
    }

    /// The issue's figures that this run can tell.
    fn targets(&self) -> Vec<Target> {
        let least = |name, bound: f64, got: Option<f64>| Target {
            name,
            want: format!("at least {bound}"),
            got,
            met: got.is_some_and(|got| got >= bound),
        };
        let most = |name, bound: f64, got: Option<f64>| Target {
            name,
            want: format!("at most {bound}"),
            got,
            met: got.is_some_and(|got| got <= bound),
        };
        let attention = |kind, key: &str, sequences: u64| {
            self.figures(kind).find(|figure| figure["sequences"] == sequences).and_then(|figure| figure[key].as_f64())
        };
        vec![
            least("decode attention, 64 x 4096, of copy bandwidth", 0.85, attention("decode attention", "of_copy", 64)),
            least("prefill attention, stride 512, of bf16 rate", 0.6, attention("prefill attention", "of_product", 1)),
            most("8B decode, 1 sequence, time over floor", 1.25, self.decode_over_floor(1)),
            most("8B decode, 64 sequences, time over floor", 1.4, self.decode_over_floor(64)),
            most("prefill: slowest eighth of strides over fastest, from 8K on", 1.05, self.stride_spread()),
            most("8B, scoring, eviction and memory, of prefill", 0.03, self.boundary_of_prefill()),
            most("8B, 64 sequences, the same, of decode", 0.02, self.boundary_of_decode(64)),
        ]
    }

    /// Time of a step over that of reading once, at the measured copy bandwidth, what it must read.
    fn decode_over_floor(&self, sequences: u64) -> Option<f64> {
        let bandwidth = self.figures("copy").next()?["bytes_per_second"].as_f64()?;
        let point = self.figures("decode").find(|point| point["sequences"] == sequences)?;
        let seconds = sequences as f64 / point["tokens_per_second"].as_f64()?;
        Some(seconds / (point["step_bytes"].as_f64()? / bandwidth))
    }

    /// Time of a boundary's kernels over the median stride of the longest prefill.
    fn boundary_of_prefill(&self) -> Option<f64> {
        let seconds = self.figures("boundary").next()?["seconds"].as_f64()?;
        let longest = self.figures("prefill").max_by_key(|point| point["depth"].as_u64())?;
        let mut strides: Vec<f64> = longest["stride_seconds"].as_array()?.iter().filter_map(Value::as_f64).collect();
        strides.sort_by(f64::total_cmp);
        Some(seconds / strides.get(strides.len() / 2)?)
    }

    /// The same over decoding as many tokens as there are between two boundaries, each sequence with its own.
    fn boundary_of_decode(&self, sequences: u64) -> Option<f64> {
        let boundary = self.figures("boundary").next()?;
        let point = self.figures("decode").find(|point| point["sequences"] == sequences)?;
        Some(boundary["seconds"].as_f64()? * point["tokens_per_second"].as_f64()? / boundary["stride"].as_f64()?)
    }

    /// Medians of eighths of the longest prefill, from position 8192 on: the largest over the smallest.
    fn stride_spread(&self) -> Option<f64> {
        let longest = self.figures("prefill").max_by_key(|point| point["depth"].as_u64())?;
        let (depth, strides) = (longest["depth"].as_u64()? as usize, longest["stride_seconds"].as_array()?);
        let seconds: Vec<f64> = strides.iter().filter_map(Value::as_f64).collect();
        let flat = seconds.get(8192 * seconds.len() / depth.max(1)..)?;
        let medians = flat.chunks((flat.len() / 8).max(1)).map(|part| {
            let mut part = part.to_vec();
            part.sort_by(f64::total_cmp);
            part[part.len() / 2]
        });
        let (least, most) = medians.fold((f64::INFINITY, 0.0f64), |(a, b), x| (a.min(x), b.max(x)));
        (most > 0.0).then_some(most / least)
    }
}

/// Long lists by their length: the JSON report has them.
fn shortened(figure: &Value) -> Value {
    let Value::Object(fields) = figure else { return figure.clone() };
    let short = |value: &Value| match value {
        Value::Array(values) if values.len() > 8 => json!(format!("{} values", values.len())),
        other => other.clone(),
    };
    Value::Object(fields.iter().map(|(name, value)| (name.clone(), short(value))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: &str, printed: &str, exit: Option<i32>) -> Ended {
        let mut ended = Ended { name: name.into(), what: "w".into(), limit_seconds: 9.0, ..Ended::default() };
        ended.read(printed, exit);
        ended
    }

    fn report(stages: Vec<Ended>) -> Report {
        let machine = Machine { date: "2026-01-02 03:04".into(), ..Machine::default() };
        Report { manifest: json!({"commit": "abc", "changed": true}), machine, minutes: 9.5, stages }
    }

    #[test]
    fn a_run_without_a_driver_says_so_for_every_stage_and_is_no_pass() {
        let missing = "no CUDA driver on this machine";
        let report = report(vec![
            ended("device", &format!("error: {missing}"), Some(1)),
            ended("conformance", &format!("SKIPPED: {missing}\ntest result: ok. 3 passed"), Some(0)),
        ]);
        assert_eq!(report.bad(), ["device (failed)", "conformance (not run)"]);
        let (text, json) = (report.markdown(), report.json());
        assert_eq!(text.matches(missing).count(), 4, "in the table and in the ends: {text}");
        assert!(
            text.contains("GPU and driver: none found") && text.contains("abc, with uncommitted changes"),
            "{text}"
        );
        assert_eq!((&json["passed"], &json["stages"][1]["outcome"]), (&json!(false), &json!("NOT RUN")));
        assert!(text.contains("| not measured | no |") && json["targets"][0]["got"].is_null());
    }

    #[test]
    fn targets_are_computed_from_what_was_measured() {
        let kernels = r#"{"kind": "copy", "bytes_per_second": 4e12}
{"kind": "decode attention", "sequences": 1, "of_copy": 0.2}
{"kind": "decode attention", "sequences": 64, "of_copy": 0.9}
{"kind": "prefill attention", "sequences": 1, "of_product": 0.5}
{"kind": "boundary", "stride": 512, "seconds": 0.022}"#;
        let decode = r#"{"kind": "decode", "sequences": 1, "tokens_per_second": 200.0, "step_bytes": 16e9}"#;
        let strides: Vec<f64> = (0..64).map(|i| if i < 16 { 9.0 } else { 1.0 + f64::from(i / 32) * 0.1 }).collect();
        let prefill = json!({"kind": "prefill", "depth": 32768, "stride_seconds": strides}).to_string();
        let all =
            [("k", kernels), ("d", decode), ("p", prefill.as_str())].map(|(name, text)| ended(name, text, Some(0)));
        let report = report(all.to_vec());
        assert!(report.bad().is_empty());
        let found: Vec<_> = report.targets().into_iter().map(|target| (target.got, target.met)).collect();
        assert_eq!(found[..2], [(Some(0.9), true), (Some(0.5), false)]);
        // 5 ms against a floor of 4 ms.
        assert!(found[2].0.is_some_and(|got| (got - 1.25).abs() < 1e-9), "{found:?}");
        assert_eq!(found[3], (None, false));
        // The first 8192 positions do not count.
        assert!(found[4].0.is_some_and(|got| (got - 1.1).abs() < 1e-9) && !found[4].1, "{found:?}");
        // 22 ms beside a stride of 1.1 s; decode was not measured with 64 sequences.
        assert!(found[5].0.is_some_and(|got| (got - 0.02).abs() < 1e-9) && found[5].1, "{found:?}");
        assert_eq!(found[6], (None, false));
        assert!(report.markdown().contains("\"64 values\""));
    }

    #[test]
    fn both_files_are_written() {
        let folder = std::env::temp_dir().join(format!("gpu-report-{}", std::process::id()));
        report(vec![ended("device", "{}", Some(0))]).write(&folder).unwrap();
        let json: Value = serde_json::from_str(&fs::read_to_string(folder.join("report.json")).unwrap()).unwrap();
        assert_eq!((&json["passed"], &json["date"]), (&json!(true), &json!("2026-01-02 03:04")));
        assert!(fs::read_to_string(folder.join("report.md")).unwrap().starts_with("# GPU check of 2026-01-02"));
        fs::remove_dir_all(folder).unwrap();
    }
}
