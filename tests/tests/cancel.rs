//! Steps that are abandoned half-way: they end at the next layer, leave nothing behind, and keep no
//! rank waiting.

use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use palimpsest_collective::local::LocalGroup;
use palimpsest_collective::{Collective, Place};
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::cpu::CpuBackend;
use palimpsest_proto::contract::HeadBudget;
use palimpsest_proto::internal::v1::{SequenceInit, SequenceStep, StepOutput, StepPlan};
use palimpsest_proto::v1::Sampling;
use palimpsest_tests::{EngineOptions, LAYERS, STRIDE, contract, engine, tiny_model};

const SEQUENCE: u64 = 7;

/// The first piece of a sequence.
fn plan(epoch: u64) -> StepPlan {
    let sampling = Sampling {
        temperature: Some(0.0),
        top_p: Some(1.0),
        repetition_penalty: Some(1.0),
        ..Default::default()
    };
    let init = SequenceInit {
        kv: Some((&contract("window", HeadBudget::Uniform, 0)).into()),
        sampling: Some(sampling),
        max_tokens: 64,
        prompt_tokens: STRIDE,
        ..Default::default()
    };
    let step = SequenceStep {
        sequence: SEQUENCE,
        init: Some(init),
        tokens: (0..STRIDE as u32).collect(),
        sample: true,
        ..Default::default()
    };
    StepPlan {
        epoch,
        step: 1,
        sequences: vec![step],
        ..Default::default()
    }
}

/// What a step says, and the state that it leaves.
fn state(runner: &Runner<CpuBackend>, output: &StepOutput) -> (String, Vec<u32>, Option<u64>) {
    let tokens = output.sequences.iter().filter_map(|one| one.token);
    let digest = runner.digest(SEQUENCE).expect("no kernel error");
    (output.error.clone(), tokens.collect(), digest)
}

/// A rank was in a step until its end, however long that took.
#[test]
fn a_step_is_abandoned_at_the_next_layer_and_leaves_nothing() {
    let model = tiny_model(1);
    let mut runner = engine(model.path(), EngineOptions::default(), None);
    runner.join(1, None);
    let layers = Arc::new(Mutex::new(Vec::new()));
    let (seen, cancel) = (layers.clone(), runner.cancel());
    runner.capture(Some(Box::new(move |captured| {
        seen.lock().expect("no panic").push(captured.layer);
        cancel.cancel();
    })));
    let output = runner.execute(&plan(1));
    assert_eq!(*layers.lock().expect("no panic"), [0], "of {LAYERS} layers");
    let (error, tokens, digest) = state(&runner, &output);
    assert!(error.contains("abandoned"), "{error}");
    assert_eq!(
        (tokens, digest),
        (vec![], None),
        "nothing half-done is kept"
    );
    runner.capture(None);
    let again = runner.execute(&plan(1));
    assert!(again.error.contains("abandoned"), "until it joins an epoch");

    runner.join(2, None);
    let output = runner.execute(&plan(2));
    let mut fresh = engine(model.path(), EngineOptions::default(), None);
    let expected = fresh.execute(&plan(2));
    assert_eq!(expected.error, "");
    assert_eq!(state(&runner, &output), state(&fresh, &expected));
}

/// The ranks of a group, which have met in `epoch`.
fn meet(runners: &mut [Runner<CpuBackend>], epoch: u64) -> Vec<Arc<dyn Collective>> {
    let ends = LocalGroup::new(runners.len());
    let mut met: Vec<Arc<dyn Collective>> = Vec::new();
    for (runner, end) in runners.iter_mut().zip(ends) {
        let end: Arc<dyn Collective> = Arc::new(end);
        runner.join(epoch, Some(end.clone()));
        met.push(end);
    }
    met
}

/// The same step on all ranks, each on a thread.
fn execute(runners: &mut [Runner<CpuBackend>], plan: &StepPlan) -> Vec<StepOutput> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = runners
            .iter_mut()
            .map(|runner| scope.spawn(|| runner.execute(plan)))
            .collect();
        let output =
            |thread: std::thread::ScopedJoinHandle<'_, StepOutput>| thread.join().expect("a rank");
        threads.into_iter().map(output).collect()
    })
}

fn group(path: &Path) -> Vec<Runner<CpuBackend>> {
    let rank = |rank| {
        let place = Place {
            rank,
            world_size: 2,
        };
        let options = EngineOptions {
            place,
            ..Default::default()
        };
        engine(path, options, None)
    };
    (0..2).map(rank).collect()
}

/// One rank stands between two layers while the other waits for it in a sum.
#[test]
fn ranks_that_wait_for_an_abandoned_one_come_back_with_it() {
    let model = tiny_model(1);
    let mut runners = group(model.path());
    let met = meet(&mut runners, 1);
    let cancels: Vec<_> = runners.iter().map(Runner::cancel).collect();
    let (inside, reached) = mpsc::channel();
    let (go_on, held) = mpsc::channel::<()>();
    runners[0].capture(Some(Box::new(move |captured| {
        if captured.layer == 1 {
            // The test may have failed already.
            let _ = inside.send(());
            let _ = held.recv();
        }
    })));
    let started = Instant::now();
    let outputs = std::thread::scope(|scope| {
        let step = scope.spawn(|| execute(&mut runners, &plan(1)));
        reached.recv().expect("it comes to the second layer");
        cancels.iter().for_each(|cancel| cancel.cancel());
        met.iter().for_each(|end| end.abort());
        drop(go_on);
        step.join().expect("no panic")
    });
    assert!(outputs.iter().all(|output| !output.error.is_empty()));
    assert!(
        started.elapsed() < Duration::from_secs(30),
        "nobody waits for the deadline of a collective"
    );

    runners[0].capture(None);
    meet(&mut runners, 2);
    let outputs = execute(&mut runners, &plan(2));
    let mut fresh = group(model.path());
    meet(&mut fresh, 2);
    let expected = execute(&mut fresh, &plan(2));
    for (rank, (output, expected)) in outputs.iter().zip(&expected).enumerate() {
        assert_eq!(expected.error, "");
        assert_eq!(output.digest, expected.digest, "rank {rank}");
        assert_eq!(state(&runners[rank], output), state(&fresh[rank], expected));
    }
}
