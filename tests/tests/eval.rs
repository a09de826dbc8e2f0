//! The evaluation end to end on a tiny model whose tokens are bytes: what is written, that a run
//! goes on where it stopped, and that a cache with room for everything loses nothing.

use std::path::Path;

use palimpsest_engine::kv::Contract;
use palimpsest_engine::runner::Runner;
use palimpsest_eval::caches::Caches;
use palimpsest_eval::prompt::{self, ContextSize};
use palimpsest_eval::record::{Metric, Protocol, SampleResult};
use palimpsest_eval::show::{self, Asked, View};
use palimpsest_eval::tasks::filler::Prose;
use palimpsest_eval::tasks::longbench::File;
use palimpsest_eval::tasks::{self, Draw, Material, Task};
use palimpsest_eval::{
    Budget, CacheShape, GridSpec, Outcome, Result, Subject, TextSide, measure, run_grid,
};
use palimpsest_kernels::cpu::CpuBackend;
use palimpsest_tests::{EngineOptions, engine, tiny_model};

/// A token per byte.
struct Bytes;

impl TextSide for Bytes {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(text.bytes().map(u32::from).collect())
    }
    fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
    fn chat(&self, user: &str, answer_prefix: &str) -> Result<String> {
        Ok(format!("<{user}>{answer_prefix}"))
    }
    fn ends(&self, id: u32) -> bool {
        id > 255
    }
}

fn material() -> Material {
    let prose = Prose::new(&"It was late. Nobody came by. ".repeat(10)).expect("sentences");
    Material {
        prose,
        qa: Vec::new(),
        longbench: Vec::new(),
    }
}

fn spec(tasks: &[Task], policies: &[&str], budgets: &[Budget]) -> GridSpec {
    GridSpec {
        model: "tiny".into(),
        tasks: tasks.to_vec(),
        lengths: vec![515],
        depths: vec![None],
        caches: Caches {
            policies: policies.iter().map(|p| p.to_string()).collect(),
            memories: vec!["none".into()],
            memory_slots: vec![None],
            head_budgets: vec!["column".into()],
            budgets: budgets.to_vec(),
            sinks: 4,
            window: None,
        },
        protocol: Protocol::Agnostic,
        metric: Metric::Match,
        samples: 2,
        minutes: None,
        every_key: false,
        seed: 1,
        max_tokens: Some(6),
    }
}

fn subject(runner: &mut Runner<CpuBackend>) -> Subject<'_, CpuBackend> {
    Subject {
        runner,
        side: &Bytes,
    }
}

fn size(length: usize) -> ContextSize {
    ContextSize { length, stride: 16 }
}

fn run(
    runner: &mut Runner<CpuBackend>,
    material: &Material,
    spec: &GridSpec,
    out: &Path,
) -> Outcome {
    run_grid(&mut subject(runner), material, spec, out, &mut |_, _| ()).expect("a grid")
}

fn samples(out: &Path) -> Vec<SampleResult> {
    let text = std::fs::read_to_string(out.join("samples.jsonl")).expect("written");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a sample"))
        .collect()
}

#[test]
fn a_grid_goes_on_where_it_stopped_and_room_for_everything_loses_nothing() {
    let model = tiny_model(1);
    let mut runner = engine(model.path(), EngineOptions::default(), None);
    let out = tempfile::tempdir().expect("a directory");
    let (roomy, tight) = (Budget::Entries(4000), Budget::Entries(40));
    let tasks = [Task::Single1, Task::Multivalue];
    let first = run(
        &mut runner,
        &material(),
        &spec(&tasks, &["full", "window"], &[roomy, tight]),
        out.path(),
    );
    let before = samples(out.path());
    assert_eq!(
        (before.len(), first.cells.len(), first.headlines.len()),
        (2 * 2 * 3, 2 * 3, 3)
    );
    let of = |budget: Option<Budget>| {
        first
            .headlines
            .iter()
            .find(|h| h.budget == budget)
            .expect("a line")
    };
    assert_eq!((of(None).loss, of(Some(roomy)).loss), (0.0, 0.0));
    assert_eq!(of(None).score, of(Some(roomy)).score);
    assert_ne!(of(Some(tight)).loss, 0.0);
    assert!(of(Some(tight)).share < 0.5 && of(Some(roomy)).share == 1.0 && of(None).n == 4);
    for sample in &before {
        assert_eq!(sample.cell.setting.length, 512, "a multiple of the stride");
        assert!(
            sample.decoded.is_some() || sample.exact,
            "an answer was decoded"
        );
    }
    // A policy is added: what is there stays, and is not measured again.
    let wider = spec(
        &tasks,
        &["full", "window", "expected-attention"],
        &[roomy, tight],
    );
    let second = run(&mut runner, &material(), &wider, out.path());
    let after = samples(out.path());
    assert_eq!((after.len(), second.headlines.len()), (2 * 2 * 5, 5));
    assert_eq!(after[..before.len()], before);
    for name in [
        "cells.jsonl",
        "headline.jsonl",
        "table.md",
        "accuracy.svg",
        "loglik.svg",
    ] {
        assert!(out.path().join(name).exists(), "no {name}");
    }
}

#[test]
fn protocols_are_different_cells_of_the_same_questions() {
    let model = tiny_model(1);
    let mut runner = engine(model.path(), EngineOptions::default(), None);
    let out = tempfile::tempdir().expect("a directory");
    for protocol in Protocol::ALL {
        let spec = GridSpec {
            protocol,
            samples: 1,
            ..spec(&[Task::Single1], &["full"], &[])
        };
        let outcome = run(&mut runner, &material(), &spec, out.path());
        assert_eq!(outcome.headlines[0].protocol, protocol);
        assert!(
            std::fs::read_to_string(out.path().join("table.md"))
                .expect("written")
                .contains(protocol.name())
        );
    }
    let all = samples(out.path());
    assert_eq!(all.len(), 3);
    assert!(
        all.iter()
            .all(|s| s.expected == all[0].expected && s.loglik.is_finite())
    );
    assert!(all[0].loglik != all[1].loglik && all[1].loglik != all[2].loglik);
}

#[test]
fn asking_for_every_key_gives_the_mean_of_asking_for_each() {
    let model = tiny_model(1);
    let mut runner = engine(model.path(), EngineOptions::default(), None);
    let out = tempfile::tempdir().expect("a directory");
    // Room for everything: the contract, which the longest question decides, makes no difference.
    let every = GridSpec {
        every_key: true,
        samples: 1,
        lengths: vec![1024],
        max_tokens: Some(20),
        ..spec(&[Task::Multikey1], &["full"], &[])
    };
    run(&mut runner, &material(), &every, out.path());
    let sample = samples(out.path()).remove(0);
    assert_eq!(
        (
            sample.cell.setting.questions,
            sample.expected.matches('|').count()
        ),
        (4, 3)
    );
    let mut loglik = 0.0;
    for key in 0..4 {
        let draw = Draw {
            seed: 1,
            index: 0,
            depth: None,
            length: 1024,
            key,
        };
        let (material, contract) = (material(), Contract::Full);
        let question = tasks::question(Task::Multikey1, &material, draw).expect("no file needed");
        let prompt =
            prompt::build(&Bytes, &question, size(1024), Protocol::Agnostic).expect("fits");
        let alone = measure::measure(&mut subject(&mut runner), &contract, &[prompt], &[])
            .expect("a prompt");
        loglik += alone[0].loglik / 4.0;
    }
    assert!(
        (sample.loglik - loglik).abs() < 1e-12,
        "{} {loglik}",
        sample.loglik
    );
    let late = GridSpec {
        protocol: Protocol::QuestionLast,
        ..every
    };
    let refused = run_grid(
        &mut subject(&mut runner),
        &material(),
        &late,
        out.path(),
        &mut |_, _| (),
    );
    assert!(
        refused
            .expect_err("the question is in the context")
            .to_string()
            .contains("agnostic")
    );
}

#[test]
fn longbench_is_read_measured_and_scored() {
    let data = tempfile::tempdir().expect("a directory");
    let line = |context: &str, answer: &str| {
        let line = serde_json::json!({
            "input": "Who?", "context": context, "answers": [answer], "length": 9,
            "dataset": "qasper", "language": "en", "all_classes": null, "_id": "0",
        });
        line.to_string()
    };
    let long = "Ann came by and left. ".repeat(60);
    let text = [line(&long, "Ann"), line(&long[22..], "Bob")].join("\n");
    std::fs::write(data.path().join("qasper.jsonl"), text).expect("written");
    let (longbench, left) = File::read_all(data.path(), &[]).expect("a dataset");
    assert!(left.is_empty());
    let task = Task::Long(longbench[0].dataset());
    let material = Material {
        longbench,
        ..material()
    };
    let model = tiny_model(1);
    let mut runner = engine(model.path(), EngineOptions::default(), None);
    let out = tempfile::tempdir().expect("a directory");
    // More samples are asked for than there are.
    let spec = GridSpec {
        lengths: vec![1024],
        samples: 5,
        ..spec(&[task], &["full", "window"], &[Budget::Entries(64)])
    };
    let outcome = run(&mut runner, &material, &spec, out.path());
    assert_eq!((outcome.cells.len(), outcome.cells[0].n), (2, 2));
    for sample in samples(out.path()) {
        let draw = Draw {
            seed: 1,
            index: sample.index,
            depth: None,
            length: 1024,
            key: 0,
        };
        let question = tasks::question(task, &material, draw).expect("a file");
        assert_eq!(
            sample.prompt_tokens - sample.tail_tokens,
            1024,
            "cut to the length asked for"
        );
        assert_eq!(
            sample.score,
            question.score(sample.decoded.as_deref().expect("always decoded"))
        );
    }
}

#[test]
fn a_page_shows_what_is_held() {
    let model = tiny_model(1);
    let mut runner = engine(model.path(), EngineOptions::default(), None);
    let (draw, material) = (
        Draw {
            seed: 1,
            index: 0,
            depth: None,
            length: 512,
            key: 0,
        },
        material(),
    );
    let question = tasks::question(Task::Single1, &material, draw).expect("no file needed");
    let prompt = prompt::build(&Bytes, &question, size(512), Protocol::Agnostic).expect("fits");
    let cache = CacheShape {
        policy: "window".into(),
        budget: Some(Budget::Entries(40)),
        ..CacheShape::full()
    };
    let view = View {
        model: "tiny",
        cache: &cache,
        prompt: &prompt,
        max_tokens: 4,
    };
    let shown = show::look(&mut subject(&mut runner), view).expect("a prompt that fits");
    let tail = prompt.len() % 16;
    assert!(
        shown
            .heads
            .iter()
            .all(|head| head.len() == 40 + tail && head.contains(&(prompt.len() as u32 - 1)))
    );
    let asked = Asked {
        question: question.question.clone(),
        answer_prefix: question.answer_prefix.clone(),
        expected: question.answers.clone(),
    };
    let page = show::html(&Bytes, &shown, &asked);
    assert_eq!(page.matches("<i class=").count(), prompt.len());
    assert_eq!(page.matches("class=\"k20").count(), 40 + tail);
    assert_eq!(page.matches(" asked\"").count(), question.answers[0].len());
}
