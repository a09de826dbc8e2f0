//! The same guided tokens for one rank and several, alone and in a batch, read at once and read
//! again, from a kept state and on a device.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use palimpsest_collective::local::LocalGroup;
use palimpsest_collective::{Collective, Place};
use palimpsest_engine::kept::Kept;
use palimpsest_engine::kv::HeadBudget;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::KvType;
use palimpsest_kernels::cpu::{Activations, CpuBackend};
use palimpsest_proto::internal::v1::{SequenceInit, SequenceOutput, SequenceStep, StepPlan};
use palimpsest_proto::v1::{Guide, Sampling};
use palimpsest_tests::{EngineOptions, STRIDE, contract, engine, tiny_model};

/// The end of sequence of the tiny model, whose tokens below 256 are bytes.
const END: u32 = 267;
/// More tokens than any answer here can have.
const MOST: usize = 200;

/// Exact arithmetic, so that ranks of any number agree bit for bit.
const EXACT: EngineOptions = EngineOptions {
    threads: 1,
    activations: Activations::F32,
    kv: KvType::F32,
    stride: STRIDE,
    place: Place::ALONE,
};

/// Answers end: numbers and texts have bounds.
fn guide() -> Guide {
    let schema = serde_json::json!({
        "type": "object", "additionalProperties": false,
        "required": ["name", "kind", "parts"],
        "properties": {
            "name": {"type": "string", "minLength": 3, "maxLength": 9, "pattern": "^[a-zé]+$"},
            "kind": {"enum": ["round", "square", 7, null]},
            "parts": {
                "type": "array", "minItems": 1, "maxItems": 3,
                "items": {"type": "integer", "minimum": -99, "maximum": 9999},
            },
        },
    });
    Guide::of_schema(schema.to_string())
}

/// One sequence as a coordinator drives it.
#[derive(Clone)]
struct Driven {
    id: u64,
    prompt: Vec<u32>,
    answer: Vec<u32>,
    read: usize,
    known: bool,
    init: SequenceInit,
}

impl Driven {
    fn new(id: u64, guide: Option<Guide>) -> Self {
        let prompt: Vec<u32> = (0..20 + 7 * id as u32)
            .map(|i| 97 + (i * i + id as u32) % 26)
            .collect();
        let init = SequenceInit {
            kv: Some((&contract("window", HeadBudget::Uniform, 0)).into()),
            sampling: Some(Sampling {
                temperature: Some(1.0),
                top_p: Some(0.95),
                repetition_penalty: Some(1.1),
                seed: Some(5 + id),
                ..Default::default()
            }),
            max_tokens: 1000,
            prompt_tokens: prompt.len() as u64,
            guide,
            ..Default::default()
        };
        Self {
            id,
            prompt,
            answer: Vec::new(),
            read: 0,
            known: false,
            init,
        }
    }

    fn all(&self) -> Vec<u32> {
        [&self.prompt[..], &self.answer[..]].concat()
    }

    fn is_over(&self) -> bool {
        self.answer.last() == Some(&END) || self.answer.len() >= MOST
    }

    /// The next tokens, up to a boundary. The state there is kept under its position.
    fn step(&mut self) -> SequenceStep {
        let all = self.all();
        let room = STRIDE as usize - self.read % STRIDE as usize;
        let end = all.len().min(self.read + room);
        let step = SequenceStep {
            sequence: self.id,
            init: (!self.known).then(|| self.init.clone()),
            tokens: all[self.read..end].to_vec(),
            position: self.read as u64,
            sample: end == all.len(),
            keep: match end % STRIDE as usize {
                0 => state_at(end).into(),
                _ => Vec::new().into(),
            },
            ..Default::default()
        };
        self.known = true;
        self.read = end;
        step
    }

    fn text(&self) -> String {
        let bytes = self.answer.iter().take_while(|&&token| token != END);
        let bytes = bytes.flat_map(|&token| bytes_of(token));
        String::from_utf8(bytes.collect()).expect("whole characters")
    }
}

/// Name of the state at a position.
fn state_at(position: usize) -> Vec<u8> {
    position.to_string().into_bytes()
}

/// Bytes of a token of the tiny model's tokenizer.
fn bytes_of(token: u32) -> Vec<u8> {
    let merged = [
        "th", "the", " the", "he", "ll", "hell", "hello", "é", "<pad>", "<unused>",
    ];
    match u8::try_from(token) {
        Ok(byte) => vec![byte],
        Err(_) => merged[token as usize - 256].as_bytes().to_vec(),
    }
}

/// Carries one plan out on every rank, and returns what the first says; the others say the same.
fn execute(
    group: &mut [Runner<CpuBackend>],
    number: u64,
    sequences: Vec<SequenceStep>,
) -> Vec<SequenceOutput> {
    let plan = plan(number, sequences);
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let plan = &plan;
        let threads: Vec<_> = group
            .iter_mut()
            .map(|runner| scope.spawn(move || runner.execute(plan)))
            .collect();
        let output = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().expect("a rank");
        threads.into_iter().map(output).collect()
    });
    for output in &outputs {
        assert_eq!(output.error, "");
        assert_eq!(output.digest, outputs[0].digest);
    }
    outputs.into_iter().next().expect("a rank").sequences
}

fn plan(step: u64, sequences: Vec<SequenceStep>) -> StepPlan {
    StepPlan {
        epoch: 1,
        step,
        sequences,
        ..Default::default()
    }
}

/// Runs sequences together until all have ended.
fn run(group: &mut [Runner<CpuBackend>], sequences: &mut [Driven]) {
    let mut number = 0;
    while sequences.iter().any(|one| !one.is_over()) {
        number += 1;
        let steps = sequences.iter_mut().filter(|one| !one.is_over());
        let steps = steps.map(Driven::step).collect();
        for output in execute(group, number, steps) {
            assert_eq!(output.error, "");
            let one = sequences.iter_mut().find(|one| one.id == output.sequence);
            one.expect("it is ours").answer.extend(output.token);
        }
    }
}

fn group(path: &Path, world_size: usize) -> Vec<Runner<CpuBackend>> {
    let ends = LocalGroup::new(world_size).into_iter().enumerate();
    let rank = |(rank, end)| {
        let place = Place { rank, world_size };
        let mut runner = engine(path, EngineOptions { place, ..EXACT }, None);
        let end: Arc<dyn Collective> = Arc::new(end);
        runner.join(1, (world_size > 1).then_some(end));
        runner
    };
    ends.map(rank).collect()
}

fn alone(path: &Path, id: u64) -> Driven {
    let mut sequences = [Driven::new(id, Some(guide()))];
    run(&mut group(path, 1), &mut sequences);
    let [one] = sequences;
    one
}

fn check_answer(one: &Driven) {
    let text = one.text();
    assert_eq!(one.answer.last(), Some(&END), "{text}");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let name = value["name"].as_str().expect("a text").chars().count();
    assert!((3..=9).contains(&name), "{text}");
    assert!(
        value["parts"]
            .as_array()
            .is_some_and(|parts| !parts.is_empty()),
        "{text}"
    );
}

#[test]
fn ranks_of_any_number_and_any_batch_say_the_same() {
    let model = tiny_model(21);
    let expected: Vec<Driven> = (0..4).map(|id| alone(model.path(), id)).collect();
    expected.iter().for_each(check_answer);
    assert_ne!(expected[0].answer, expected[1].answer);
    for world_size in 1..=3 {
        // One of them goes without a guide.
        let mut sequences: Vec<_> = (0..4).map(|id| Driven::new(id, Some(guide()))).collect();
        sequences.push(Driven::new(9, None));
        run(&mut group(model.path(), world_size), &mut sequences);
        for (one, expected) in sequences.iter().zip(&expected) {
            assert_eq!(
                one.answer, expected.answer,
                "{world_size} ranks, {}",
                one.id
            );
        }
    }
}

/// A mask that is late holds nobody up and changes no token, whichever rank it is late on.
#[test]
fn a_sequence_whose_guide_is_late_sits_out_and_says_the_same() {
    let model = tiny_model(21);
    let expected: Vec<Driven> = (0..3).map(|id| alone(model.path(), id)).collect();
    let late = [0, 15, 0, 0, 0, 60].map(Duration::from_millis);
    for world_size in 1..=3 {
        let mut ranks = group(model.path(), world_size);
        ranks.last_mut().expect("a rank").delay_masks(&late);
        let mut sequences: Vec<_> = (0..3).map(|id| Driven::new(id, Some(guide()))).collect();
        sequences.push(Driven::new(9, None));
        let (mut number, mut sat_out) = (0, [0; 10]);
        while sequences.iter().any(|one| !one.is_over()) {
            number += 1;
            let steps = sequences.iter_mut().filter(|one| !one.is_over());
            let steps: Vec<_> = steps.map(Driven::step).collect();
            let asked: Vec<bool> = steps.iter().map(|step| step.sample).collect();
            for (output, asked) in execute(&mut ranks, number, steps).into_iter().zip(asked) {
                assert_eq!(output.error, "");
                assert_eq!(output.token.is_some() || output.awaits_guide, asked);
                sat_out[output.sequence as usize] += usize::from(output.awaits_guide);
                let one = sequences.iter_mut().find(|one| one.id == output.sequence);
                one.expect("it is ours").answer.extend(output.token);
            }
        }
        for (one, expected) in sequences.iter().zip(&expected) {
            assert_eq!(
                one.answer, expected.answer,
                "{world_size} ranks, {}",
                one.id
            );
            assert!(sat_out[one.id as usize] > 0, "{sat_out:?}");
        }
        assert_eq!(sat_out[9], 0, "it has no guide");
    }
}

/// What a plan may not do with a token that is due fails its sequence alone.
#[test]
fn a_token_that_is_due_is_chosen_before_anything_is_read() {
    let model = tiny_model(26);
    let mut ranks = group(model.path(), 1);
    ranks[0].delay_masks(&[Duration::from_millis(500)]);
    let mut sequences = [Driven::new(1, Some(guide())), Driven::new(2, None)];
    let mut number = 0;
    loop {
        number += 1;
        let steps = sequences.iter_mut().map(Driven::step).collect();
        let outputs = execute(&mut ranks, number, steps);
        for (one, output) in sequences.iter_mut().zip(&outputs) {
            one.answer.extend(output.token);
        }
        if outputs[0].awaits_guide {
            break;
        }
    }
    let read = SequenceStep {
        tokens: vec![97],
        ..sequences[0].step()
    };
    let outputs = execute(&mut ranks, number + 1, vec![read, sequences[1].step()]);
    assert!(outputs[0].error.contains("is due"), "{outputs:?}");
    assert!(outputs[1].error.is_empty() && outputs[1].token.is_some());
}

/// As after the loss of a group: the prompt and what was answered are read anew.
#[test]
fn an_answer_that_is_read_again_goes_on_with_the_same_tokens() {
    let model = tiny_model(22);
    let whole = alone(model.path(), 1);
    check_answer(&whole);
    for cut in 1..whole.answer.len() {
        let mut again = [Driven {
            answer: whole.answer[..cut].to_vec(),
            ..Driven::new(1, Some(guide()))
        }];
        run(&mut group(model.path(), 1), &mut again);
        assert_eq!(again[0].answer, whole.answer, "after {cut} tokens");
    }
}

#[test]
fn a_sequence_that_begins_with_a_kept_state_goes_on_with_the_same_tokens() {
    let model = tiny_model(23);
    let mut ranks = group(model.path(), 1);
    ranks[0].keep_in(Kept::new(64 << 20));
    let mut first = [Driven::new(1, Some(guide()))];
    run(&mut ranks, &mut first);
    let [first] = first;
    check_answer(&first);
    // The last boundary is within the answer.
    let position = first.read - first.read % STRIDE as usize;
    assert!(position > first.prompt.len(), "the answer is long enough");
    let mut second = Driven::new(2, Some(guide()));
    second.prompt = first.prompt.clone();
    second.answer = first.all()[first.prompt.len()..position + 1].to_vec();
    second.init.prompt_tokens = first.prompt.len() as u64;
    second.init.sampling = first.init.sampling.clone();
    second.init.fork = state_at(position).into();
    second.init.forked_tokens = first.all()[..position].to_vec();
    second.read = position;
    let mut second = [second];
    run(&mut ranks, &mut second);
    assert_eq!(second[0].answer, first.answer);
}

/// Log-probabilities are chosen by on the host, from the same mask.
#[test]
fn an_answer_with_logprobs_has_the_same_tokens() {
    let model = tiny_model(24);
    let whole = alone(model.path(), 3);
    let mut reported = Driven::new(3, Some(guide()));
    let sampling = reported.init.sampling.as_mut().expect("it samples");
    sampling.logprobs = Some(2);
    let mut reported = [reported];
    run(&mut group(model.path(), 1), &mut reported);
    assert_eq!(reported[0].answer, whole.answer);
}

#[test]
fn a_guide_that_is_stuck_ends_its_sequence_alone() {
    let model = tiny_model(25);
    let mut ranks = group(model.path(), 1);
    // The only token that its guide allows is banned.
    let mut stuck = Driven::new(1, Some(Guide::of_texts(vec!["a".to_owned()])));
    stuck.init.banned = vec![97];
    let wrong = Driven::new(2, Some(Guide::of_texts(Vec::new())));
    let mut sequences = [stuck, wrong, Driven::new(3, Some(guide()))];
    let mut outputs: Vec<SequenceOutput> = Vec::new();
    // Until all prompts are read, and no guide is waited for.
    for number in 1.. {
        let is_due = |id| {
            let last = outputs.iter().rfind(|output| output.sequence == id);
            last.is_some_and(|output| output.awaits_guide)
        };
        let steps = sequences
            .iter_mut()
            .filter(|one| one.read < one.prompt.len() || is_due(one.id));
        let steps: Vec<_> = steps.map(Driven::step).collect();
        if steps.is_empty() {
            break;
        }
        outputs.extend(execute(&mut ranks, number, steps));
    }
    let of = |id| {
        outputs
            .iter()
            .rfind(|output| output.sequence == id)
            .expect("an output")
    };
    for (id, said) in [(1, "no token"), (2, "at least one text")] {
        let output = of(id);
        assert!(
            output.guide_failed && output.error.contains(said),
            "{output:?}"
        );
        assert_eq!(output.token, None);
    }
    assert!(!of(3).guide_failed && of(3).error.is_empty());
    sequences[2].answer.extend(of(3).token);
    run(&mut ranks, &mut sequences[2..]);
    check_answer(&sequences[2]);
}

/// Masks are applied by the device's kernel there.
#[cfg(feature = "emulate")]
#[test]
fn a_device_says_the_same() {
    use palimpsest_kernels::cuda::emulated::Emulated;
    use palimpsest_kernels::cuda::{CudaBackend, Precision};

    let model = tiny_model(26);
    let whole = alone(model.path(), 1);
    check_answer(&whole);
    let backend = CudaBackend::new(Emulated::new(5), Precision::F32);
    let mut device = palimpsest_tests::engine_on(backend, model.path(), EXACT, None);
    device.join(1, None);
    let mut one = Driven::new(1, Some(guide()));
    let mut number = 0;
    while !one.is_over() {
        number += 1;
        let output = device.execute(&plan(number, vec![one.step()]));
        assert_eq!(output.error, "");
        one.answer.extend(output.sequences[0].token);
    }
    assert_eq!(one.answer, whole.answer);
}
