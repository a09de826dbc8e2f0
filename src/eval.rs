//! `palimpsest eval`: retrieval and next-token loss under bounded caches.

pub mod show;
mod side;

use std::path::PathBuf;

use palimpsest_engine::rank::Rank;
use palimpsest_eval::caches::Caches;
use palimpsest_eval::perplexity::{self, PerplexitySpec};
use palimpsest_eval::record::{Metric, Protocol};
use palimpsest_eval::report::{self, Detail, losses};
use palimpsest_eval::tasks::longbench::File;
use palimpsest_eval::tasks::{Material, Task, qa};
use palimpsest_eval::{Budget, GridSpec, Subject, run_grid};
use palimpsest_kernels::cpu::CpuBackend;

use self::side::{Opened, open, prose, text};
use crate::model::ModelConfig;
use crate::progress::Progress;
use crate::texts;

/// What to evaluate.
pub enum Evaluation {
    /// Questions about long contexts.
    Answers(Answers),
    /// What is left of a text when the answer begins, as an HTML page.
    Show(show::Config),
    /// Next-token loss on prose by position.
    Perplexity(Common),
    /// Tables of runs that are on disk, as Markdown.
    Report(Report),
}

/// Tables of earlier runs.
pub struct Report {
    /// Directories that runs wrote.
    pub runs: Vec<PathBuf>,
    /// How much is printed of them.
    pub detail: Detail,
}

/// Questions about long contexts.
pub struct Answers {
    /// Model, caches and lengths.
    pub common: Common,
    /// Where the questions come from.
    pub source: Source,
    /// How they are asked and answers counted.
    pub asking: Asking,
}

/// Where questions come from.
pub enum Source {
    /// Tasks after RULER.
    Ruler {
        /// Each is run once, however often it is named.
        tasks: Vec<Task>,
        /// Files of questions in SQuAD's or HotpotQA's format.
        qa: Vec<PathBuf>,
    },
    /// A needle at fixed depths.
    Niah {
        /// The task with the needle.
        task: Task,
        /// Depths in percent.
        depths: Vec<u32>,
    },
    /// Datasets of LongBench.
    Longbench {
        /// Directory of its files.
        data: PathBuf,
        /// Datasets; all that are there when empty.
        datasets: Vec<String>,
    },
}

/// What all evaluations have.
pub struct Common {
    /// The model.
    pub model: ModelConfig,
    /// Directory for results. What is there already is not measured again.
    pub out: PathBuf,
    /// Text files for prose; the GNU GPL when empty.
    pub text: Vec<PathBuf>,
    /// Tokens of the context.
    pub lengths: Vec<usize>,
    /// Policies; all that are known when empty.
    pub policies: Vec<String>,
    /// Latent memories.
    pub memories: Vec<String>,
    /// Entries of the budget that pay for memory; the default when empty.
    pub memory_slots: Vec<u32>,
    /// Head budgets by name.
    pub head_budgets: Vec<String>,
    /// Shares of the prompt that may be held when the answer begins.
    pub shares: Vec<f64>,
    /// Budgets in entries per KV head.
    pub budgets: Vec<u32>,
    /// First positions that are never evicted.
    pub sinks: u32,
    /// Last positions that are never evicted at a boundary; by the budget when `None`.
    pub window: Option<u32>,
    /// Samples of every cell.
    pub samples: usize,
}

/// How questions are asked and answers counted.
pub struct Asking {
    /// Whether the question is known when the context is evicted.
    pub protocol: Protocol,
    /// What counts as an answer.
    pub metric: Metric,
    /// Whether every key of a multi-key context is asked for.
    pub every_key: bool,
    /// Minutes after which no further sample is begun.
    pub minutes: Option<f64>,
    /// Seed of the tasks.
    pub seed: u64,
    /// Tokens decoded at most; the task's number when `None`.
    pub max_tokens: Option<usize>,
}

/// Evaluates, prints the table, leaves records and plots in the directory.
pub fn run(evaluation: Evaluation) -> anyhow::Result<()> {
    match evaluation {
        Evaluation::Answers(answers) => answer(&answers),
        Evaluation::Show(config) => show::run(&config),
        Evaluation::Perplexity(common) => loss(&common),
        Evaluation::Report(Report { runs, detail }) => {
            print!("{}", report::markdown(&runs, detail)?);
            Ok(())
        }
    }
}

/// What a grid asks.
struct Questions {
    material: Material,
    tasks: Vec<Task>,
    /// Depths of the needle in percent; `None` where the task chooses.
    depths: Vec<Option<u32>>,
}

fn questions(source: &Source, files: &[PathBuf]) -> anyhow::Result<Questions> {
    let mut material = Material {
        prose: prose(files)?,
        qa: Vec::new(),
        longbench: Vec::new(),
    };
    let mut tasks: Vec<Task> = Vec::new();
    let mut depths = vec![None];
    match source {
        Source::Ruler { tasks: asked, qa } => {
            for task in asked {
                if !tasks.contains(task) {
                    tasks.push(*task);
                }
            }
            for path in qa {
                material.qa.push(qa::Corpus::parse(&texts::read(path)?)?);
            }
        }
        Source::Niah {
            task,
            depths: asked,
        } => {
            tasks.push(*task);
            depths = asked.iter().copied().map(Some).collect();
        }
        Source::Longbench { data, datasets } => {
            let (files, left) = File::read_all(data, datasets)?;
            for name in left {
                eprintln!("left out: {name}");
            }
            tasks.extend(files.iter().map(|file| Task::Long(file.dataset())));
            material.longbench = files;
        }
    }
    Ok(Questions {
        material,
        tasks,
        depths,
    })
}

fn answer(answers: &Answers) -> anyhow::Result<()> {
    let Answers {
        common,
        source,
        asking,
    } = answers;
    let Questions {
        material,
        tasks,
        depths,
    } = questions(source, &common.text)?;
    let Opened {
        mut rank,
        side,
        name,
    } = open(&common.model)?;
    let spec = GridSpec {
        model: name,
        tasks,
        lengths: common.lengths.clone(),
        depths,
        caches: caches(common, &rank)?,
        protocol: asking.protocol,
        metric: asking.metric,
        samples: common.samples,
        minutes: asking.minutes,
        every_key: asking.every_key,
        seed: asking.seed,
        max_tokens: asking.max_tokens,
    };
    let mut bar = Progress::new("evaluating");
    let mut subject = Subject {
        runner: &mut rank.runner,
        side: &side,
    };
    let results = run_grid(
        &mut subject,
        &material,
        &spec,
        &common.out,
        &mut |done, total| bar.at(done, total),
    )?;
    bar.finish();
    print!("{}", results.tables());
    Ok(())
}

fn loss(common: &Common) -> anyhow::Result<()> {
    let text = text(&common.text)?;
    let Opened {
        mut rank,
        side,
        name,
    } = open(&common.model)?;
    let caches = caches(common, &rank)?;
    let spec = PerplexitySpec {
        model: name,
        lengths: common.lengths.clone(),
        caches,
        samples: common.samples,
    };
    let mut bar = Progress::new("evaluating");
    let mut subject = Subject {
        runner: &mut rank.runner,
        side: &side,
    };
    let results = perplexity::run(
        &mut subject,
        &text,
        &spec,
        &common.out,
        &mut |done, total| bar.at(done, total),
    )?;
    bar.finish();
    print!("{}", losses::table(&results));
    Ok(())
}

fn caches(common: &Common, rank: &Rank<CpuBackend>) -> anyhow::Result<Caches> {
    let mut budgets = common
        .shares
        .iter()
        .map(|s| Budget::share(*s))
        .collect::<Result<Vec<_>, _>>()?;
    budgets.extend(common.budgets.iter().map(|b| Budget::Entries(*b)));
    let mut policies = common.policies.clone();
    if policies.is_empty() {
        policies = rank
            .runner
            .policies()
            .iter()
            .map(|p| p.name().to_string())
            .collect();
    }
    let slots = common
        .memory_slots
        .iter()
        .map(|s| Some(*s))
        .collect::<Vec<_>>();
    Ok(Caches {
        policies,
        memories: common.memories.clone(),
        memory_slots: if slots.is_empty() { vec![None] } else { slots },
        head_budgets: common.head_budgets.clone(),
        budgets,
        sinks: common.sinks,
        window: common.window,
    })
}
