//! The CUDA kernels on the emulated device against the reference, and under several orders of their
//! threads.
#![cfg(feature = "emulate")]

#[path = "../benches/gpu/measure.rs"]
mod measure;

use std::time::Instant;

use palimpsest_kernels::conformance::{self, Tolerance};
use palimpsest_kernels::cpu::{CpuBackend, CpuOptions};
use palimpsest_kernels::cuda::emulated::{Emulated, EmulatedMemory};
use palimpsest_kernels::cuda::recorded::{Call, Recorded};
use palimpsest_kernels::cuda::{Arg, CudaBackend, Device, Launch, Precision};
use palimpsest_kernels::error::Error;
use palimpsest_kernels::latent::CentroidState;
use palimpsest_kernels::parts::*;
use palimpsest_kernels::sample::{LogitEdit, SampleItem};
use palimpsest_kernels::{
    AttentionItem, Backend, HeadPages, KvType, LatentHead, LatentKind, LatentState, PageId,
    PageShape, QkvShape, ScoreItem, ScoreRule, SelectBudget, SelectHead,
};

/// bf16 keeps 8 bits of a weight and of an activation: the largest product of the suite is measured
/// to be off by 2.0 %. f16 keeps 11 of a query, key and
/// probability.
fn tolerance(precision: Precision, kv: KvType) -> Tolerance {
    let exact = Tolerance::default();
    // What is 8-bit becomes halves.
    let attention = if kv == KvType::F32 {
        exact.attention
    } else {
        4e-3
    };
    match precision {
        Precision::F32 => Tolerance { attention, ..exact },
        Precision::Bf16 => Tolerance {
            attention,
            embed: 1.0 / 256.0,
            matmul: 0.025,
            matmul_quantised: 0.025,
            ..exact
        },
    }
}

fn check(precision: Precision, kv: KvType, seed: u64) {
    let backend = CudaBackend::new(Emulated::new(seed), precision);
    let outcomes = conformance::run(&backend, kv, tolerance(precision, kv), 3)
        .unwrap_or_else(|e| panic!("{e}"));
    let operations = [
        "embed",
        "matmul",
        "split_qkv",
        "attention",
        "observe",
        "rotate_keys",
        "memorise",
        "readout",
    ];
    for operation in operations
        .into_iter()
        .chain(["index", "note", "score", "select", "sample"])
    {
        let of = outcomes
            .iter()
            .filter(|outcome| outcome.case.starts_with(operation));
        let worst = of.map(|outcome| outcome.difference).fold(0.0, f32::max);
        println!("{precision:?} {kv:?}: {operation:<12} {worst:.1e}");
    }
}

#[test]
fn halves_on_tensor_cores() {
    check(Precision::Bf16, KvType::F16, 0);
}

#[test]
fn eight_bits_on_tensor_cores() {
    check(Precision::Bf16, KvType::Q8, 3);
}

#[test]
fn singles_for_parity() {
    check(Precision::F32, KvType::F32, 7);
}

/// Slots of 8 bits have the CPU's integers and scales, whatever is written, and keep them when they
/// move.
#[test]
fn eight_bits_are_those_of_the_cpu() {
    fn written<B: Backend>(backend: &B) -> [Vec<u32>; 2] {
        let (dim, count) = (24, 70);
        let table: Vec<PageId> = [4, 0, 3].map(PageId).to_vec();
        let mut pages = backend
            .alloc_pages(
                PageShape {
                    head_dim: dim,
                    dtype: KvType::Q8,
                },
                5,
            )
            .expect("pages");
        let odd = [
            f32::NAN,
            f32::INFINITY,
            -70000.0,
            -0.0,
            1e-9,
            6e-8,
            127.0 * 65504.0,
            1.0,
        ];
        let value = |i: usize, salt: usize| match (i / dim) % 7 {
            0 => odd[(i + salt) % odd.len()],
            1 => 0.0,
            scale => {
                ((i * 7919 + salt * 104_729) % 20011) as f32 / 10000.0
                    * 10f32.powi(3 * scale as i32 - 14)
                    - 1e-4
            }
        };
        let values = |salt| {
            (0..count * dim)
                .map(|i| value(i, salt))
                .collect::<Vec<f32>>()
        };
        let head = |len| HeadPages::new(&table, len);
        backend
            .write_slots(&mut pages, head(count), 0, &values(1), &values(2))
            .expect("a write");
        let read = |pages: &B::Pages, len: usize| {
            let (mut keys, mut values) = (vec![0.0; len * dim], vec![0.0; len * dim]);
            let all: Vec<u32> = (0..len as u32).collect();
            backend
                .read_slots(pages, head(len), &all, &mut keys, &mut values)
                .expect("a read");
            keys.into_iter().chain(values).map(f32::to_bits).collect()
        };
        let before = read(&pages, count);
        let keep: Vec<u32> = (0..count as u32).filter(|slot| slot % 5 != 2).collect();
        let kept = backend
            .keep_lists(&[count], std::slice::from_ref(&keep))
            .expect("lists");
        backend
            .compact(&mut pages, &[head(count)], &kept)
            .expect("a compaction");
        [before, read(&pages, keep.len())]
    }
    let cpu = written(&CpuBackend::new(CpuOptions {
        threads: Some(1),
        ..Default::default()
    }));
    for seed in [0, 5] {
        assert!(
            written(&CudaBackend::new(Emulated::new(seed), Precision::Bf16)) == cpu,
            "seed {seed}"
        );
    }
}

/// Launches a kernel of `cu/emulated/faulty.h` that is wrong in one way.
fn faulty(kernel: &'static str, bytes: usize) -> Result<Vec<u8>, Error> {
    let device = Emulated::new(5);
    let memory = device.alloc("test", bytes)?;
    let args = vec![Arg::Pointer(Emulated::address(&memory))];
    let launch = Launch {
        kernel,
        grid: [1, 1, 1],
        threads: 64,
        shared: 64,
        args,
    };
    // SAFETY: these kernels write up to 64 bytes past their array, inside the guard behind it.
    unsafe { device.launch(&launch) }?;
    let mut values = vec![0; bytes];
    device.download(&memory, 0, &mut values)?;
    Ok(values)
}

/// What the emulated device is there to find, it finds.
#[test]
fn faults_are_found() {
    let fault = |kernel: &'static str, bytes| faulty(kernel, bytes).expect_err(kernel).to_string();
    let divergent = fault("faulty_barrier", 256);
    assert!(
        divergent.contains("__syncthreads") || divergent.contains("barrier"),
        "{divergent}"
    );
    let lanes = fault("faulty_shuffle", 256);
    assert!(
        lanes.contains("lanes of a warp") || lanes.contains("some of its threads"),
        "{lanes}"
    );
    let shared = fault("faulty_shared", 256);
    assert!(shared.contains("shared memory"), "{shared}");
    let global = fault("faulty_global", 256);
    assert!(global.contains("past the end"), "{global}");
    assert!(fault("no_such_kernel", 256).contains("no kernel"));
    assert!(faulty("faulty_nothing", 256).is_ok());
}

/// Numbers of both signs, not more than 1.
fn values(count: usize, salt: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 37 + salt * 101) % 61) as f32 / 30.0 - 1.0)
        .collect()
}

/// Bits of attention over 580 of 600 slots that a compaction left, under an order of threads: of
/// few rows, which splits share, and of many.
fn attended_after_compaction(seed: u64) -> Vec<u32> {
    let shape = QkvShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
    };
    let page_shape = PageShape {
        head_dim: 64,
        dtype: KvType::F16,
    };
    let backend = CudaBackend::new(Emulated::new(seed), Precision::Bf16);
    let table: Vec<PageId> = (0..20).map(PageId).collect();
    let head = |len| HeadPages::new(&table, len);
    let (keys, entries) = (values(600 * 64, 1), values(600 * 64, 2));
    let mut pages = backend.alloc_pages(page_shape, 20).expect("pages");
    backend
        .write_slots(&mut pages, head(600), 0, &keys, &entries)
        .expect("a write");
    let keep: Vec<u32> = (0..580).map(|i| i + i / 29).collect();
    let kept = backend.keep_lists(&[600], &[keep]).expect("lists");
    backend
        .compact(&mut pages, &[head(600)], &kept)
        .expect("a compaction");

    let mut bits = Vec::new();
    for rows in [2, 70] {
        let len = rows * 4 * 64;
        let mut q = backend.alloc(len).expect("q");
        let mut out = backend.alloc(len).expect("out");
        backend
            .upload(&values(len, 3), &mut q, 0)
            .expect("an upload");
        let item = |kv_head| AttentionItem {
            rows: 0..rows,
            kv_head,
            slots: head(580),
            first_visible: None,
            centroids: None,
            sinks: None,
        };
        backend
            .attention(shape, &pages, &q, &[item(0), item(1)], &mut out)
            .expect("attention");
        let mut attended = vec![0.0; len];
        backend
            .download(&out, 0, &mut attended)
            .expect("a download");
        bits.extend(attended.into_iter().map(f32::to_bits));
    }
    bits
}

/// Two orders of threads give the same bits: nothing depends on who comes first.
#[test]
fn the_order_of_threads_does_not_matter() {
    let natural = attended_after_compaction(0);
    assert!(natural.iter().any(|&bits| bits != 0));
    assert!(
        [1, 2, 3]
            .iter()
            .all(|&seed| attended_after_compaction(seed) == natural)
    );
}

impl measure::Timed for Emulated {
    fn seconds(&self, work: &mut dyn FnMut() -> Result<(), Error>) -> Result<f64, Error> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn kernel_seconds(
        &self,
        work: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<Vec<(String, f64)>, Error> {
        let before = self.launches();
        let seconds = self.seconds(work)?;
        assert!(self.launches() > before, "what is timed starts a kernel");
        Ok(vec![("all".into(), seconds)])
    }

    fn copy(&self, src: &EmulatedMemory, dst: &EmulatedMemory, bytes: usize) -> Result<(), Error> {
        let mut values = vec![0; bytes];
        self.download(src, 0, &mut values)?;
        self.upload(&values, dst, 0)
    }
}

/// The benchmark's calls are right: on a GPU its time is short.
#[test]
fn the_measurements_run() {
    let sizes = measure::Sizes {
        copy: 4096,
        product: 16,
        heads: QkvShape {
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
        },
        decode: &[
            measure::Attended {
                sequences: 1,
                rows: 1,
                slots: 40,
            },
            measure::Attended {
                sequences: 3,
                rows: 1,
                slots: 600,
            },
        ],
        prefill: &[measure::Attended {
            sequences: 2,
            rows: 40,
            slots: 70,
        }],
        boundaries: &[measure::BoundarySize {
            layers: 2,
            keep: 60,
            stride: 40,
            centroids: 5,
        }],
        runs: 1,
    };
    let mut figures = Vec::new();
    let backend = CudaBackend::new(Emulated::new(0), Precision::Bf16);
    measure::all(&backend, &sizes, &mut |figure| figures.push(figure)).expect("valid calls");
    let kinds: Vec<_> = figures
        .iter()
        .filter_map(|figure| figure["kind"].as_str())
        .collect();
    let wanted = [
        "copy",
        "bf16 product",
        "decode attention",
        "decode attention",
        "prefill attention",
        "boundary",
    ];
    assert_eq!(kinds, wanted);
    assert!(
        figures[1]["flops"].is_null(),
        "the emulated device has no library for products"
    );
    assert!(
        figures[2..]
            .iter()
            .all(|figure| figure["seconds"].as_f64() > Some(0.0)),
        "{figures:?}"
    );
}

/// Pages of small heads.
const HALVES: PageShape = PageShape {
    head_dim: 16,
    dtype: KvType::F16,
};

fn recording() -> CudaBackend<Recorded<Emulated>> {
    CudaBackend::new(Recorded::new(Emulated::new(2)), Precision::Bf16)
}

/// Kernels by name, and every time the host waits.
fn calls(backend: &CudaBackend<Recorded<Emulated>>) -> Vec<String> {
    let calls = backend.device().take();
    let told = calls
        .iter()
        .filter(|call| matches!(call, Call::Launch { .. } | Call::Wait { .. }));
    told.map(|call| call.name().to_owned()).collect()
}

/// A state of one centroid that `seed` tells from others.
fn one_centroid(seed: f32) -> LatentState {
    let part = |salt: f32| {
        (0..16u8)
            .map(|i| seed + salt * f32::from(i))
            .collect::<Vec<f32>>()
    };
    LatentState::Centroids(CentroidState::new(&part(0.5), &part(0.25), vec![seed]))
}

/// Memory for latent memories is allocated once; what fits by its size is given a place, whatever
/// came and went before, and what is moved for it keeps its bits. What does not fit is refused with
/// numbers.
#[test]
fn latent_memories_share_the_memory_that_was_reserved() {
    let backend = recording();
    let mut pages = backend.alloc_pages(HALVES, 4).expect("pages");
    // 33 values of a centroid, so 144 bytes of a head with one.
    let kind = LatentKind::Centroids { most: 1 };
    backend.reserve_latents(&mut pages, 7 * 144).expect("room");
    let sizes = [2, 1, 3, 1];
    let ids = sizes.map(|heads| {
        backend
            .alloc_latent(&mut pages, kind, heads)
            .expect("a memory")
    });
    for (i, (&id, heads)) in ids.iter().zip(sizes).enumerate() {
        for head in 0..heads {
            let state = one_centroid((10 * i + head + 1) as f32);
            backend
                .write_latent(&mut pages, LatentHead { id, head }, &state)
                .expect("a state");
        }
    }
    let full = backend
        .alloc_latent(&mut pages, kind, 1)
        .expect_err("there is no room");
    assert!(
        matches!(full, Error::OutOfMemory { bytes: 144, .. }),
        "{full}"
    );
    backend.free_latent(&mut pages, ids[1]);
    backend.free_latent(&mut pages, ids[3]);
    backend.device().take();
    // Two gaps of one head each: the memory between them moves.
    let late = backend
        .alloc_latent(&mut pages, kind, 2)
        .expect("room for two heads");
    for (id, first, heads) in [(ids[0], 1, 2), (ids[2], 21, 3)] {
        for head in 0..heads {
            let got = backend
                .read_latent(&pages, LatentHead { id, head })
                .expect("a state");
            assert_eq!(
                got,
                one_centroid((first + head) as f32),
                "head {head} of {id:?}"
            );
        }
    }
    let empty = backend
        .read_latent(&pages, LatentHead { id: late, head: 1 })
        .expect("a state");
    assert_eq!(
        empty,
        LatentState::empty(kind),
        "what was there before is gone"
    );
    let mut what = backend.device().take();
    what.retain(|call| call.name() == "alloc");
    assert!(
        matches!(
            what[..],
            [Call::Alloc {
                what: "latent memories that move",
                ..
            }]
        ),
        "{what:?}"
    );
}

/// From scores to compacted pages the host waits for nothing, and then once.
#[test]
fn a_boundary_is_decided_and_carried_out_without_the_host() {
    let backend = recording();
    let tables: Vec<Vec<PageId>> = (0..4)
        .map(|head| (0..3).map(|page| PageId(head * 3 + page)).collect())
        .collect();
    let mut pages = backend.alloc_pages(HALVES, 12).expect("pages");
    let heads: Vec<HeadPages<'_>> = tables
        .iter()
        .map(|pages| HeadPages::new(pages, 90))
        .collect();
    let rule = ScoreRule::Fading {
        rate: -0.5,
        scale: 256.0,
    };
    let items: Vec<_> = heads
        .iter()
        .map(|&slots| ScoreItem { slots, rule })
        .collect();
    let ranked = vec![
        SelectHead {
            len: 90,
            candidates: 4..80
        };
        heads.len()
    ];
    let mut scores = backend.alloc(4 * 90).expect("scores");
    let kind = LatentKind::Centroids { most: 3 };
    let id = backend
        .alloc_latent(&mut pages, kind, heads.len())
        .expect("a memory");
    calls(&backend);
    backend
        .score(&pages, 89, &items, &mut scores)
        .expect("scores");
    let budget = SelectBudget {
        pools: 2,
        take: 20,
        floor: 3,
    };
    let kept = backend.select(budget, &scores, &ranked).expect("a choice");
    backend
        .memorise(&mut pages, id, None, &heads, &kept)
        .expect("a merge");
    backend
        .compact(&mut pages, &heads, &kept)
        .expect("a compaction");
    let kernels = [
        "score_notes",
        "select_heads",
        "select_pools",
        "select_lists",
        "memorise_centroids_f16",
        "compact_f16",
    ];
    assert_eq!(calls(&backend), kernels);
    let lists = backend.kept(&kept).expect("lists");
    assert_eq!(lists.iter().map(Vec::len).sum::<usize>(), 4 * (14 + 20));
    assert_eq!(calls(&backend), ["wait"]);
}

/// Whatever is asked for of the rows of a step: one kernel, and one wait for four bytes of each
/// row.
#[test]
fn tokens_of_a_step_come_back_together() {
    let backend = recording();
    let mut logits = backend.alloc(3 * 50).expect("logits");
    let edits = [LogitEdit {
        flags: LogitEdit::BANNED,
        ..LogitEdit::none(0)
    }];
    let items: Vec<_> = [(0, 0.0), (2, 1.0)]
        .map(|(row, temperature)| SampleItem {
            row,
            temperature,
            top_k: 7,
            top_p: 0.9,
            min_p: 0.0,
            uniform: 1 << 52,
            edits: &edits,
            mask: None,
        })
        .to_vec();
    calls(&backend);
    let tokens = backend.sample(&mut logits, 50, &items).expect("tokens");
    assert_eq!(calls(&backend), ["sample", "wait"]);
    // All alike but for the one that is banned. Six of seven do not reach 0.9 of the mass, so the
    // middle of seven is drawn.
    assert_eq!(tokens, [Some(1), Some(4)]);
}
