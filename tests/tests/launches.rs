//! What a step asks of a CUDA device, written down by its recorded twin: kernels, copies, and where
//! the host waits.
#![cfg(feature = "emulate")]

use palimpsest_engine::runner::Runner;
use palimpsest_kernels::KvType;
use palimpsest_kernels::cuda::emulated::Emulated;
use palimpsest_kernels::cuda::recorded::{Call, Recorded};
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_proto::internal::v1::{SequenceInit, SequenceStep, StepPlan};
use palimpsest_proto::v1::{KvContract, Sampling};
use palimpsest_tests::devices::prompt;
use palimpsest_tests::{
    EngineOptions, KV_HEADS, LAYERS, STRIDE, engine_on, tiny_indexer, tiny_model,
};

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
    /// Pages that the sequences hold.
    held: u64,
    contract: KvContract,
}

impl Run {
    /// After `count` tokens, read in whole strides; with graphs or without.
    fn after(count: usize, sequences: u64, graphs: bool) -> Self {
        Self::under(default_contract(), count, sequences, graphs)
    }

    fn under(contract: KvContract, count: usize, sequences: u64, graphs: bool) -> Self {
        let backend =
            CudaBackend::new(Recorded::new(Emulated::new(0)), Precision::Bf16).with_graphs(graphs);
        let options = EngineOptions {
            kv: KvType::F16,
            ..EngineOptions::default()
        };
        let runner = engine_on(
            backend,
            tiny_model(1).path(),
            options,
            Some(&tiny_indexer(5)),
        );
        let mut run = Self {
            runner,
            sequences,
            seen: 0,
            next: Vec::new(),
            held: 0,
            contract,
        };
        for part in prompt(count).chunks(STRIDE as usize) {
            run.step(&vec![part.to_vec(); sequences as usize]);
        }
        run.device().take();
        run
    }

    fn device(&self) -> &Device {
        self.runner.decoder().backend().device()
    }

    fn step(&mut self, tokens: &[Vec<u32>]) {
        let step = |(id, tokens): (u64, &Vec<u32>)| SequenceStep {
            sequence: id,
            init: (self.seen == 0).then(|| SequenceInit {
                kv: Some(self.contract.clone()),
                sampling: Some(Sampling {
                    temperature: Some(0.8),
                    seed: Some(id),
                    ..Default::default()
                }),
                max_tokens: 1000,
                prompt_tokens: 1000,
                ..Default::default()
            }),
            tokens: tokens.clone(),
            position: self.seen as u64,
            sample: true,
            ..Default::default()
        };
        let sequences = (0..self.sequences).zip(tokens).map(step).collect();
        let plan = StepPlan {
            epoch: 1,
            step: self.seen as u64,
            sequences,
            ..Default::default()
        };
        let output = self.runner.execute(&plan);
        assert_eq!(output.error, "");
        self.seen += tokens[0].len();
        self.next = output
            .sequences
            .iter()
            .map(|out| out.token.expect("a token"))
            .collect();
        self.held = self.runner.held_pages();
    }

    /// One token for each sequence; returns what the device was asked for.
    fn decode(&mut self) -> Vec<Call> {
        let tokens: Vec<Vec<u32>> = self.next.iter().map(|&token| vec![token]).collect();
        self.step(&tokens);
        self.device().take()
    }

    /// Whether the last step ended at a boundary.
    fn at_boundary(&self) -> bool {
        self.seen.is_multiple_of(STRIDE as usize)
    }

    /// Digests of all that the sequences' next tokens depend on.
    fn digests(&self) -> Vec<u64> {
        let digest = |id| {
            self.runner
                .digest(id)
                .expect("readable")
                .expect("a live sequence")
        };
        (0..self.sequences).map(digest).collect()
    }
}

/// Names in order; what happens alike in every layer once.
fn names(calls: &[Call]) -> Vec<&str> {
    let names: Vec<&str> = calls.iter().map(Call::name).collect();
    let first = names
        .iter()
        .position(|&name| name == "rms_norm")
        .expect("a layer");
    let last = names
        .iter()
        .rposition(|&name| name == "silu_mul")
        .expect("a layer");
    // The layers begin alike; after the last activation comes a product and a sum.
    let end = last
        + names[last..]
            .iter()
            .position(|&name| name == "add")
            .expect("a sum")
        + 1;
    let layer = (end - first) / LAYERS;
    assert!(
        (1..LAYERS).all(|l| names[first..first + layer] == names[first + l * layer..][..layer]),
        "{names:?}"
    );
    [&names[..first + layer], &names[end..]].concat()
}

/// Launches alone.
fn launches(calls: Vec<Call>) -> Vec<Call> {
    calls
        .into_iter()
        .filter(|call| matches!(call, Call::Launch { .. }))
        .collect()
}

fn count(calls: &[Call], name: &str) -> usize {
    calls.iter().filter(|call| call.name() == name).count()
}

/// All descriptors in one upload, with what is new of page tables; angles go to their buffers,
/// token ids to the embedding.
const BEFORE: [&str; 5] = ["upload", "put_tables", "put_words", "put_words", "embed"];
const LAYER: [&str; 19] = [
    "rms_norm",
    // The scorer, whose output is noted with the slots.
    "fill_bias",
    "cast_rows",
    "gemv_bf16_2",
    "note",
    // Queries, keys and values.
    "cast_rows",
    "gemv_bf16_2",
    "split_qkv_f16",
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
const LOGITS: [&str; 4] = ["gather_rows", "rms_norm", "cast_rows", "gemv_bf16_2"];

/// A step of decoding uploads once, at its beginning, and waits once, at its end, for the tokens;
/// nothing is allocated.
#[test]
fn a_step_uploads_once_and_waits_for_its_tokens_alone() {
    let mut run = Run::after(96, 2, false);
    run.decode();
    let calls = run.decode();
    assert_eq!(
        names(&calls),
        [&BEFORE[..], &LAYER, &LOGITS, &["sample", "wait"]].concat()
    );
    assert_eq!(
        calls.last(),
        Some(&Call::Wait { bytes: 2 * 4 }),
        "four bytes of each sequence"
    );
    let Call::Upload { bytes } = calls[0] else {
        panic!("{:?}", calls[0])
    };
    println!(
        "a step of 2 sequences: {} calls, {bytes} bytes uploaded",
        calls.len()
    );
}

fn uploaded(calls: &[Call]) -> usize {
    let bytes = |call: &Call| {
        if let Call::Upload { bytes } = call {
            *bytes
        } else {
            0
        }
    };
    calls.iter().map(bytes).sum()
}

/// Page tables stay on the device: however many slots sequences hold, a step uploads as much, and
/// eight bytes more for each page that was added since the last one.
#[test]
fn page_tables_are_uploaded_once() {
    let heads = 2 * LAYERS * KV_HEADS;
    let mut quiet = Vec::new();
    // Their rows have eight and sixteen entries: a longer row is written whole.
    for count in [160, 416] {
        let full = KvContract {
            policy: "full".into(),
            ..Default::default()
        };
        let mut run = Run::under(full, count, 2, false);
        let (first, next) = (uploaded(&run.decode()), uploaded(&run.decode()));
        assert_eq!(
            first - next,
            8 * heads * (count / 32 + 1),
            "whole tables, once"
        );
        let (mut grown, mut steps) = (0, 0);
        while steps < 60 {
            let before = run.seen;
            let bytes = uploaded(&run.decode());
            if run.at_boundary() {
                continue;
            }
            steps += 1;
            let added = before.is_multiple_of(32);
            grown += usize::from(added);
            assert_eq!(
                bytes - next,
                if added { 8 * heads } else { 0 },
                "token {}",
                run.seen
            );
        }
        assert_eq!(grown, 2);
        quiet.push(next);
    }
    assert_eq!(quiet[0], quiet[1], "whatever the slots");
    println!(
        "a step of 2 sequences that adds no page uploads {} bytes",
        quiet[0]
    );
}

/// At a boundary, too, everything is started before the host waits: for the tokens, and then for
/// what each sequence keeps.
#[test]
fn a_boundary_adds_waits_at_the_end_alone() {
    let mut run = Run::after(96 + 14, 2, false);
    run.decode();
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
        "compact_f16",
    ];
    let end = ["upload", "sample", "wait", "wait", "wait"];
    assert_eq!(
        names(&calls),
        [&BEFORE[..], &LAYER, &LOGITS, &boundary, &boundary, &end].concat()
    );
    // The memory is read from now on, and nothing else changes.
    assert_eq!(
        names(&run.decode()),
        [&BEFORE[..], &LAYER, &LOGITS, &["sample", "wait"]].concat()
    );
}

/// All steps of a bucket ask for the very same kernels, grids and arguments, whatever they upload:
/// as sequences grow, where pages are added and after evictions, with three sequences as with four.
#[test]
fn steps_of_a_bucket_launch_the_same() {
    let mut run = Run::after(96, 4, false);
    let first = launches(run.decode());
    let (mut strides, mut grown) = (0, 0);
    while strides < 4 {
        run.sequences = if strides < 2 { 4 } else { 3 };
        run.next.truncate(run.sequences as usize);
        let before = run.held;
        let calls = run.decode();
        if run.at_boundary() {
            strides += 1;
            continue;
        }
        assert_eq!(
            ["upload", "wait", "alloc"].map(|name| count(&calls, name)),
            [1, 1, 0],
            "token {}",
            run.seen
        );
        grown += usize::from(run.held > before);
        assert!(launches(calls) == first, "token {}", run.seen);
    }
    assert!(
        grown > 2,
        "pages were added in {grown} steps that are no boundary"
    );
}

/// Call by call, put off, and replayed from graphs, steps give the same tokens and leave the same
/// bits.
#[test]
fn graphs_answer_as_plain_steps_do() {
    let mut plain = Run::after(90, 3, false);
    // Who looks at every layer has the steps carried out call by call.
    plain.runner.capture(Some(Box::new(|_| ())));
    let mut others = [Run::after(90, 3, false), Run::after(90, 3, true)];
    let mut replayed = 0;
    for token in 0..40 {
        let calls = plain.decode();
        assert!(count(&calls, "upload") > LAYERS, "call by call");
        for run in &mut others {
            let calls = run.decode();
            assert_eq!(run.next, plain.next, "token {token}");
            let names: Vec<_> = calls.iter().map(Call::name).collect();
            replayed += usize::from(names == ["upload", "replay", "wait"]);
        }
    }
    // Twice a list of launches is seen before it is replayed alone, and three steps end at a
    // boundary.
    assert_eq!(replayed, 40 - 2 - 3);
    plain.runner.capture(None);
    assert!(others.iter().all(|run| run.digests() == plain.digests()));
}

/// Where nothing can be captured, steps are started launch by launch.
#[test]
fn a_capture_that_fails_changes_nothing() {
    let (mut run, mut plain) = (Run::after(90, 3, true), Run::after(90, 3, false));
    run.device().refuse_captures();
    let mut refused = 0;
    for _ in 0..20 {
        let calls = run.decode();
        plain.decode();
        refused += count(&calls, "capture");
        assert_eq!((count(&calls, "replay"), &run.next), (0, &plain.next));
    }
    assert_eq!(refused, 1, "it is tried once");
    assert_eq!(run.digests(), plain.digests());
}
