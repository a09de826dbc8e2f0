//! One sample of a cell: the questions on one context, under one cache.

use palimpsest_engine::kv::{Bounded, Contract};
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::Backend;

use crate::contracts::{CacheShape, EntrySize};
use crate::measure::{self, Decoding, Measured};
use crate::prompt::{self, ContextSize, Prompt};
use crate::record::{Cell, Metric, SampleResult, Setting};
use crate::tasks::{self, Draw, Material, Question};
use crate::{Result, Subject, TextSide};

/// The questions on one context, and their prompts, which share it. Both have the same length.
pub struct Inquiry<'a> {
    /// What is asked.
    pub questions: Vec<Question<'a>>,
    /// As token ids.
    pub prompts: Vec<Prompt>,
}

impl<'a> Inquiry<'a> {
    /// Sample `index` of a setting.
    ///
    /// # Errors
    /// Those of [`tasks::question`] and [`prompt::build`].
    pub fn compose(
        side: &dyn TextSide,
        material: &'a Material,
        setting: &Setting,
        index: usize,
    ) -> Result<Self> {
        let size = ContextSize {
            length: setting.length,
            stride: setting.stride,
        };
        let mut inquiry = Self {
            questions: Vec::new(),
            prompts: Vec::new(),
        };
        for key in 0..setting.questions {
            let draw = Draw {
                seed: setting.seed,
                index,
                depth: setting.depth.map(|d| f64::from(d) / 100.0),
                length: setting.length,
                key,
            };
            let question = tasks::question(setting.task, material, draw)?;
            let mut prompt = prompt::build(side, &question, size, setting.protocol)?;
            if question.judge.needs_all() {
                // Summaries may be longer than what is decoded.
                prompt.answer.truncate(setting.max_tokens);
            }
            inquiry.questions.push(question);
            inquiry.prompts.push(prompt);
        }
        Ok(inquiry)
    }

    /// What a cache's shape means for these prompts: the longest of them decides.
    ///
    /// # Errors
    /// Those of [`CacheShape::contract`].
    pub fn contract<B: Backend>(&self, runner: &Runner<B>, shape: &CacheShape) -> Result<Contract> {
        let tail = self.prompts.iter().map(|p| p.tail.len()).max().unwrap_or(0);
        let context = self.prompts.first().map_or(0, |p| p.context.len());
        shape.contract(context + tail, tail, EntrySize::of(runner, &shape.policy))
    }
}

/// Measures a sample: means over its questions.
///
/// # Errors
/// Those of [`measure::measure`].
pub fn sample<B: Backend>(
    subject: &mut Subject<'_, B>,
    cell: Cell,
    index: usize,
    inquiry: &Inquiry<'_>,
) -> Result<SampleResult> {
    let Inquiry { questions, prompts } = inquiry;
    let contract = inquiry.contract(subject.runner, &cell.cache)?;
    let scores: Vec<_> = questions
        .iter()
        .map(|question| |text: &str| question.score(text))
        .collect();
    let decodings: Vec<Decoding<'_>> = match cell.setting.metric {
        Metric::Exact => Vec::new(),
        Metric::Match => questions
            .iter()
            .zip(&scores)
            .map(|(question, score)| Decoding {
                limit: cell.setting.max_tokens,
                score,
                whole: question.judge.needs_all(),
            })
            .collect(),
    };
    let measured = measure::measure(subject, &contract, prompts, &decodings)?;

    let mean = |of: &dyn Fn(usize) -> f64| {
        (0..measured.len()).map(of).sum::<f64>() / measured.len() as f64
    };
    let seconds = |stage: usize| measured.iter().map(|m| m.seconds[stage]).sum();
    let texts: Vec<&str> = measured
        .iter()
        .filter_map(|m| m.decoded.as_ref())
        .map(|decoded| decoded.text.as_str())
        .collect();
    let expected: Vec<&str> = questions.iter().map(|q| q.expected.as_str()).collect();
    Ok(SampleResult {
        index,
        score: mean(&|i| score(&measured[i])),
        exact: measured.iter().all(|m| m.exact),
        loglik: mean(&|i| measured[i].loglik),
        held: mean(&|i| measured[i].held),
        share: mean(&|i| measured[i].held / prompts[i].len() as f64),
        prompt_tokens: prompts[0].len(),
        tail_tokens: prompts[0].tail.len(),
        contract_budget: contract.budget(),
        contract_window: contract.bounded().map_or(0, |bounded| bounded.window),
        contract_memory_slots: contract.bounded().map_or(0, Bounded::memory_slots),
        expected: expected.join(" |"),
        decoded: (!texts.is_empty()).then(|| texts.join(" |")),
        seconds: [seconds(0), seconds(1), seconds(2)],
        cell,
    })
}

/// What was decoded decides; where nothing had to be, whether the expected answer would have been.
fn score(measured: &Measured) -> f64 {
    match &measured.decoded {
        Some(decoded) => decoded.score,
        None => f64::from(u8::from(measured.exact)),
    }
}
