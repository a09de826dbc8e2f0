//! Retrieval over a grid of tasks, lengths and caches.

use std::path::Path;
use std::time::Instant;

use palimpsest_engine::offline::oracle::Oracle;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::Backend;
use serde::{Deserialize, Serialize};

use crate::caches::Caches;
use crate::contracts::CacheShape;
use crate::headline::{self, Headline};
use crate::oracle::Foresight;
use crate::prompt::Protocol;
use crate::sample::{compose, contract, sample};
use crate::stats::{mean_and_error, wilson};
use crate::store::{Store, write_lines};
use crate::tasks::{Material, Task};
use crate::{Error, Progress, Result, TextSide, report};

/// When an answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Greedy decoding gives the expected answer token by token. Read off the teacher-forced pass.
    Exact,
    /// RULER's string match on the greedily decoded text, see [`crate::tasks::Question::score`].
    #[serde(alias = "recall")]
    Match,
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct GridSpec {
    /// Names model and indexer in the records.
    pub model: String,
    /// Tasks.
    pub tasks: Vec<Task>,
    /// Tokens of the context, rounded down to a multiple of the stride.
    pub lengths: Vec<usize>,
    /// Depths of the needles in percent; `None`: random.
    pub depths: Vec<Option<u32>>,
    /// Caches.
    pub caches: Caches,
    /// Protocol.
    pub protocol: Protocol,
    /// Metric.
    pub metric: Metric,
    /// Samples of every cell.
    pub samples: usize,
    /// Seed of the tasks.
    pub seed: u64,
    /// Minutes after which no further sample is begun; what all cells have is reported.
    pub minutes: Option<f64>,
    /// Whether every key of a multi-key context is asked for in turn, after one reading. A sample
    /// is still a context, and what it gives is the mean over its questions.
    pub every_key: bool,
    /// Tokens decoded at most where text is decoded; `None`: RULER's number for each task.
    pub max_tokens: Option<usize>,
}

/// Everything but the cache that a sample depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Model and indexer.
    pub model: String,
    /// Task.
    pub task: Task,
    /// Tokens of the context.
    pub length: usize,
    /// Percent.
    pub depth: Option<u32>,
    /// Protocol.
    pub protocol: Protocol,
    /// Metric.
    pub metric: Metric,
    /// Seed.
    pub seed: u64,
    /// Digest of the text or the questions that the task is made of.
    pub text: String,
    /// See [`Task::revision`].
    #[serde(default)]
    pub revision: u32,
    /// Questions on one context.
    #[serde(default = "one")]
    pub questions: usize,
    /// Tokens between boundaries.
    pub stride: usize,
    /// Tokens decoded at most.
    pub max_tokens: usize,
}

fn one() -> usize {
    1
}

/// One point of the grid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// What is asked.
    #[serde(flatten)]
    pub setting: Setting,
    /// What the sequence may hold.
    #[serde(flatten)]
    pub cache: CacheShape,
}

/// One sample of a cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleResult {
    /// Its cell.
    #[serde(flatten)]
    pub cell: Cell,
    /// Which sample.
    pub index: usize,
    /// From 0 to 1, by the cell's metric.
    pub score: f64,
    /// Whether the expected answer would be decoded token by token, whatever the metric.
    #[serde(default)]
    pub exact: bool,
    /// Mean log-likelihood per token of the expected answer, nats.
    pub loglik: f64,
    /// Mean entries per KV head when the answer begins, everything counted.
    pub held: f64,
    /// `held` as a share of the prompt.
    pub share: f64,
    /// Tokens before the answer.
    pub prompt_tokens: usize,
    /// Of these, tokens after the last boundary.
    pub tail_tokens: usize,
    /// Entries of the contract.
    pub contract_budget: Option<u32>,
    /// Window of the contract.
    pub contract_window: u32,
    /// Memory of the contract.
    pub contract_memory_slots: u32,
    /// The answer that was expected.
    pub expected: String,
    /// What was decoded, where something was.
    pub decoded: Option<String>,
    /// Seconds: reading the prompt, the expected answer, decoding.
    pub seconds: [f64; 3],
}

/// A cell's samples together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// The cell.
    #[serde(flatten)]
    pub cell: Cell,
    /// Samples.
    pub n: usize,
    /// Mean score.
    pub accuracy: f64,
    /// Its 95 % Wilson interval.
    pub accuracy_low: f64,
    /// Its upper end.
    pub accuracy_high: f64,
    /// Mean over samples of the log-likelihood per answer token, nats.
    pub loglik: f64,
    /// Its standard error.
    pub loglik_error: Option<f64>,
    /// Mean share held.
    pub share: f64,
}

impl CellResult {
    /// Aggregates a cell's samples.
    pub fn of(cell: &Cell, samples: &[&SampleResult]) -> Self {
        let n = samples.len();
        let mean = |of: fn(&SampleResult) -> f64| {
            mean_and_error(&samples.iter().map(|s| of(s)).collect::<Vec<_>>())
        };
        let accuracy = mean(|s| s.score).0;
        let (accuracy_low, accuracy_high) = wilson(accuracy, n);
        let (loglik, loglik_error) = mean(|s| s.loglik);
        let share = mean(|s| s.share).0;
        Self {
            cell: cell.clone(),
            n,
            accuracy,
            accuracy_low,
            accuracy_high,
            loglik,
            loglik_error,
            share,
        }
    }
}

/// Runs what is missing of the grid and writes `samples.jsonl`, `cells.jsonl`, `headline.jsonl`,
/// `table.md` and plots to `out`. All cells
/// get sample 0 before any gets sample 1, so a run that is cut off compares like with like.
///
/// # Errors
/// Those of the rank, the text side and the files; [`Error::Spec`] for what cannot be, before
/// anything is measured.
pub fn run_grid<B: Backend>(
    runner: &mut Runner<B>,
    side: &dyn TextSide,
    material: &Material,
    spec: &GridSpec,
    out: &Path,
    progress: Progress<'_>,
) -> Result<Outcome> {
    std::fs::create_dir_all(out).map_err(crate::store::io(out))?;
    let mut foresight = Foresight::prepare(runner, side, spec.caches.policy_names())?;
    let shapes = check(runner, spec)?;
    let settings = settings(runner, material, spec)?;
    let (mut store, mut known) = Store::open::<SampleResult>(&out.join("samples.jsonl"))?;
    let limit = |setting: &Setting| -> Result<usize> {
        Ok(material
            .available(setting.task)?
            .map_or(spec.samples, |all| all.min(spec.samples)))
    };
    // What cannot be asked should fail now, not after an hour. Documents of their own length are
    // all looked at.
    let mut total = 0;
    for setting in &settings {
        let samples = limit(setting)?;
        total += (samples * shapes.len()) as u64;
        let looked_at = if material.available(setting.task)?.is_some() {
            samples
        } else {
            1
        };
        for index in 0..looked_at {
            let (_, prompts) = compose(side, material, setting, index)?;
            shapes
                .iter()
                .try_for_each(|shape| contract(runner, shape, &prompts).map(|_| ()))?;
        }
    }
    let (started, mut done, mut rounds) = (Instant::now(), 0, 0);
    for index in 0..spec.samples {
        // A round takes about as long as those before it.
        let minutes = started.elapsed().as_secs_f64() / 60.0;
        if spec
            .minutes
            .is_some_and(|most| index > 0 && minutes * (1.0 + 1.0 / index as f64) > most)
        {
            break;
        }
        for setting in &settings {
            if index >= limit(setting)? {
                continue;
            }
            let (questions, prompts) = compose(side, material, setting, index)?;
            for shape in &shapes {
                let cell = Cell {
                    setting: setting.clone(),
                    cache: shape.clone(),
                };
                if !known.iter().any(|k| k.index == index && k.cell == cell) {
                    if let Some(foresight) =
                        foresight.as_mut().filter(|_| shape.policy == Oracle::NAME)
                    {
                        foresight.look(runner, &prompts[0])?;
                    }
                    let sample = sample(runner, side, cell, index, (&questions, &prompts))?;
                    store.append(&sample)?;
                    known.push(sample);
                }
                done += 1;
                progress(done, total);
            }
        }
        rounds = index + 1;
    }
    conclude(out, &product(&settings, &shapes), &known, rounds)
}

fn product(settings: &[Setting], shapes: &[CacheShape]) -> Vec<Cell> {
    let of = |setting: &Setting| {
        let setting = setting.clone();
        shapes.iter().map(move |shape| Cell {
            setting: setting.clone(),
            cache: shape.clone(),
        })
    };
    settings.iter().flat_map(of).collect()
}

/// And, before them, those of other element types that were measured as often in earlier runs.
fn with_other_types(cells: &[Cell], known: &[SampleResult], rounds: usize) -> Vec<Cell> {
    let mut all: Vec<Cell> = Vec::new();
    for sample in known.iter().filter(|k| {
        cells
            .iter()
            .all(|c| c.cache.kv_type != k.cell.cache.kv_type)
    }) {
        let same = known.iter().filter(|k| k.cell == sample.cell).count();
        if same >= rounds
            && cells.iter().any(|c| c.setting == sample.cell.setting)
            && !all.contains(&sample.cell)
        {
            all.push(sample.cell.clone());
        }
    }
    all.extend_from_slice(cells);
    all
}

/// Aggregates the first `rounds` samples of every cell and writes everything but the samples.
fn conclude(out: &Path, cells: &[Cell], known: &[SampleResult], rounds: usize) -> Result<Outcome> {
    let known: Vec<SampleResult> = known.iter().filter(|k| k.index < rounds).cloned().collect();
    let cells = &with_other_types(cells, &known, rounds);
    let of = |cell: &Cell| {
        CellResult::of(
            cell,
            &known.iter().filter(|k| k.cell == *cell).collect::<Vec<_>>(),
        )
    };
    let cells_found: Vec<CellResult> = cells.iter().map(of).collect();
    let headlines = headline::headlines(cells, &known);
    write_lines(&out.join("cells.jsonl"), &cells_found)?;
    write_lines(&out.join("headline.jsonl"), &headlines)?;
    report::write_all(out, &cells_found, &headlines)?;
    Ok(Outcome {
        cells: cells_found,
        headlines,
    })
}

/// What a grid gave.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Every cell.
    pub cells: Vec<CellResult>,
    /// Caches over all tasks.
    pub headlines: Vec<Headline>,
}

fn check<B: Backend>(runner: &Runner<B>, spec: &GridSpec) -> Result<Vec<CacheShape>> {
    for policy in spec.caches.policy_names() {
        palimpsest_engine::policy::find(runner.policies(), policy)?;
    }
    let comparable = |name: &str| {
        runner
            .policies()
            .iter()
            .any(|p| p.name() == name && p.comparable())
    };
    spec.caches.shapes(runner.kv_type(), &comparable)
}

fn settings<B: Backend>(
    runner: &Runner<B>,
    material: &Material,
    spec: &GridSpec,
) -> Result<Vec<Setting>> {
    let stride = runner.decoder().stride() as usize;
    if spec.every_key && spec.protocol != Protocol::Agnostic {
        return Err(Error::Spec(
            "every key is asked for of one context: that takes the protocol agnostic".into(),
        ));
    }
    let mut settings = Vec::new();
    for &length in &spec.lengths {
        if length < stride {
            return Err(Error::Spec(format!(
                "length {length} is below the stride of {stride} tokens"
            )));
        }
        for &task in &spec.tasks {
            for &depth in &spec.depths {
                settings.push(Setting {
                    model: spec.model.clone(),
                    task,
                    length: length / stride * stride,
                    depth,
                    protocol: spec.protocol,
                    metric: spec.metric,
                    seed: spec.seed,
                    text: material.digest(task)?,
                    revision: task.revision(),
                    questions: if spec.every_key { task.keys() } else { 1 },
                    stride,
                    max_tokens: spec.max_tokens.unwrap_or(task.answer_tokens()),
                });
            }
        }
    }
    Ok(settings)
}

#[cfg(test)]
pub(crate) mod tests {
    use palimpsest_kernels::KvType;

    use super::*;
    use crate::caches::tests::caches;
    use crate::contracts::Budget;

    #[test]
    fn caches_of_other_types_stand_beside_these_and_are_compared_with_the_full_cache_of_halves() {
        let (full, mut own) = (
            CacheShape::full(),
            caches()
                .shapes(KvType::Q8, &|_| true)
                .expect("a grid")
                .remove(1),
        );
        own.budget = Some(Budget::Share(1000));
        assert!(own.line().ends_with(", q8"), "{}", own.line());
        let cell = |cache: &CacheShape| Cell {
            setting: setting(),
            cache: cache.clone(),
        };
        let samples = [sample_of(cell(&full), 0.5), sample_of(cell(&own), 0.25)];
        let cells = with_other_types(&[cell(&own)], &samples, 1);
        assert_eq!(cells, [cell(&full), cell(&own)]);
        assert_eq!(
            with_other_types(&[cell(&own)], &samples, 2),
            [cell(&own)],
            "full was not measured twice"
        );
        let found = headline::headlines(&cells, &samples);
        assert_eq!(
            found.iter().map(|l| l.of_full).collect::<Vec<_>>(),
            [Some(1.0), Some(0.5)]
        );
        // Alone, they are compared with a full cache of their own.
        let own_full = CacheShape {
            kv_type: "q8".into(),
            ..full
        };
        let samples = [sample_of(cell(&own_full), 1.0), sample_of(cell(&own), 0.25)];
        let found = headline::headlines(&[cell(&own)], &samples);
        assert_eq!(found[0].of_full, Some(0.25));
    }

    fn sample_of(cell: Cell, score: f64) -> SampleResult {
        SampleResult {
            cell,
            index: 0,
            score,
            exact: false,
            loglik: -1.0,
            held: 100.0,
            share: 0.1,
            prompt_tokens: 1000,
            tail_tokens: 10,
            contract_budget: None,
            contract_window: 0,
            contract_memory_slots: 0,
            expected: String::new(),
            decoded: None,
            seconds: [0.0; 3],
        }
    }

    #[test]
    fn records_round_trip() {
        let cache = caches()
            .shapes(KvType::F16, &|_| true)
            .expect("a grid")
            .pop()
            .expect("a shape");
        let cell = Cell {
            setting: setting(),
            cache,
        };
        let json = serde_json::to_string(&cell).expect("JSON");
        assert_eq!(serde_json::from_str::<Cell>(&json).expect("a cell"), cell);
        let before = json.replace(r#","kv_type":"f16""#, "");
        assert_ne!(before, json);
        assert_eq!(
            serde_json::from_str::<Cell>(&before).expect("a record of before there were others"),
            cell
        );
    }

    pub(crate) fn setting() -> Setting {
        Setting {
            model: "m".into(),
            task: Task::Vt(2),
            length: 512,
            depth: Some(50),
            protocol: Protocol::QuestionLast,
            metric: Metric::Match,
            seed: u64::MAX,
            text: "ff".into(),
            revision: Task::Vt(2).revision(),
            questions: 1,
            stride: 256,
            max_tokens: 64,
        }
    }
}
