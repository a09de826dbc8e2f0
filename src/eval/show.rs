//! `palimpsest eval show`: what is left of a text, as an HTML page.

use std::path::PathBuf;

use anyhow::Context;
use palimpsest_engine::kv::HeadBudget;
use palimpsest_engine::rank::Rank;
use palimpsest_eval::prompt::{self, ContextSize};
use palimpsest_eval::record::Protocol;
use palimpsest_eval::show::{self, Asked, View};
use palimpsest_eval::tasks::filler::Filler;
use palimpsest_eval::tasks::{self, Draw, Judge, Material, Question, Task};
use palimpsest_eval::{Budget, CacheShape, Subject};
use palimpsest_kernels::cpu::CpuBackend;

use super::side::{Opened, open, prose};
use crate::model::ModelConfig;
use crate::texts;

/// Tokens of a task's context, unless the operator says otherwise.
const TASK_LENGTH: usize = 2048;

/// What to show.
pub struct Config {
    /// The model.
    pub model: ModelConfig,
    /// HTML file to write.
    pub out: PathBuf,
    /// A document of the user's, instead of a task.
    pub own: Option<Own>,
    /// Task that makes document and question.
    pub task: Task,
    /// Text files for prose; the GNU GPL when empty.
    pub text: Vec<PathBuf>,
    /// Tokens of the context, rounded down to a multiple of the stride.
    pub length: Option<usize>,
    /// Seed of the task.
    pub seed: u64,
    /// Which of its samples.
    pub sample: usize,
    /// Policy by name.
    pub policy: String,
    /// Latent memory by name.
    pub memory: String,
    /// Head budgets by name.
    pub head_budget: String,
    /// Share of the prompt that may be held when the answer begins.
    pub share: f64,
    /// Budget in entries per KV head, instead of a share.
    pub budget: Option<u32>,
    /// Tokens of the answer at most.
    pub max_tokens: usize,
}

/// A document and a question about it.
pub struct Own {
    /// Text file.
    pub document: PathBuf,
    /// The question.
    pub question: String,
}

/// Reads, answers and writes the page.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let Opened {
        mut rank,
        side,
        name,
    } = open(&config.model)?;
    let document = match &config.own {
        Some(own) => texts::read(&own.document)?,
        None => String::new(),
    };
    let material = Material {
        prose: prose(&config.text)?,
        qa: Vec::new(),
        longbench: Vec::new(),
    };
    let length = config
        .length
        .unwrap_or_else(|| default_length(config, &rank));
    let question = match &config.own {
        Some(own) => about(&document, &own.question),
        None => drawn(config, &material, length)?,
    };

    let stride = rank.runner.decoder().stride() as usize;
    let size = ContextSize {
        length: length / stride * stride,
        stride,
    };
    let prompt = prompt::build(&side, &question, size, Protocol::Agnostic)?;
    let shape = shape(config, &rank)?;
    let mut subject = Subject {
        runner: &mut rank.runner,
        side: &side,
    };
    let view = View {
        model: &name,
        cache: &shape,
        prompt: &prompt,
        max_tokens: config.max_tokens,
    };
    let shown = show::look(&mut subject, view)?;

    let asked = Asked {
        question: question.question.clone(),
        answer_prefix: question.answer_prefix.clone(),
        expected: if config.own.is_some() {
            Vec::new()
        } else {
            question.answers.clone()
        },
    };
    let page = show::html(&side, &shown, &asked);
    std::fs::write(&config.out, page)
        .with_context(|| format!("cannot write {}", config.out.display()))?;
    println!(
        "{}{}\n{}",
        asked.answer_prefix,
        shown.answer,
        config.out.display()
    );
    Ok(())
}

/// The question of the task that was asked for.
fn drawn<'a>(
    config: &Config,
    material: &'a Material,
    length: usize,
) -> anyhow::Result<Question<'a>> {
    let draw = Draw {
        seed: config.seed,
        index: config.sample,
        depth: None,
        length,
        key: 0,
    };
    Ok(tasks::question(config.task, material, draw)?)
}

/// Of a document all that the model was trained for, beside the answer.
fn default_length(config: &Config, rank: &Rank<CpuBackend>) -> usize {
    if config.own.is_none() {
        return TASK_LENGTH;
    }
    let decoder = rank.runner.decoder();
    decoder
        .config()
        .context_length
        .saturating_sub(decoder.stride() as usize + config.max_tokens)
}

fn shape(config: &Config, rank: &Rank<CpuBackend>) -> anyhow::Result<CacheShape> {
    if config.policy == palimpsest_eval::contracts::FULL {
        return Ok(CacheShape::full());
    }
    let policy = palimpsest_engine::policy::find(rank.runner.policies(), &config.policy)?;
    let head_budget = if policy.comparable() {
        config.head_budget.clone()
    } else {
        HeadBudget::Uniform.name().into()
    };
    let budget = config.budget.map_or_else(
        || Budget::share(config.share),
        |entries| Ok(Budget::Entries(entries)),
    )?;
    Ok(CacheShape {
        policy: config.policy.clone(),
        memory: config.memory.clone(),
        head_budget,
        budget: Some(budget),
        sinks: 4,
        kv_type: rank.runner.kv_type().name().into(),
        ..CacheShape::full()
    })
}

/// A question about a document of the user's.
fn about<'a>(text: &'a str, question: &str) -> Question<'a> {
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
