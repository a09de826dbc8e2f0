//! Models on a GPU answer as on the CPU, where there is a GPU; and NCCL with one rank and with two.
//! `cargo xtask gpu-check` takes this test to a machine that has one.

mod ranks;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use palimpsest_collective::nccl::NcclCollective;
use palimpsest_collective::nccl::library::Library;
use palimpsest_collective::{Collective, CollectiveError, MemoryStore, Place};
use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::kv::{Contract, HeadBudget};
use palimpsest_kernels::KvType;
use palimpsest_kernels::cuda::driver::Driver;
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_kernels::error::Error;
use palimpsest_tests::devices::{contracts, on_cpu, on_device, tiny_configurations};
use palimpsest_tests::{contract, tiny_indexer, tiny_model};

const TOKENS: usize = 20;

/// Float throughout, since the CPU's tokens are to come out.
fn gpu() -> Option<CudaBackend<Driver>> {
    match Driver::open(0) {
        Ok(driver) => Some(CudaBackend::new(driver, Precision::F32)),
        Err(error @ Error::Unavailable(_)) => {
            println!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// What differs from the CPU, which says what both read; `None`: there is no GPU.
fn differences(path: &Path, indexer: Option<&Indexer>, contract: &Contract) -> Option<Vec<String>> {
    let backend = gpu()?;
    let want = on_cpu(path, KvType::F32, indexer, contract, TOKENS);
    let forced = (TOKENS, Some(&want.answer[..]));
    let got = on_device(backend, path, (KvType::F32, indexer), contract, forced);
    let name = |what: String| format!("{}, {contract:?}: {what}", path.display());
    Some(got.differences(&want).into_iter().map(name).collect())
}

/// Tells all that differs, not the first alone.
fn assert_none(differences: &[String]) {
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn every_contract_answers_as_on_the_cpu() {
    let (model, indexer) = (tiny_model(1), tiny_indexer(5));
    let mut all = Vec::new();
    for contract in contracts() {
        let found = differences(model.path(), Some(&indexer), &contract);
        let Some(found) = found else { return };
        all.extend(found);
    }
    assert_none(&all);
}

/// Steps of decoding that are captured as graphs, and the same started kernel by kernel: the same
/// tokens, slots and evictions.
#[test]
fn graphs_answer_as_launches_do() {
    let (model, indexer) = (tiny_model(1), tiny_indexer(5));
    // Two boundaries at least, and several replays between them.
    let (contract, tokens) = (contract("retention", HeadBudget::Column, 12), 48);
    for precision in [Precision::F32, Precision::Bf16] {
        let run = |graphs| {
            let Ok(driver) = Driver::open(0) else {
                return None;
            };
            let backend = CudaBackend::new(driver, precision).with_graphs(graphs);
            Some(on_device(
                backend,
                model.path(),
                (KvType::F16, Some(&indexer)),
                &contract,
                (tokens, None),
            ))
        };
        let Some(plain) = run(false) else {
            return println!("SKIPPED: no GPU is here");
        };
        assert_eq!(run(true), Some(plain), "{precision:?}");
    }
}

#[test]
fn every_tiny_model_answers_as_on_the_cpu() {
    let contract = contract("keydiff", HeadBudget::Uniform, 12);
    let mut all = Vec::new();
    for path in tiny_configurations() {
        let Some(found) = differences(&path, None, &contract) else {
            return;
        };
        all.extend(found);
    }
    assert_none(&all);
}

/// The default model, with and without evictions.
#[test]
fn smollm2_answers_as_on_the_cpu() {
    let Some(path) = std::env::var_os("PALIMPSEST_TEST_MODEL").map(PathBuf::from) else {
        println!("SKIPPED: set PALIMPSEST_TEST_MODEL to the default model's GGUF file");
        return;
    };
    let mut all = Vec::new();
    for contract in [Contract::Full, contract("keydiff", HeadBudget::Uniform, 0)] {
        let Some(found) = differences(&path, None, &contract) else {
            return;
        };
        all.extend(found);
    }
    assert_none(&all);
}

/// NCCL with one rank: it loads, joins, sums, gathers, broadcasts, is aborted, and joins again.
#[test]
fn nccl_of_one_rank() {
    if gpu().is_none() {
        return;
    }
    let library = match Library::open(0) {
        Ok(library) => Arc::new(library),
        Err(error) => {
            println!("SKIPPED: {error:?}");
            return;
        }
    };
    let soon = || Instant::now() + Duration::from_secs(30);
    for epoch in ["epoch-1", "epoch-2"] {
        let store = MemoryStore::default();
        let end = NcclCollective::connect(library.clone(), Place::ALONE, &store, epoch, soon())
            .expect("a group of one");
        let mut values = vec![1.5f32, -2.0, 3.25];
        end.all_reduce_sum(&mut values, soon()).expect("a sum");
        assert_eq!(values, [1.5, -2.0, 3.25]);
        let mut counts = vec![7u64, u64::MAX];
        end.all_reduce_counts(&mut counts, soon()).expect("counts");
        assert_eq!(counts, [7, u64::MAX]);
        let mut all = [0; 5];
        end.all_gather(b"bytes", &mut all, soon())
            .expect("a gather");
        assert_eq!(&all, b"bytes");
        end.broadcast(&mut all, 0, soon()).expect("a broadcast");
        end.abort();
        let after = end
            .all_reduce_sum(&mut values, soon())
            .expect_err("it was aborted");
        assert!(matches!(after, CollectiveError::Aborted), "{after}");
    }
}
