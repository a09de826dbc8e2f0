//! One sample of a cell: the questions on one context, under one cache.

use palimpsest_engine::kv::Contract;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::Backend;

use crate::contracts::{CacheShape, EntrySize};
use crate::grid::{Cell, Metric, SampleResult, Setting};
use crate::measure::{self, Decoding};
use crate::prompt::{self, Prompt};
use crate::tasks::{self, Draw, Material, Question};
use crate::{Result, TextSide};

/// The questions on sample `index` of a setting, and their prompts, which share their context.
///
/// # Errors
/// Those of [`tasks::question`] and [`prompt::build`].
pub fn compose<'a>(
    side: &dyn TextSide,
    material: &'a Material,
    setting: &Setting,
    index: usize,
) -> Result<(Vec<Question<'a>>, Vec<Prompt>)> {
    let depth = setting.depth.map(|d| f64::from(d) / 100.0);
    let of = |key: usize| {
        let draw = Draw {
            seed: setting.seed,
            index,
            depth,
            length: setting.length,
            key,
        };
        let question = tasks::question(setting.task, material, draw)?;
        let mut prompt = prompt::build(
            side,
            &question,
            (setting.length, setting.stride),
            setting.protocol,
        )?;
        if question.judge.needs_all() {
            // Summaries may be longer than what is decoded.
            prompt.answer.truncate(setting.max_tokens);
        }
        Ok((question, prompt))
    };
    let all = (0..setting.questions).map(of).collect::<Result<Vec<_>>>()?;
    Ok(all.into_iter().unzip())
}

/// What a cache's shape means for prompts of one context: the longest of them decides.
///
/// # Errors
/// Those of [`CacheShape::contract`].
pub fn contract<B: Backend>(
    runner: &Runner<B>,
    shape: &CacheShape,
    prompts: &[Prompt],
) -> Result<Contract> {
    let tail = prompts.iter().map(|p| p.tail.len()).max().unwrap_or(0);
    let context = prompts.first().map_or(0, |p| p.context.len());
    shape.contract(context + tail, tail, EntrySize::of(runner, &shape.policy))
}

/// Measures a sample: means over its questions.
///
/// # Errors
/// Those of [`measure::measure`].
pub fn sample<B: Backend>(
    runner: &mut Runner<B>,
    side: &dyn TextSide,
    cell: Cell,
    index: usize,
    (questions, prompts): (&[Question<'_>], &[Prompt]),
) -> Result<SampleResult> {
    let contract = contract(runner, &cell.cache, prompts)?;
    let scores: Vec<_> = questions
        .iter()
        .map(|question| |text: &str| question.score(text))
        .collect();
    let decode = |(question, score): (&Question<'_>, _)| Decoding {
        side,
        limit: cell.setting.max_tokens,
        score,
        whole: question.judge.needs_all(),
    };
    let decodings: Vec<Decoding<'_>> = match cell.setting.metric {
        Metric::Exact => Vec::new(),
        Metric::Match => questions
            .iter()
            .zip(&scores)
            .map(|(q, s)| decode((q, s as &dyn Fn(&str) -> f64)))
            .collect(),
    };
    let measured = measure::measure(runner, &contract, prompts, &decodings)?;
    let mean = |of: &dyn Fn(usize) -> f64| {
        (0..measured.len()).map(of).sum::<f64>() / measured.len() as f64
    };
    let exact = |i: usize| f64::from(u8::from(measured[i].exact));
    let seconds = |stage: usize| measured.iter().map(|m| m.seconds[stage]).sum();
    let texts: Vec<&str> = measured
        .iter()
        .filter_map(|m| m.decoded.as_ref())
        .map(|(text, _)| text.as_str())
        .collect();
    let expected: Vec<&str> = questions.iter().map(|q| q.expected.as_str()).collect();
    Ok(SampleResult {
        index,
        score: mean(&|i| {
            measured[i]
                .decoded
                .as_ref()
                .map_or(exact(i), |(_, score)| *score)
        }),
        exact: measured.iter().all(|m| m.exact),
        loglik: mean(&|i| measured[i].loglik),
        held: mean(&|i| measured[i].held),
        share: mean(&|i| measured[i].held / prompts[i].len() as f64),
        prompt_tokens: prompts[0].len(),
        tail_tokens: prompts[0].tail.len(),
        contract_budget: contract.budget,
        contract_window: contract.window,
        contract_memory_slots: contract.memory_slots,
        expected: expected.join(" |"),
        decoded: (!texts.is_empty()).then(|| texts.join(" |")),
        seconds: [seconds(0), seconds(1), seconds(2)],
        cell,
    })
}
