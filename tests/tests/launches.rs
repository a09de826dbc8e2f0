//! What a step asks of a CUDA device, written down by its recorded twin: kernels, copies, and where the host waits.
#![cfg(feature = "emulate")]

use palimpsest_kernels::KvType;
use palimpsest_kernels::cuda::emulated::Emulated;
use palimpsest_kernels::cuda::recorded::{Call, Recorded};
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_proto::internal::v1::{SequenceInit, SequenceStep, StepPlan};
use palimpsest_proto::v1::{KvContract, Sampling};
use palimpsest_tests::devices::prompt;
use palimpsest_tests::{EngineOptions, LAYERS, STRIDE, engine_on, tiny_indexer, tiny_model};
use palimpsest_worker::runner::Runner;

type Device = Recorded<Emulated>;

/// The contract of a rank with an indexer where a request asks for nothing else, at a small budget.
fn default_contract() -> KvContract {
    KvContract {
        budget: 52,
        policy: "retention".into(),
        memory: "centroid".into(),
        head_budget: "column".into(),
        sinks: Some(2),
        window: Some(8),
        positions: "absolute".into(),
        memory_slots: Some(12),
    }
}

/// Sequences that read the same prompt and go on with what they sample.
struct Run {
    runner: Runner<CudaBackend<Device>>,
    sequences: u64,
    seen: usize,
    next: Vec<u32>,
}

impl Run {
    /// After `count` tokens, read in whole strides.
    fn after(count: usize, sequences: u64) -> Self {
        let backend = CudaBackend::new(Recorded::new(Emulated::new(0)), Precision::Bf16);
        let options = EngineOptions { kv: KvType::F16, ..EngineOptions::default() };
        let runner = engine_on(backend, tiny_model(1).path(), options, Some(&tiny_indexer(5)));
        let mut run = Self { runner, sequences, seen: 0, next: Vec::new() };
        for part in prompt(count).chunks(STRIDE as usize) {
            run.step(&vec![part.to_vec(); sequences as usize]);
        }
        run.runner.decoder().backend().device().take();
        run
    }

    fn step(&mut self, tokens: &[Vec<u32>]) {
        let step = |(id, tokens): (u64, &Vec<u32>)| SequenceStep {
            sequence: id,
            init: (self.seen == 0).then(|| SequenceInit {
                kv: Some(default_contract()),
                sampling: Some(Sampling { temperature: Some(0.8), seed: Some(id), ..Default::default() }),
                max_tokens: 1000,
                banned: Vec::new(),
                prompt_tokens: 1000,
                trace: None,
            }),
            tokens: tokens.clone(),
            position: self.seen as u64,
            sample: true,
            retention_report: false,
        };
        let sequences = (0..self.sequences).zip(tokens).map(step).collect();
        let plan = StepPlan { epoch: 1, step: self.seen as u64, sequences, release: Vec::new() };
        let output = self.runner.execute(&plan);
        assert_eq!(output.error, "");
        self.seen += tokens[0].len();
        self.next = output.sequences.iter().map(|out| out.token.expect("a token")).collect();
    }

    /// One token for each sequence; returns what the device was asked for.
    fn decode(&mut self) -> Vec<Call> {
        let tokens: Vec<Vec<u32>> = self.next.iter().map(|&token| vec![token]).collect();
        self.step(&tokens);
        self.runner.decoder().backend().device().take()
    }
}

/// Names in order; what happens alike in every layer once.
fn names(calls: &[Call]) -> Vec<&str> {
    let names: Vec<&str> = calls.iter().map(Call::name).collect();
    let first = names.iter().position(|&name| name == "rms_norm").expect("a layer");
    let last = names.iter().rposition(|&name| name == "silu_mul").expect("a layer");
    // The layers begin alike; after the last activation comes a product and a sum.
    let end = last + names[last..].iter().position(|&name| name == "add").expect("a sum") + 1;
    let layer = (end - first) / LAYERS;
    assert!((1..LAYERS).all(|l| names[first..first + layer] == names[first + l * layer..][..layer]), "{names:?}");
    [&names[..first + layer], &names[end..]].concat()
}

const LAYER: [&str; 22] = [
    "rms_norm",
    // The scorer, whose output is noted with the slots.
    "fill_bias",
    "cast_rows",
    "gemv_bf16_2",
    "upload",
    "note",
    // Queries, keys and values.
    "cast_rows",
    "gemv_bf16_2",
    "upload",
    "split_qkv_f16",
    "upload",
    "attention_decode_16",
    "cast_rows",
    "gemv_bf16_2",
    "add",
    "rms_norm",
    "cast_rows",
    "gemv_bf16_2",
    "silu_mul",
    "cast_rows",
    "gemv_bf16_2",
    "add",
];
/// Angles, token ids; the rows of which logits are wanted.
const BEFORE: [&str; 4] = ["upload", "upload", "upload", "embed"];
const LOGITS: [&str; 5] = ["upload", "gather_rows", "rms_norm", "cast_rows", "gemv_bf16_2"];

/// A step of decoding waits once, at its end, for the tokens; nothing is allocated.
#[test]
fn a_step_waits_for_its_tokens_alone() {
    let mut run = Run::after(96, 2);
    let calls = run.decode();
    let want = [&BEFORE[..], &LAYER, &LOGITS, &["upload", "sample", "wait"]].concat();
    assert_eq!(names(&calls), want);
    assert_eq!(calls.last(), Some(&Call::Wait { bytes: 2 * 4 }), "four bytes of each sequence");
    let uploaded = |call: &Call| if let Call::Upload { bytes } = call { *bytes } else { 0 };
    println!(
        "a step of 2 sequences: {} calls, {} bytes uploaded",
        calls.len(),
        calls.iter().map(uploaded).sum::<usize>()
    );
}

/// At a boundary, too, everything is started before the host waits: for the tokens, and then for what each sequence keeps.
#[test]
fn a_boundary_adds_waits_at_the_end_alone() {
    let mut run = Run::after(96 + 15, 2);
    let calls = run.decode();
    let boundary = [
        "upload",
        "score_notes",
        "upload",
        "select_heads",
        "select_pools",
        "select_lists",
        "upload",
        "memorise_centroids_f16",
        "upload",
        "compact",
    ];
    let want =
        [&BEFORE[..], &LAYER, &LOGITS, &boundary, &boundary, &["upload", "sample", "wait", "wait", "wait"]].concat();
    assert_eq!(names(&calls), want);
    // The memory is read from now on, and nothing else changes.
    assert_eq!(names(&run.decode()), [&BEFORE[..], &LAYER, &LOGITS, &["upload", "sample", "wait"]].concat());
}

/// Steps that fill no page ask for the very same kernels, grids and arguments: only what was uploaded differs. A captured graph
/// of the first could be launched for the second.
#[test]
fn steps_alike_differ_in_what_they_upload_alone() {
    let mut run = Run::after(96 + 4, 2);
    let first = run.decode();
    assert!((0..3).all(|_| run.decode() == first));
}
