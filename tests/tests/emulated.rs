//! The CUDA backend, on the emulated device, answers as the CPU backend does: same tokens, same
//! slots kept.
#![cfg(feature = "emulate")]

use std::collections::HashSet;

use palimpsest_collective::Place;
use palimpsest_engine::device_memory::{CacheBytes, DeviceMemory, RankSize, StepSize};
use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::kv::{Contract, HeadBudget};
use palimpsest_engine::rank::{Rank, RankOptions};
use palimpsest_engine::shard::Shard;
use palimpsest_kernels::cpu::{Activations, CpuBackend, CpuOptions, SimdLevel};
use palimpsest_kernels::cuda::emulated::Emulated;
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_kernels::{Backend, KvType};
use palimpsest_models::{DigestCache, Model};
use palimpsest_proto::v1::KvContract;
use palimpsest_tests::devices::{Outcome, contracts, on_cpu, on_device, tiny_configurations};
use palimpsest_tests::{
    EngineOptions, STRIDE, contract, engine_on, tiny_indexer_of_two, tiny_model,
};

const TOKENS: usize = 20;

/// With two scorers, as the built-in file has them.
fn indexer() -> Indexer {
    tiny_indexer_of_two(5)
}

fn wanted(contract: &Contract, kv: KvType) -> Outcome {
    on_cpu(tiny_model(1).path(), kv, Some(&indexer()), contract, TOKENS)
}

fn emulated(contract: &Contract, kv: KvType, forced: Option<&[u32]>) -> Outcome {
    let backend = CudaBackend::new(Emulated::new(11), Precision::F32);
    on_device(
        backend,
        tiny_model(1).path(),
        (kv, Some(&indexer())),
        contract,
        (TOKENS, forced),
    )
}

#[test]
fn the_emulated_device_answers_as_the_cpu_does() {
    for contract in contracts() {
        assert_eq!(
            emulated(&contract, KvType::F32, None),
            wanted(&contract, KvType::F32),
            "{contract:?}"
        );
    }
}

/// Every architecture, with a policy that needs no training.
#[test]
fn every_tiny_model_answers_as_on_the_cpu() {
    let contract = contract("keydiff", HeadBudget::Uniform, 12);
    for path in tiny_configurations() {
        let backend = CudaBackend::new(Emulated::new(3), Precision::F32);
        let got = on_device(backend, &path, (KvType::F32, None), &contract, (8, None));
        assert_eq!(
            got,
            on_cpu(&path, KvType::F32, None, &contract, 8),
            "{}",
            path.display()
        );
    }
}

/// Queries and probabilities in f16 on tensor cores, of f16 caches and of 8-bit ones: a random
/// model amplifies their rounding, so both read the same tokens and are compared in what they would
/// have chosen and in what they kept.
#[test]
fn tensor_cores_choose_nearly_the_same() {
    for (contract, kv) in contracts()
        .into_iter()
        .flat_map(|c| [(c.clone(), KvType::F16), (c, KvType::Q8)])
    {
        let want = wanted(&contract, kv);
        let got = emulated(&contract, kv, Some(&want.answer));
        let same = got
            .answer
            .iter()
            .zip(&want.answer)
            .filter(|(got, want)| got == want)
            .count();
        let both = |(got, want): (&Vec<u32>, &Vec<u32>)| {
            got.iter().filter(|p| want.binary_search(p).is_ok()).count()
        };
        let kept: usize = got.kept.iter().zip(&want.kept).map(both).sum();
        let all: usize = want.kept.iter().map(Vec::len).sum();
        println!(
            "{kv:?} {} {}: {same} of {TOKENS} tokens, {kept} of {all} entries",
            contract.policy(),
            contract
                .memory()
                .map_or("none", |memory| memory.name.as_str())
        );
        // Where policies rank what is nearly equal, one other slot changes a random model's next
        // choices.
        let (least_same, least_kept) = (0.6, 0.95);
        assert!(
            same as f64 >= least_same * TOKENS as f64,
            "{contract:?}: {same} of {TOKENS} tokens, {kv:?}"
        );
        assert!(
            kept as f64 >= least_kept * all as f64,
            "{contract:?}: {kept} of {all} entries, {kv:?}"
        );
    }
}

/// What a GPU's memory is checked for before anything is loaded is what is loaded then, whatever
/// part of a model.
#[test]
fn weights_are_counted_as_they_are_loaded() {
    let whole = tiny_configurations()
        .into_iter()
        .map(|path| (path, Place::ALONE));
    let tiny = tiny_model(1);
    // Blocks of quantised weights are wider than a rank's part of the fixtures.
    let parts = (0..3).map(|rank| {
        (
            tiny.path().to_owned(),
            Place {
                rank,
                world_size: 3,
            },
        )
    });
    for (path, place) in whole.chain(parts) {
        let model = Model::open(&path).expect("a model");
        let shard = Shard::new(model.config(), place).expect("a part");
        for (precision, bytes) in [(Precision::Bf16, 2), (Precision::F32, 4)] {
            let options = EngineOptions {
                place,
                ..EngineOptions::default()
            };
            let runner = engine_on(
                CudaBackend::new(Emulated::new(0), precision),
                &path,
                options,
                None,
            );
            let size = RankSize {
                element_bytes: bytes,
                cache: CacheBytes::of(64 << 20, None),
                kv: KvType::F16,
                step: StepSize::usual(16),
            };
            let counted = DeviceMemory::of(model.config(), &shard, &size);
            assert_eq!(
                counted.weights,
                runner.decoder().weight_bytes(),
                "{} {place:?}",
                path.display()
            );
        }
    }
}

/// What names the states of a rank on a device.
fn state_digest<B: Backend>(backend: B) -> Vec<u8> {
    let model = tiny_model(1);
    let options = RankOptions {
        model: model.path().to_owned(),
        name: String::new(),
        kv: KvType::F16,
        cache: CacheBytes::of(1 << 20, None),
        snapshot_bytes: 0,
        stride: STRIDE as u32,
        indexer: None,
        default_kv: KvContract::default(),
        step: None,
        place: Place::ALONE,
        digests: DigestCache::nowhere(),
    };
    let rank = Rank::open(backend, options, &mut |_| {}).expect("a tiny model");
    rank.info.model.expect("a model").state_digest.to_vec()
}

/// Devices compute other bits, and a kept state is to have those of an undisturbed run.
#[test]
fn a_state_of_one_kind_of_device_is_never_taken_for_one_of_another() {
    let cpu = |activations, simd, threads| {
        state_digest(CpuBackend::new(CpuOptions {
            threads: Some(threads),
            activations,
            simd: Some(simd),
        }))
    };
    let cuda = |precision| state_digest(CudaBackend::new(Emulated::new(1), precision));
    let digests = [
        cpu(Activations::Int8, SimdLevel::Avx2, 1),
        cpu(Activations::F32, SimdLevel::Avx2, 1),
        cuda(Precision::Bf16),
        cuda(Precision::F32),
    ];
    let distinct: HashSet<_> = digests.iter().collect();
    assert_eq!(distinct.len(), digests.len());
    // What changes no bit changes no name.
    assert_eq!(cpu(Activations::Int8, SimdLevel::Portable, 2), digests[0]);
    assert_eq!(cuda(Precision::F32), digests[3]);
}
