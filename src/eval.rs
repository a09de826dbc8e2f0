//! `palimpsest eval`: retrieval and next-token loss under bounded caches.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use palimpsest_coordinator::text::{ChatTemplate, Tokenizer};
use palimpsest_engine::rank::Rank;
use palimpsest_eval::caches::Caches;
use palimpsest_eval::perplexity::{self, PerplexitySpec};
use palimpsest_eval::record::{Metric, Protocol};
use palimpsest_eval::report::{self, Detail, losses};
use palimpsest_eval::tasks::filler::Prose;
use palimpsest_eval::tasks::longbench::File;
use palimpsest_eval::tasks::{Material, Task, TaskGroup, qa};
use palimpsest_eval::{Budget, Error, GridSpec, Subject, TextSide, run_grid};
use palimpsest_kernels::cpu::CpuBackend;
use palimpsest_proto::internal::v1::ModelInfo;
use sha2::{Digest, Sha256};

use crate::args::{KvArgs, ModelArgs};
use crate::progress::Progress;
use crate::{embedded, generate};

/// The text without --text.
const DEFAULT_TEXT: &str = include_str!("../assets/gpl-3.0.txt");

#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    pub kind: EvalKind,
}

#[derive(Debug, Subcommand)]
pub enum EvalKind {
    /// Retrieval tasks after RULER.
    Ruler(RulerArgs),
    /// A needle at fixed depths, over lengths.
    Niah(NiahArgs),
    /// The datasets of LongBench, from its files.
    Longbench(LongbenchArgs),
    /// What is left of a text when the answer begins, as an HTML page.
    Show(crate::show::ShowArgs),
    /// Next-token loss on prose by position.
    Perplexity(PerplexityArgs),
    /// Prints the tables of runs that are on disk, as Markdown.
    Report(ReportArgs),
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Directories that runs wrote with --out. Samples of the same questions and caches are put
    /// together.
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// Print every task by itself, too.
    #[arg(long)]
    pub by_task: bool,
}

/// What all evaluations have.
#[derive(Debug, Args)]
pub struct CommonArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Directory for results. What is there already is not measured again.
    #[arg(long)]
    pub out: PathBuf,
    /// Text file for prose, may be given several times; the GNU GPL when not given.
    #[arg(long)]
    pub text: Vec<PathBuf>,
    /// Tokens of the context, rounded down to a multiple of the stride.
    #[arg(long, value_delimiter = ',', default_value = "2048")]
    pub lengths: Vec<usize>,
    /// Policies; all that are known when not given. POLICY+MEMORY has that memory alone.
    #[arg(long, value_delimiter = ',')]
    pub policies: Vec<String>,
    /// Latent memories.
    #[arg(long, value_delimiter = ',', default_value = "none")]
    pub memories: Vec<String>,
    /// Entries of the budget that pay for memory; an eighth of it when not given, a sixteenth
    /// below 512.
    #[arg(long, value_delimiter = ',')]
    pub memory_slots: Vec<u32>,
    /// Head budgets: uniform, column, layer, group.
    #[arg(long, value_delimiter = ',', default_value = "uniform")]
    pub head_budgets: Vec<String>,
    /// Shares of the prompt that may be held when the answer begins, question and memory counted.
    #[arg(long, value_delimiter = ',')]
    pub shares: Vec<f64>,
    /// Budgets in entries per KV head.
    #[arg(long, value_delimiter = ',')]
    pub budgets: Vec<u32>,
    /// First positions that are never evicted.
    #[arg(long, default_value_t = 4)]
    pub sinks: u32,
    /// Last positions that are never evicted at a boundary; a sixteenth of the budget, 8 to 128,
    /// when not given.
    #[arg(long)]
    pub window: Option<u32>,
    /// Samples of every cell.
    #[arg(long, default_value_t = 8)]
    pub samples: usize,
}

#[derive(Debug, Args)]
pub struct RulerArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Tasks: single_1 to single_3, multikey_1 to multikey_3, multivalue, multiquery, vt (vt_1 to
    /// vt_8: that many hops), cwe, fwe, qa_1, qa_2, recall (sentences of --text itself); or groups
    /// of them: niah, words, qa, all (all but qa and recall).
    #[arg(
        long,
        alias = "tasks",
        value_delimiter = ',',
        default_value = "single_1,single_2,multikey_1"
    )]
    pub task: Vec<TaskGroup>,
    /// File of questions for qa_1 (in SQuAD's format) or qa_2 (in HotpotQA's), may be given twice.
    #[arg(long)]
    pub qa: Vec<PathBuf>,
    #[command(flatten)]
    pub asking: AskingArgs,
}

#[derive(Debug, Args)]
pub struct NiahArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Task with the needle.
    #[arg(long, default_value = "single_2")]
    pub task: Task,
    /// Depths of the needle in percent.
    #[arg(long, value_delimiter = ',', default_value = "0,25,50,75,100", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub depths: Vec<u32>,
    #[command(flatten)]
    pub asking: AskingArgs,
}

#[derive(Debug, Args)]
pub struct LongbenchArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Directory with LongBench's files, a `DATASET.jsonl` for each dataset. Contexts longer than
    /// --lengths are cut from their middle.
    #[arg(long)]
    pub data: PathBuf,
    /// Datasets; all that are there when not given.
    #[arg(long, value_delimiter = ',')]
    pub datasets: Vec<String>,
    #[command(flatten)]
    pub asking: AskingArgs,
}

/// How questions are asked and answers counted.
#[derive(Debug, Args)]
pub struct AskingArgs {
    /// Whether the question is known when the context is evicted.
    #[arg(long, value_enum, default_value = "agnostic")]
    pub protocol: ProtocolArg,
    /// What counts: the answer is in the decoded text (RULER's), or the decoded text is the
    /// expected answer.
    #[arg(long, value_enum, default_value = "match")]
    pub metric: MetricArg,
    /// Ask for every key of a multi-key context in turn, after one reading: more answers at little
    /// cost. A sample is then the mean over its questions.
    #[arg(long)]
    pub every_key: bool,
    /// Minutes after which no further sample is begun, so that all cells have as many.
    #[arg(long)]
    pub minutes: Option<f64>,
    /// Seed of the tasks.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Tokens decoded at most; RULER's number for each task when not given.
    #[arg(long)]
    pub max_tokens: Option<usize>,
}

#[derive(Debug, Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ProtocolArg {
    /// It is asked after the context.
    Agnostic,
    /// It is asked before the context.
    QuestionFirst,
    /// It ends the context.
    #[value(alias = "aware")]
    QuestionLast,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum MetricArg {
    Exact,
    #[value(alias = "recall")]
    Match,
}

/// The model's text side.
pub struct Side {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    eos_ids: Vec<u32>,
}

impl TextSide for Side {
    fn encode(&self, text: &str) -> palimpsest_eval::Result<Vec<u32>> {
        self.tokenizer
            .encode(text, false)
            .map_err(|e| Error::Text(e.to_string()))
    }

    fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids)
    }

    fn chat(&self, user: &str, answer_prefix: &str) -> palimpsest_eval::Result<String> {
        match &self.template {
            Some(template) => {
                let chat = generate::question(user.into(), answer_prefix);
                template
                    .render(&chat)
                    .map_err(|e| Error::Text(e.to_string()))
            }
            // A base model: the answer goes on where the question ends.
            None => Ok(format!("{user}\n{answer_prefix}")),
        }
    }

    fn ends(&self, id: u32) -> bool {
        self.eos_ids.contains(&id)
    }
}

/// Evaluates, prints the table, leaves records and plots in the directory.
pub fn run(args: EvalArgs) -> anyhow::Result<()> {
    match args.kind {
        EvalKind::Ruler(ruler) => {
            let mut tasks: Vec<Task> = Vec::new();
            for task in ruler.task.into_iter().flat_map(|group| group.0) {
                if !tasks.contains(&task) {
                    tasks.push(task);
                }
            }
            let corpus =
                |path: &PathBuf| -> anyhow::Result<_> { Ok(qa::Corpus::parse(&read(path)?)?) };
            let qa = ruler.qa.iter().map(corpus).collect::<Result<_, _>>()?;
            let material = Material {
                qa,
                ..material(&ruler.common)?
            };
            grid(&ruler.common, &material, (tasks, vec![None]), &ruler.asking)
        }
        EvalKind::Niah(niah) => {
            let depths = niah.depths.iter().map(|d| Some(*d)).collect();
            grid(
                &niah.common,
                &material(&niah.common)?,
                (vec![niah.task], depths),
                &niah.asking,
            )
        }
        EvalKind::Longbench(args) => {
            let (longbench, left) = File::read_all(&args.data, &args.datasets)?;
            for name in left {
                eprintln!("left out: {name}");
            }
            let tasks = longbench
                .iter()
                .map(|file| Task::Long(file.dataset()))
                .collect();
            let material = Material {
                longbench,
                ..material(&args.common)?
            };
            grid(&args.common, &material, (tasks, vec![None]), &args.asking)
        }
        EvalKind::Show(args) => crate::show::run(&args),
        EvalKind::Perplexity(args) => loss(&args.common),
        EvalKind::Report(args) => {
            let detail = if args.by_task {
                Detail::ByTask
            } else {
                Detail::Means
            };
            print!("{}", report::markdown(&args.runs, detail)?);
            Ok(())
        }
    }
}

fn grid(
    common: &CommonArgs,
    material: &Material,
    (tasks, depths): (Vec<Task>, Vec<Option<u32>>),
    asking: &AskingArgs,
) -> anyhow::Result<()> {
    let (mut rank, side, model) = open(&common.model)?;
    let spec = GridSpec {
        model,
        tasks,
        lengths: common.lengths.clone(),
        depths,
        caches: caches(common, &rank)?,
        protocol: match asking.protocol {
            ProtocolArg::Agnostic => Protocol::Agnostic,
            ProtocolArg::QuestionFirst => Protocol::QuestionFirst,
            ProtocolArg::QuestionLast => Protocol::QuestionLast,
        },
        metric: match asking.metric {
            MetricArg::Exact => Metric::Exact,
            MetricArg::Match => Metric::Match,
        },
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
        material,
        &spec,
        &common.out,
        &mut |done, total| bar.at(done, total),
    )?;
    bar.finish();
    print!("{}", results.tables());
    Ok(())
}

fn loss(common: &CommonArgs) -> anyhow::Result<()> {
    let text = text(&common.text)?;
    let (mut rank, side, model) = open(&common.model)?;
    let caches = caches(common, &rank)?;
    let spec = PerplexitySpec {
        model,
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

/// The text, and no file.
fn material(common: &CommonArgs) -> anyhow::Result<Material> {
    Ok(Material {
        prose: prose(&common.text)?,
        qa: Vec::new(),
        longbench: Vec::new(),
    })
}

/// Sentences of the files, or of the text without --text.
pub fn prose(files: &[PathBuf]) -> anyhow::Result<Prose> {
    Ok(Prose::new(&text(files)?)?)
}

fn text(files: &[PathBuf]) -> anyhow::Result<String> {
    if files.is_empty() {
        return Ok(DEFAULT_TEXT.into());
    }
    Ok(files
        .iter()
        .map(read)
        .collect::<Result<Vec<_>, _>>()?
        .join("\n"))
}

fn read(path: &PathBuf) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The rank, its text side, and the name that records give to model and indexer together.
pub fn open(model: &ModelArgs) -> anyhow::Result<(Rank<CpuBackend>, Side, String)> {
    let rank = embedded::open_rank(model, &KvArgs::none())?;
    let info = rank
        .info
        .model
        .as_ref()
        .context("a rank reports its model")?;
    let side = side(info)?;
    let mut name = format!("{}, {:?} activations", info.name, model.activations);
    if let Some(path) = &model.indexer {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let digest: String = Sha256::digest(&bytes)
            .iter()
            .take(4)
            .map(|b| format!("{b:02x}"))
            .collect();
        name += &format!(", indexer {digest}");
    }
    Ok((rank, side, name))
}

fn side(info: &ModelInfo) -> anyhow::Result<Side> {
    let template = if info.chat_template.is_empty() {
        None
    } else {
        Some(ChatTemplate::new(
            &info.chat_template,
            &info.bos_token,
            &info.eos_token,
        )?)
    };
    Ok(Side {
        tokenizer: Tokenizer::from_bytes(&info.tokenizer)?,
        template,
        eos_ids: info.eos_ids.clone(),
    })
}

fn caches(common: &CommonArgs, rank: &Rank<CpuBackend>) -> anyhow::Result<Caches> {
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
