//! `palimpsest eval show`: what is left of a text, as an HTML page.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use palimpsest_engine::kv::HeadBudget;
use palimpsest_engine::rank::Rank;
use palimpsest_eval::prompt::{self, ContextSize};
use palimpsest_eval::record::Protocol;
use palimpsest_eval::show::{self, Asked, View};
use palimpsest_eval::tasks::filler::Filler;
use palimpsest_eval::tasks::{self, Draw, Judge, Material, Question, Task};
use palimpsest_eval::{Budget, CacheShape, Subject};
use palimpsest_kernels::cpu::CpuBackend;

use crate::args::ModelArgs;
use crate::eval::{open, prose};

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

/// Reads, answers and writes the page.
pub fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let (mut rank, side, model) = open(&args.model)?;
    let document = match &args.document {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?,
        ),
        None => None,
    };
    let material = Material {
        prose: prose(&args.text)?,
        qa: Vec::new(),
        longbench: Vec::new(),
    };
    let stride = rank.runner.decoder().stride() as usize;
    let (question, length) = match &document {
        Some(text) => {
            let most = rank
                .runner
                .decoder()
                .config()
                .context_length
                .saturating_sub(stride + args.max_tokens);
            (
                own(text, args.question.as_deref().unwrap_or_default()),
                args.length.unwrap_or(most),
            )
        }
        None => {
            let length = args.length.unwrap_or(2048);
            let draw = Draw {
                seed: args.seed,
                index: args.sample,
                depth: None,
                length,
                key: 0,
            };
            (tasks::question(args.task, &material, draw)?, length)
        }
    };
    let size = ContextSize {
        length: length / stride * stride,
        stride,
    };
    let prompt = prompt::build(&side, &question, size, Protocol::Agnostic)?;
    let shape = shape(args, &rank)?;
    let mut subject = Subject {
        runner: &mut rank.runner,
        side: &side,
    };
    let view = View {
        model: &model,
        cache: &shape,
        prompt: &prompt,
        max_tokens: args.max_tokens,
    };
    let shown = show::look(&mut subject, view)?;
    let asked = Asked {
        question: question.question.clone(),
        answer_prefix: question.answer_prefix.clone(),
        expected: if document.is_some() {
            Vec::new()
        } else {
            question.answers.clone()
        },
    };
    let page = show::html(&side, &shown, &asked);
    std::fs::write(&args.out, page)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    println!(
        "{}{}\n{}",
        asked.answer_prefix,
        shown.answer,
        args.out.display()
    );
    Ok(())
}

fn shape(args: &ShowArgs, rank: &Rank<CpuBackend>) -> anyhow::Result<CacheShape> {
    if args.policy == palimpsest_eval::contracts::FULL {
        return Ok(CacheShape::full());
    }
    let policy = palimpsest_engine::policy::find(rank.runner.policies(), &args.policy)?;
    let head_budget = if policy.comparable() {
        args.head_budget.clone()
    } else {
        HeadBudget::Uniform.name().into()
    };
    let budget = args.budget.map_or_else(
        || Budget::share(args.share),
        |entries| Ok(Budget::Entries(entries)),
    )?;
    Ok(CacheShape {
        policy: args.policy.clone(),
        memory: args.memory.clone(),
        head_budget,
        budget: Some(budget),
        sinks: 4,
        kv_type: rank.runner.kv_type().name().into(),
        ..CacheShape::full()
    })
}

/// A question about a document of the user's.
fn own<'a>(text: &'a str, question: &str) -> Question<'a> {
    Question {
        instruction: String::new(),
        filler: Filler::Document(text),
        needles: Vec::new(),
        question: format!("\n\n{question}"),
        answer_prefix: String::new(),
        answers: Vec::new(),
        judge: Judge::Any,
        chat: true,
        // Nothing is expected; a prompt has some answer.
        expected: ".".into(),
    }
}
