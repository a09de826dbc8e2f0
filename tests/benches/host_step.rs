//! What the host does for a step of decoding on a GPU: the layers, heads and cache of Llama 3.1 8B
//! on a device that computes nothing, under the default contract. The host's work does not depend
//! on the width of the model, which is small here.
//!
//! ```console
//! cargo bench -p palimpsest-tests --bench host_step
//! ```

use std::time::Instant;

use palimpsest_collective::Place;
use palimpsest_engine::device_memory::CacheBytes;
use palimpsest_engine::kv::Contract;
use palimpsest_engine::offline::OfflineBatch;
use palimpsest_engine::rank::{Rank, RankOptions};
use palimpsest_kernels::KvType;
use palimpsest_kernels::cuda::null::{Counts, Null};
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_models::DigestCache;
use palimpsest_proto::contract::Offer;
use palimpsest_proto::v1::KvContract;

/// Entries of a head that every sequence has already.
const CONTEXT: usize = 4000;
/// Steps that are timed; the first ones capture graphs and count for nothing.
const STEPS: usize = 60;
const WARM_UP: usize = 3;

/// A configuration with the layers and heads of Llama 3.1 8B.
const SHAPE: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "hidden_size": 64,
    "intermediate_size": 64, "vocab_size": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "max_position_embeddings": 131072, "tie_word_embeddings": false
}"#;

fn open() -> Rank<CudaBackend<Null>> {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("config.json"), SHAPE).expect("a file");
    let options = RankOptions {
        model: format!("random:{}", folder.path().display()).into(),
        name: String::new(),
        kv: KvType::F16,
        cache: CacheBytes::of(160 << 30, None),
        snapshot_bytes: 0,
        stride: 128,
        indexer: None,
        default_kv: KvContract {
            budget: 4096,
            ..KvContract::default()
        },
        step: None,
        place: Place::ALONE,
        digests: DigestCache::nowhere(),
    };
    let backend = CudaBackend::new(Null::default(), Precision::Bf16);
    Rank::open(backend, options, &mut |_| {}).expect("a rank")
}

/// What a step took at a batch size.
struct Measured {
    /// Median of the steps between boundaries, in seconds.
    median: f64,
    /// The slowest, which has a boundary.
    slowest: f64,
    /// What the device was asked for in a usual step.
    asked: Counts,
}

fn measure(rank: &mut Rank<CudaBackend<Null>>, contract: &Contract, sequences: usize) -> Measured {
    let counts = |batch: &OfflineBatch<'_, CudaBackend<Null>>| {
        batch.runner().decoder().backend().device().counts()
    };
    let mut batch = OfflineBatch::open(&mut rank.runner, contract, sequences).expect("a batch");
    batch.assume(CONTEXT).expect("room for the context");
    let tokens = vec![1; sequences];
    let (mut seconds, mut asked) = (Vec::new(), Counts::default());
    for step in 0..WARM_UP + STEPS {
        let before = counts(&batch);
        let started = Instant::now();
        batch.decode(&tokens).expect("a step");
        if step >= WARM_UP {
            seconds.push(started.elapsed().as_secs_f64());
        }
        let after = counts(&batch);
        asked = Counts {
            uploads: after.uploads - before.uploads,
            uploaded: after.uploaded - before.uploaded,
            waits: after.waits - before.waits,
            commands: after.commands - before.commands,
            captures: after.captures - before.captures,
            replays: after.replays - before.replays,
        };
    }
    seconds.sort_by(f64::total_cmp);
    Measured {
        median: seconds[STEPS / 2],
        slowest: seconds[STEPS - 1],
        asked,
    }
}

fn main() {
    let mut rank = open();
    let info = rank.info.model.clone().expect("a model");
    let open = KvContract::default();
    let offer = Offer {
        defaults: info.default_kv.as_ref().unwrap_or(&open),
        pooled: &info.pooled_policies,
    };
    let contract = Contract::complete(&open, offer).expect("a contract");
    println!("{} under {contract:?}", info.name);
    println!(
        "| sequences | median, ms | slowest, ms | uploads | bytes up | waits | commands | replays |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for sequences in [1, 8, 64, 210] {
        let Measured {
            median,
            slowest,
            asked,
        } = measure(&mut rank, &contract, sequences);
        println!(
            "| {sequences} | {:.3} | {:.3} | {} | {} | {} | {} | {} |",
            median * 1e3,
            slowest * 1e3,
            asked.uploads,
            asked.uploaded,
            asked.waits,
            asked.commands,
            asked.replays
        );
    }
}
