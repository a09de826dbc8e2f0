//! Retrieval over a grid of tasks, lengths and caches.

use std::path::Path;
use std::time::Instant;

use palimpsest_engine::offline::oracle::Oracle;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::Backend;

use crate::caches::Caches;
use crate::contracts::CacheShape;
use crate::oracle::Foresight;
use crate::record::{Cell, Metric, Protocol, SampleResult, Setting};
use crate::report::{self, Outcome};
use crate::sample::{Inquiry, sample};
use crate::store::Store;
use crate::tasks::{Material, Task};
use crate::{Error, Progress, Result, Subject};

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

/// Runs what is missing of the grid and writes `samples.jsonl`, `cells.jsonl`, `headline.jsonl`,
/// `table.md` and plots to `out`. All cells get sample 0 before any gets sample 1, so a run that is
/// cut off compares like with like.
///
/// # Errors
/// Those of the rank, the text side and the files; [`Error::Spec`] for what cannot be, before
/// anything is measured.
pub fn run_grid<B: Backend>(
    subject: &mut Subject<'_, B>,
    material: &Material,
    spec: &GridSpec,
    out: &Path,
    progress: Progress<'_>,
) -> Result<Outcome> {
    std::fs::create_dir_all(out).map_err(crate::store::io(out))?;
    let mut foresight = Foresight::prepare(subject, spec.caches.policy_names())?;
    let grid = Grid {
        material,
        spec,
        shapes: spec.caches.known(subject.runner)?,
        settings: settings(subject.runner, material, spec)?,
    };
    let (mut store, mut known) = Store::open::<SampleResult>(&out.join("samples.jsonl"))?;
    grid.check(subject)?;

    let total = grid.samples()?;
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
        for setting in &grid.settings {
            if index >= grid.limit(setting)? {
                continue;
            }
            let inquiry = Inquiry::compose(subject.side, material, setting, index)?;
            for cell in grid.cells_of(setting) {
                if !known.iter().any(|k| k.index == index && k.cell == cell) {
                    if let Some(foresight) = foresight
                        .as_mut()
                        .filter(|_| cell.cache.policy == Oracle::NAME)
                    {
                        foresight.look(subject, &inquiry.prompts[0])?;
                    }
                    let sample = sample(subject, cell, index, &inquiry)?;
                    store.append(&sample)?;
                    known.push(sample);
                }
                done += 1;
                progress(done, total);
            }
        }
        rounds = index + 1;
    }
    let cells: Vec<Cell> = grid
        .settings
        .iter()
        .flat_map(|setting| grid.cells_of(setting))
        .collect();
    report::conclude(out, &cells, &known, rounds)
}

/// What a specification means for a model.
struct Grid<'a> {
    material: &'a Material,
    spec: &'a GridSpec,
    settings: Vec<Setting>,
    shapes: Vec<CacheShape>,
}

impl Grid<'_> {
    fn cells_of(&self, setting: &Setting) -> impl Iterator<Item = Cell> {
        let setting = setting.clone();
        self.shapes.iter().map(move |shape| Cell {
            setting: setting.clone(),
            cache: shape.clone(),
        })
    }

    /// Samples of a setting: as many as were asked for, or as many as there are.
    fn limit(&self, setting: &Setting) -> Result<usize> {
        let available = self.material.available(setting.task)?;
        Ok(available.map_or(self.spec.samples, |all| all.min(self.spec.samples)))
    }

    /// Samples of all cells.
    fn samples(&self) -> Result<u64> {
        let mut total = 0;
        for setting in &self.settings {
            total += (self.limit(setting)? * self.shapes.len()) as u64;
        }
        Ok(total)
    }

    /// What cannot be asked should fail now, not after an hour. Documents of their own length are
    /// all looked at.
    fn check<B: Backend>(&self, subject: &Subject<'_, B>) -> Result<()> {
        for setting in &self.settings {
            let has_own_lengths = self.material.available(setting.task)?.is_some();
            let looked_at = if has_own_lengths {
                self.limit(setting)?
            } else {
                1
            };
            for index in 0..looked_at {
                let inquiry = Inquiry::compose(subject.side, self.material, setting, index)?;
                for shape in &self.shapes {
                    inquiry.contract(subject.runner, shape)?;
                }
            }
        }
        Ok(())
    }
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
