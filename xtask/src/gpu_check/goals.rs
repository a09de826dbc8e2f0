//! The goals of tests/gpu/README.md: what is wanted, what a run measured, and why not where it did
//! not.

use serde_json::{Value, json};

use super::outcome::{Ended, Outcome, Run};

/// The longest context that strides are to be flat to.
const FLAT_TO: u64 = 1 << 20;
/// Where strides begin to count.
const FLAT_FROM: usize = 8192;

/// Whether a goal was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was.
    Pass,
    /// It was measured and missed, or a check found something.
    Fail,
    /// Nobody knows, and why.
    NotMeasured(String),
}

/// A goal and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Goal {
    /// What it is about.
    pub name: &'static str,
    /// What is wanted.
    pub want: String,
    /// What was measured, for goals with a figure. It may be there without a verdict: then it was
    /// measured under other conditions.
    pub got: Option<f64>,
    /// What follows.
    pub verdict: Verdict,
}

/// Which side of its bound a figure has to be on.
#[derive(Clone, Copy)]
enum Bound {
    Least(f64),
    Most(f64),
}

impl Goal {
    /// What was measured, or why it was not.
    pub fn measured(&self) -> String {
        let got = self.got.map(|got| format!("{got:.3}"));
        match (&self.verdict, got) {
            (Verdict::NotMeasured(why), None) => format!("not measured: {why}"),
            (Verdict::NotMeasured(why), Some(got)) => format!("{got}, which does not count: {why}"),
            (Verdict::Pass, None) => "nothing was found wrong".into(),
            (Verdict::Fail, None) => "something was found wrong".into(),
            (_, Some(got)) => got,
        }
    }

    /// Pass, fail or neither, in a word.
    pub fn word(&self) -> &'static str {
        match self.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::NotMeasured(_) => "not measured",
        }
    }

    /// For `report.json`.
    pub fn json(&self) -> Value {
        json!({
            "name": self.name,
            "want": self.want,
            "got": self.got,
            "measured": self.measured(),
            "verdict": self.word(),
        })
    }
}

/// All goals, in order: speed first, then what has to be right.
pub fn all(run: &Run) -> Vec<Goal> {
    let run = Measured(run);
    let figure = |name, bound, stages, got| run.figure(name, bound, stages, got);
    let mut goals = vec![
        figure(
            "decode attention, 64 sequences of 4096 slots, of copy bandwidth",
            Bound::Least(0.85),
            &["kernels"],
            run.attention("decode attention", "of_copy", 64),
        ),
        figure(
            "prefill attention, stride 512, of the bf16 product rate",
            Bound::Least(0.6),
            &["kernels"],
            run.attention("prefill attention", "of_product", 1),
        ),
        figure(
            "8B, 1 sequence: time of a step over its floor",
            Bound::Most(1.25),
            &["kernels", "decode, 1 sequence"],
            run.decode_over_floor(1),
        ),
        figure(
            "8B, 64 sequences, budget 4096: time of a step over its floor",
            Bound::Most(1.4),
            &["kernels", "decode, 64 sequences"],
            run.decode_over_floor(64),
        ),
        figure(
            "8B: scoring, eviction and memory, of prefill",
            Bound::Most(0.03),
            &["kernels", "prefill to 32K"],
            run.boundary_of_prefill(),
        ),
        figure(
            "8B, 64 sequences: scoring, eviction and memory, of decode",
            Bound::Most(0.02),
            &["kernels", "decode, 64 sequences"],
            run.boundary_of_decode(64),
        ),
    ];
    goals.extend(UNMEASURED.map(|(name, want, why)| Goal {
        name,
        want: want.into(),
        got: None,
        verdict: Verdict::NotMeasured(why.into()),
    }));
    goals.push(run.flat_prefill());
    goals.extend(CHECKS.map(|(name, stage)| run.check(name, stage)));
    goals
}

/// Goals that no stage of the bundle can tell.
const UNMEASURED: [(&str, &str, &str); 3] = [
    (
        "8B at 128K: concurrent sequences over those of a full bf16 cache in the same memory",
        "at least 30",
        "no stage runs as many sequences as fit",
    ),
    (
        "8B at 128K: decode throughput over PyTorch SDPA with a full cache, each at its largest \
         batch",
        "at least 8",
        "the bundle has no PyTorch",
    ),
    (
        "8B at 128K: time to first token, PyTorch's over ours",
        "at least 2",
        "the bundle has no PyTorch",
    ),
];

/// What has to be right, and the stage that shows it.
const CHECKS: [(&str, &str); 7] = [
    (
        "every operation on random shapes, against the reference",
        "conformance",
    ),
    (
        "tiny models: the CPU's tokens, kept slots and evictions, with graphs as without",
        "tiny models",
    ),
    ("SmolLM2: the CPU's greedy tokens", "SmolLM2"),
    (
        "NCCL: a group of one rank is joined, aborted and joined again, its sums inside captured \
         graphs",
        "NCCL",
    ),
    (
        "NCCL: two ranks on one GPU say what one says; one is killed, and the group forms anew",
        "NCCL, two ranks",
    ),
    ("no access out of bounds", "memcheck"),
    ("no race in shared memory", "racecheck"),
];

/// What a run printed.
struct Measured<'a>(&'a Run);

impl<'a> Measured<'a> {
    fn stage(&self, name: &str) -> Option<&'a Ended> {
        self.0.stages.iter().find(|stage| stage.name == name)
    }

    fn figures(&self, kind: &'a str) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.0
            .stages
            .iter()
            .flat_map(|stage| &stage.figures)
            .filter(move |figure| figure["kind"] == kind)
    }

    /// Why the stages did not give a figure.
    fn why(&self, stages: &[&str]) -> String {
        for name in stages {
            let Some(stage) = self.stage(name) else {
                return format!("stage `{name}` was not tried");
            };
            match &stage.outcome {
                Outcome::Passed => {}
                Outcome::TimedOut => return format!("stage `{name}` took too long"),
                Outcome::Failed(why) => return format!("stage `{name}` failed: {why}"),
                Outcome::NotRun(why) => return format!("stage `{name}` could not run: {why}"),
            }
        }
        format!(
            "stage `{}` printed no such figure",
            stages.last().unwrap_or(&"none")
        )
    }

    fn figure(&self, name: &'static str, bound: Bound, stages: &[&str], got: Option<f64>) -> Goal {
        let (want, met) = match bound {
            Bound::Least(bound) => (format!("at least {bound}"), got.map(|got| got >= bound)),
            Bound::Most(bound) => (format!("at most {bound}"), got.map(|got| got <= bound)),
        };
        let verdict = match met {
            Some(_) if self.0.manifest["profile"] == "dev" => {
                Verdict::NotMeasured("the bundle was built in the development profile".into())
            }
            Some(true) => Verdict::Pass,
            Some(false) => Verdict::Fail,
            None => Verdict::NotMeasured(self.why(stages)),
        };
        Goal {
            name,
            want,
            got,
            verdict,
        }
    }

    /// A goal that a stage shows by passing.
    fn check(&self, name: &'static str, stage: &str) -> Goal {
        let verdict = match self.stage(stage).map(|stage| &stage.outcome) {
            Some(Outcome::Passed) => Verdict::Pass,
            Some(Outcome::Failed(_)) => Verdict::Fail,
            _ => Verdict::NotMeasured(self.why(&[stage])),
        };
        Goal {
            name,
            want: "nothing wrong".into(),
            got: None,
            verdict,
        }
    }

    fn attention(&self, kind: &'a str, key: &str, sequences: u64) -> Option<f64> {
        self.figures(kind)
            .find(|figure| figure["sequences"] == sequences)
            .and_then(|figure| figure[key].as_f64())
    }

    /// Time of a step over that of reading once, at the measured copy bandwidth, what it must read.
    fn decode_over_floor(&self, sequences: u64) -> Option<f64> {
        let bandwidth = self.figures("copy").next()?["bytes_per_second"].as_f64()?;
        let point = self
            .figures("decode")
            .find(|point| point["sequences"] == sequences)?;
        let seconds = sequences as f64 / point["tokens_per_second"].as_f64()?;
        Some(seconds / (point["step_bytes"].as_f64()? / bandwidth))
    }

    fn longest_prefill(&self) -> Option<&'a Value> {
        self.figures("prefill")
            .max_by_key(|point| point["depth"].as_u64())
    }

    /// Time of a boundary's kernels over the median stride of the longest prefill.
    fn boundary_of_prefill(&self) -> Option<f64> {
        let seconds = self.figures("boundary").next()?["seconds"].as_f64()?;
        let strides = self.longest_prefill()?["stride_seconds"].as_array()?;
        let mut strides: Vec<f64> = strides.iter().filter_map(Value::as_f64).collect();
        strides.sort_by(f64::total_cmp);
        Some(seconds / strides.get(strides.len() / 2)?)
    }

    /// The same over decoding as many tokens as there are between two boundaries, each sequence
    /// with its own.
    fn boundary_of_decode(&self, sequences: u64) -> Option<f64> {
        let boundary = self.figures("boundary").next()?;
        let point = self
            .figures("decode")
            .find(|point| point["sequences"] == sequences)?;
        Some(
            boundary["seconds"].as_f64()? * point["tokens_per_second"].as_f64()?
                / boundary["stride"].as_f64()?,
        )
    }

    /// A shorter prefill tells something, and not what is asked.
    fn flat_prefill(&self) -> Goal {
        let name = "8B prefill from 8K to 1M: slowest eighth of strides over the fastest";
        let mut goal = self.figure(
            name,
            Bound::Most(1.05),
            &["prefill to 1M"],
            self.stride_spread(),
        );
        let depth = self
            .longest_prefill()
            .and_then(|point| point["depth"].as_u64())
            .unwrap_or(0);
        if goal.got.is_some() && depth < FLAT_TO {
            goal.verdict = Verdict::NotMeasured(format!(
                "it reached {depth} tokens; {}",
                self.why(&["prefill to 1M"])
            ));
        }
        goal
    }

    /// Medians of eighths of the longest prefill, from position 8192 on: the largest over the
    /// smallest.
    fn stride_spread(&self) -> Option<f64> {
        let longest = self.longest_prefill()?;
        let (depth, strides) = (
            longest["depth"].as_u64()? as usize,
            longest["stride_seconds"].as_array()?,
        );
        let seconds: Vec<f64> = strides.iter().filter_map(Value::as_f64).collect();
        let flat = seconds.get(FLAT_FROM * seconds.len() / depth.max(1)..)?;
        let medians = flat.chunks((flat.len() / 8).max(1)).map(|part| {
            let mut part = part.to_vec();
            part.sort_by(f64::total_cmp);
            part[part.len() / 2]
        });
        let (least, most) = medians.fold((f64::INFINITY, 0.0f64), |(a, b), x| (a.min(x), b.max(x)));
        (most > 0.0).then_some(most / least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: &str, printed: &str, exit: Option<i32>) -> Ended {
        let mut ended = Ended {
            name: name.into(),
            ..Ended::default()
        };
        ended.read(printed, exit);
        ended
    }

    fn goals(profile: &str, stages: Vec<Ended>) -> Vec<Goal> {
        let machine = super::super::outcome::Machine::default();
        all(&Run {
            manifest: json!({"profile": profile}),
            machine,
            minutes: 9.5,
            stages,
        })
    }

    const KERNELS: &str = r#"{"kind": "copy", "bytes_per_second": 4e12}
{"kind": "decode attention", "sequences": 1, "of_copy": 0.2}
{"kind": "decode attention", "sequences": 64, "of_copy": 0.9}
{"kind": "prefill attention", "sequences": 1, "of_product": 0.5}
{"kind": "boundary", "stride": 512, "seconds": 0.022}"#;
    const DECODE: &str =
        r#"{"kind": "decode", "sequences": 1, "tokens_per_second": 200.0, "step_bytes": 16e9}"#;

    fn prefill(depth: u64) -> String {
        let strides: Vec<f64> = (0..64)
            .map(|i| {
                if i < 16 {
                    9.0
                } else {
                    1.0 + f64::from(i / 32) * 0.1
                }
            })
            .collect();
        json!({"kind": "prefill", "depth": depth, "stride_seconds": strides}).to_string()
    }

    #[test]
    fn every_goal_has_its_figure_or_its_reason() {
        let all = goals(
            "release",
            vec![
                ended("kernels", KERNELS, Some(0)),
                ended("decode, 1 sequence", DECODE, Some(0)),
                ended("decode, 64 sequences", "error: not enough memory", Some(1)),
                ended("prefill to 32K", &prefill(32 << 10), Some(0)),
                ended("conformance", "test result: ok", Some(0)),
                ended("tiny models", "panicked", Some(101)),
                ended("racecheck", "", None),
            ],
        );
        let got: Vec<_> = all.iter().map(|goal| (goal.got, goal.word())).collect();
        assert_eq!(got[..2], [(Some(0.9), "pass"), (Some(0.5), "FAIL")]);
        // 5 ms against a floor of 4 ms.
        assert!(
            got[2].0.is_some_and(|got| (got - 1.25).abs() < 1e-9),
            "{got:?}"
        );
        assert!(
            all[3]
                .measured()
                .contains("`decode, 64 sequences` failed: ended with 1: error: not enough memory")
        );
        // 22 ms beside a stride of 1.1 s.
        assert!(
            got[4].0.is_some_and(|got| (got - 0.02).abs() < 1e-9) && got[4].1 == "pass",
            "{got:?}"
        );
        assert_eq!(got[5], (None, "not measured"));
        assert!(all[7].measured().contains("no PyTorch"));
        // The first 8192 positions do not count, and 32K are no million.
        assert!(
            got[9].0.is_some_and(|got| (got - 1.1).abs() < 1e-9),
            "{got:?}"
        );
        assert!(
            all[9]
                .measured()
                .contains("it reached 32768 tokens; stage `prefill to 1M` was not tried")
        );
        assert_eq!((got[10].1, got[11].1), ("pass", "FAIL"));
        assert!(
            all.last()
                .is_some_and(|goal| goal.measured().contains("took too long")),
            "{all:?}"
        );
        assert!(
            all.iter()
                .all(|goal| !goal.want.is_empty() && goal.json()["verdict"] == goal.word())
        );
    }

    #[test]
    fn a_million_positions_count_and_a_development_build_never() {
        let stages = || {
            vec![
                ended("kernels", KERNELS, Some(0)),
                ended("prefill to 1M", &prefill(1 << 20), Some(0)),
            ]
        };
        let (release, dev) = (goals("release", stages()), goals("dev", stages()));
        // All of the first eighth of positions are past 8K here.
        assert_eq!(release[9].word(), "FAIL", "{release:?}");
        assert_eq!(
            (release[0].word(), dev[0].word(), dev[0].got),
            ("pass", "not measured", Some(0.9))
        );
    }
}
