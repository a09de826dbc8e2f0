//! The CUDA kernels on the emulated device against the reference, and under several orders of their threads.
#![cfg(feature = "emulate")]

use palimpsest_kernels::conformance::{self, Tolerance};
use palimpsest_kernels::cuda::emulated::Emulated;
use palimpsest_kernels::cuda::{Arg, CudaBackend, Device, Launch, Precision};
use palimpsest_kernels::error::Error;
use palimpsest_kernels::{AttentionItem, Backend, CompactItem, HeadPages, KvType, PageId, PageShape, QkvShape};

/// bf16 keeps 8 bits of a weight and of an activation, f16 keeps 11 of a query, key and probability.
fn tolerance(precision: Precision, kv: KvType) -> Tolerance {
    let exact = Tolerance::default();
    let attention = if kv == KvType::F16 { 4e-3 } else { exact.attention };
    match precision {
        Precision::F32 => Tolerance { attention, ..exact },
        Precision::Bf16 => Tolerance { attention, embed: 1.0 / 256.0, matmul: 0.02, matmul_quantised: 0.02, ..exact },
    }
}

fn check(precision: Precision, kv: KvType, seed: u64) {
    let backend = CudaBackend::new(Emulated::new(seed), precision);
    let outcomes = conformance::run(&backend, kv, tolerance(precision, kv), 3).unwrap_or_else(|e| panic!("{e}"));
    for operation in ["embed", "matmul", "split_qkv", "attention", "observe", "rotate_keys", "readout", "index"] {
        let of = outcomes.iter().filter(|outcome| outcome.case.starts_with(operation));
        let worst = of.map(|outcome| outcome.difference).fold(0.0, f32::max);
        println!("{precision:?} {kv:?}: {operation:<12} {worst:.1e}");
    }
}

#[test]
fn halves_on_tensor_cores() {
    check(Precision::Bf16, KvType::F16, 0);
}

#[test]
fn singles_for_parity() {
    check(Precision::F32, KvType::F32, 7);
}

/// Launches a kernel of `cu/emulated/faulty.h` that is wrong in one way.
fn faulty(kernel: &str, bytes: usize) -> Result<Vec<u8>, Error> {
    let device = Emulated::new(5);
    let memory = device.alloc("test", bytes)?;
    let args = [Arg::Pointer(Emulated::address(&memory))];
    let launch = Launch { kernel, grid: [1, 1, 1], threads: 64, shared: 64, args: &args };
    // SAFETY: these kernels write up to 64 bytes past their array, inside the guard behind it.
    unsafe { device.launch(&launch) }?;
    let mut values = vec![0; bytes];
    device.download(&memory, 0, &mut values)?;
    Ok(values)
}

/// What the emulated device is there to find, it finds.
#[test]
fn faults_are_found() {
    let fault = |kernel, bytes| faulty(kernel, bytes).expect_err(kernel).to_string();
    let divergent = fault("faulty_barrier", 256);
    assert!(divergent.contains("__syncthreads") || divergent.contains("barrier"), "{divergent}");
    let lanes = fault("faulty_shuffle", 256);
    assert!(lanes.contains("lanes of a warp") || lanes.contains("some of its threads"), "{lanes}");
    let shared = fault("faulty_shared", 256);
    assert!(shared.contains("shared memory"), "{shared}");
    let global = fault("faulty_global", 256);
    assert!(global.contains("past the end"), "{global}");
    assert!(fault("no_such_kernel", 256).contains("no kernel"));
    assert!(faulty("faulty_nothing", 256).is_ok());
}

/// Two orders of threads give the same bits: nothing depends on who comes first.
#[test]
fn the_order_of_threads_does_not_matter() {
    let shape = QkvShape { heads: 4, kv_heads: 2, head_dim: 64 };
    let run = |seed| {
        let backend = CudaBackend::new(Emulated::new(seed), Precision::Bf16);
        let table: Vec<PageId> = (0..20).map(PageId).collect();
        let mut pages = backend.alloc_pages(PageShape { head_dim: 64, dtype: KvType::F16 }, 20).expect("pages");
        let value = |i: usize, salt: usize| ((i * 37 + salt * 101) % 61) as f32 / 30.0 - 1.0;
        let values = |count: usize, salt| (0..count).map(|i| value(i, salt)).collect::<Vec<f32>>();
        let slots = HeadPages { pages: &table, len: 600 };
        backend.write_slots(&mut pages, slots, 0, &values(600 * 64, 1), &values(600 * 64, 2)).expect("a write");
        let keep: Vec<u32> = (0..580).map(|i| i + i / 29).collect();
        backend.compact(&mut pages, &[CompactItem { slots, keep: &keep }]).expect("a compaction");
        let mut out = Vec::new();
        for rows in [2, 70] {
            let len = rows * 4 * 64;
            let (mut q, mut attended) = (backend.alloc(len).expect("q"), backend.alloc(len).expect("out"));
            backend.upload(&values(len, 3), &mut q, 0).expect("an upload");
            let head = HeadPages { pages: &table, len: 580 };
            let item =
                |kv_head| AttentionItem { rows: 0..rows, kv_head, slots: head, first_visible: None, centroids: None };
            backend.attention(shape, &pages, &q, &[item(0), item(1)], &mut attended).expect("attention");
            let mut values = vec![0.0; len];
            backend.download(&attended, 0, &mut values).expect("a download");
            out.extend(values.iter().map(|v| v.to_bits()));
        }
        out
    };
    let natural = run(0);
    assert!(natural.iter().any(|&bits| bits != 0));
    assert!([1, 2, 3].iter().all(|&seed| run(seed) == natural));
}
