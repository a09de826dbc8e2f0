//! A rank keeps the contract that it is given or refuses it, in a plan as at its start.

use std::path::Path;

use palimpsest_collective::Place;
use palimpsest_engine::device_memory::CacheBytes;
use palimpsest_engine::kv::{Contract, HeadBudget};
use palimpsest_engine::rank::{Rank, RankOptions};
use palimpsest_kernels::KvType;
use palimpsest_kernels::cpu::{CpuBackend, CpuOptions};
use palimpsest_models::DigestCache;
use palimpsest_proto::internal::v1::{RankInfo, SequenceInit, SequenceStep, StepPlan};
use palimpsest_proto::v1::KvContract;
use palimpsest_tests::{EngineOptions, STRIDE, contract, engine, tiny_model};

/// Contracts that mean nothing, each with the field that its refusal names.
fn meaningless() -> [(&'static str, KvContract); 8] {
    let full = || KvContract::from(&Contract::Full);
    let bounded = || KvContract::from(&contract("window", HeadBudget::Uniform, 0));
    let with = |mut kv: KvContract, change: fn(&mut KvContract)| {
        change(&mut kv);
        kv
    };
    [
        (
            "kv.positions",
            with(full(), |kv| kv.positions = "compacted".into()),
        ),
        (
            "kv.memory",
            with(full(), |kv| {
                kv.memory = "centroid".into();
                kv.memory_slots = Some(8);
            }),
        ),
        ("kv.budget", with(full(), |kv| kv.budget = 64)),
        (
            "kv.head_budget",
            with(full(), |kv| kv.head_budget = "column".into()),
        ),
        (
            "kv.head_budget",
            with(bounded(), |kv| kv.head_budget = String::new()),
        ),
        (
            "kv.positions",
            with(bounded(), |kv| kv.positions = "rope".into()),
        ),
        (
            "kv.memory_slots",
            with(bounded(), |kv| kv.memory_slots = Some(8)),
        ),
        // Scores of `window` cannot be compared between heads.
        (
            "kv.head_budget",
            with(bounded(), |kv| kv.head_budget = "group".into()),
        ),
    ]
}

/// A rank reads the contract of a plan as strictly as the coordinator reads a request: what means
/// nothing is refused by the name of its field, and nothing is dropped or guessed.
#[test]
fn a_contract_that_means_nothing_is_refused_by_the_rank() {
    let model = tiny_model(1);
    let mut runner = engine(model.path(), EngineOptions::default(), None);
    let meaningless = meaningless();
    let step = |(id, (_, kv)): (u64, &(&str, KvContract))| SequenceStep {
        sequence: id,
        init: Some(SequenceInit {
            kv: Some(kv.clone()),
            max_tokens: 100,
            prompt_tokens: 2,
            ..Default::default()
        }),
        tokens: vec![1, 2],
        ..Default::default()
    };
    let output = runner.execute(&StepPlan {
        epoch: 1,
        step: 1,
        sequences: (0..).zip(&meaningless).map(step).collect(),
        ..StepPlan::default()
    });
    assert_eq!(output.error, "");
    for (sequence, (field, kv)) in output.sequences.iter().zip(&meaningless) {
        assert!(
            sequence.error.contains(field),
            "{kv:?}: {:?} should name {field}",
            sequence.error
        );
    }
}

/// Starts a rank alone with this default contract, and says what it tells of itself.
fn open_rank(model: &Path, default_kv: KvContract) -> Result<RankInfo, String> {
    let options = RankOptions {
        model: model.to_owned(),
        name: String::new(),
        kv: KvType::F16,
        cache: CacheBytes::of(1 << 20, None),
        snapshot_bytes: 0,
        stride: STRIDE as u32,
        indexer: None,
        default_kv,
        step: None,
        place: Place::ALONE,
        digests: DigestCache::nowhere(),
    };
    let backend = CpuBackend::new(CpuOptions {
        threads: Some(1),
        ..Default::default()
    });
    let rank = Rank::open(backend, options, &mut |_| {});
    rank.map(|rank| rank.info)
        .map_err(|error| error.to_string())
}

/// What an operator asks for and no request could get is refused when the rank starts.
#[test]
fn a_rank_does_not_start_with_a_default_contract_that_means_nothing() {
    let model = tiny_model(1);
    let open = |default_kv: KvContract| open_rank(model.path(), default_kv);
    let full = KvContract {
        policy: "full".into(),
        ..Default::default()
    };
    open(KvContract::default()).expect("the defaults");
    open(full.clone()).expect("a full cache");
    let meaningless = [
        (
            "kv.positions",
            KvContract {
                positions: "compacted".into(),
                ..full
            },
        ),
        (
            "kv.head_budget",
            KvContract {
                head_budget: "row".into(),
                ..Default::default()
            },
        ),
        (
            "kv.head_budget",
            KvContract {
                policy: "window".into(),
                head_budget: "layer".into(),
                ..Default::default()
            },
        ),
        (
            "kv.memory_slots",
            KvContract {
                memory_slots: Some(8),
                ..Default::default()
            },
        ),
        (
            "kv.budget",
            KvContract {
                budget: 16,
                window: Some(16),
                ..Default::default()
            },
        ),
    ];
    for (field, kv) in meaningless {
        let error = open(kv).expect_err(field);
        assert!(error.contains(field), "{error} should name {field}");
    }
}

/// A model that one rank holds in part has every header right, and its rank must not join.
#[test]
fn a_rank_with_a_half_copied_model_is_told_from_the_others() {
    let model = tiny_model(1);
    let digest = || {
        let info = open_rank(model.path(), KvContract::default());
        info.expect("a tiny model").digest
    };
    let whole = digest();
    assert_eq!(digest(), whole);
    let weights = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("weights");
    let last = bytes.len() - 1;
    bytes[last] = !bytes[last];
    std::fs::write(&weights, bytes).expect("weights");
    assert_ne!(digest(), whole, "the last byte of the file");
}
