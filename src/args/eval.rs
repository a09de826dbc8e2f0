//! `eval`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use palimpsest_eval::record::{Metric, Protocol};
use palimpsest_eval::report::Detail;
use palimpsest_eval::tasks::{Task, TaskGroup};

use super::ModelArgs;
use crate::eval;
use crate::eval::show;

/// What to evaluate.
#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    pub kind: EvalKind,
}

/// What can be evaluated.
#[derive(Debug, Subcommand)]
pub enum EvalKind {
    /// Retrieval tasks after RULER.
    Ruler(RulerArgs),
    /// A needle at fixed depths, over lengths.
    Niah(NiahArgs),
    /// The datasets of LongBench, from its files.
    Longbench(LongbenchArgs),
    /// What is left of a text when the answer begins, as an HTML page.
    Show(ShowArgs),
    /// Next-token loss on prose by position.
    Perplexity(PerplexityArgs),
    /// Prints the tables of runs that are on disk, as Markdown.
    Report(ReportArgs),
}

/// Tables of earlier runs.
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

/// Tasks of retrieval.
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

/// One needle at many depths.
#[derive(Debug, Args)]
pub struct NiahArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Task with the needle.
    #[arg(long, default_value = "single_2")]
    pub task: Task,
    /// Depths of the needle in percent.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0,25,50,75,100",
        value_parser = clap::value_parser!(u32).range(0..=100)
    )]
    pub depths: Vec<u32>,
    #[command(flatten)]
    pub asking: AskingArgs,
}

/// Datasets of LongBench.
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

/// Loss on prose.
#[derive(Debug, Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub common: CommonArgs,
}

/// When the question is known.
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

/// What counts as an answer.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum MetricArg {
    Exact,
    #[value(alias = "recall")]
    Match,
}

/// A page that shows what is left of a text.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// HTML file to write.
    #[arg(long)]
    pub out: PathBuf,
    /// Your own document, instead of a task.
    #[arg(long, requires = "question")]
    pub document: Option<PathBuf>,
    /// Your question about it.
    #[arg(long, requires = "document")]
    pub question: Option<String>,
    /// Task that makes document and question; see `eval ruler`.
    #[arg(long, default_value = "single_2", conflicts_with = "document")]
    pub task: Task,
    /// Text file for prose, may be given several times; the GNU GPL when not given.
    #[arg(long)]
    pub text: Vec<PathBuf>,
    /// Tokens of the context, rounded down to a multiple of the stride; a longer document is cut
    /// from its middle. Of a document all that the model was trained for when not given, 2048 of a
    /// task.
    #[arg(long)]
    pub length: Option<usize>,
    /// Seed of the task.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Which of its samples.
    #[arg(long, default_value_t = 0)]
    pub sample: usize,
    /// Policy.
    #[arg(long, default_value = "retention")]
    pub policy: String,
    /// Latent memory.
    #[arg(long, default_value = "none")]
    pub memory: String,
    /// Head budgets: uniform, column, layer, group.
    #[arg(long, default_value = "column")]
    pub head_budget: String,
    /// Share of the prompt that may be held when the answer begins.
    #[arg(long, default_value_t = 0.25, conflicts_with = "budget")]
    pub share: f64,
    /// Budget in entries per KV head.
    #[arg(long)]
    pub budget: Option<u32>,
    /// Tokens of the answer at most.
    #[arg(long, default_value_t = 48)]
    pub max_tokens: usize,
}

impl EvalArgs {
    /// What was typed, as the rest of the program takes it.
    pub fn config(self) -> eval::Evaluation {
        let grid = |common: CommonArgs, source, asking: AskingArgs| {
            eval::Evaluation::Answers(eval::Answers {
                common: common.config(),
                source,
                asking: asking.config(),
            })
        };
        match self.kind {
            EvalKind::Ruler(args) => {
                let source = eval::Source::Ruler {
                    tasks: args.task.into_iter().flat_map(|group| group.0).collect(),
                    qa: args.qa,
                };
                grid(args.common, source, args.asking)
            }
            EvalKind::Niah(args) => {
                let source = eval::Source::Niah {
                    task: args.task,
                    depths: args.depths,
                };
                grid(args.common, source, args.asking)
            }
            EvalKind::Longbench(args) => {
                let source = eval::Source::Longbench {
                    data: args.data,
                    datasets: args.datasets,
                };
                grid(args.common, source, args.asking)
            }
            EvalKind::Show(args) => eval::Evaluation::Show(args.config()),
            EvalKind::Perplexity(args) => eval::Evaluation::Perplexity(args.common.config()),
            EvalKind::Report(args) => eval::Evaluation::Report(eval::Report {
                runs: args.runs,
                detail: if args.by_task {
                    Detail::ByTask
                } else {
                    Detail::Means
                },
            }),
        }
    }
}

impl CommonArgs {
    fn config(self) -> eval::Common {
        eval::Common {
            model: self.model.config(),
            out: self.out,
            text: self.text,
            lengths: self.lengths,
            policies: self.policies,
            memories: self.memories,
            memory_slots: self.memory_slots,
            head_budgets: self.head_budgets,
            shares: self.shares,
            budgets: self.budgets,
            sinks: self.sinks,
            window: self.window,
            samples: self.samples,
        }
    }
}

impl AskingArgs {
    fn config(self) -> eval::Asking {
        eval::Asking {
            protocol: match self.protocol {
                ProtocolArg::Agnostic => Protocol::Agnostic,
                ProtocolArg::QuestionFirst => Protocol::QuestionFirst,
                ProtocolArg::QuestionLast => Protocol::QuestionLast,
            },
            metric: match self.metric {
                MetricArg::Exact => Metric::Exact,
                MetricArg::Match => Metric::Match,
            },
            every_key: self.every_key,
            minutes: self.minutes,
            seed: self.seed,
            max_tokens: self.max_tokens,
        }
    }
}

impl ShowArgs {
    fn config(self) -> show::Config {
        show::Config {
            model: self.model.config(),
            out: self.out,
            own: self
                .document
                .zip(self.question)
                .map(|(document, question)| show::Own { document, question }),
            task: self.task,
            text: self.text,
            length: self.length,
            seed: self.seed,
            sample: self.sample,
            policy: self.policy,
            memory: self.memory,
            head_budget: self.head_budget,
            share: self.share,
            budget: self.budget,
            max_tokens: self.max_tokens,
        }
    }
}
