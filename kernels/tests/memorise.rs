//! Latent memories on the emulated device hold the bits that the CPU's hold.
#![cfg(feature = "emulate")]

use palimpsest_kernels::cpu::{Activations, CpuBackend, CpuOptions};
use palimpsest_kernels::cuda::emulated::Emulated;
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_kernels::{Backend, HeadPages, KvType, LatentHead, LatentKind, LatentState, PageId, PageShape};
use proptest::prelude::*;

/// Values between -1 and 1 by splitmix64.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let at = |i: u64| {
        let z = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len as u64).map(at).collect()
}

/// What two boundaries leave in a memory, head by head.
fn after<B: Backend>(backend: &B, shape: PageShape, kind: LatentKind, lens: &[usize], seed: u64) -> Vec<LatentState> {
    let dim = shape.head_dim;
    let mut next = 0..;
    let tables: Vec<Vec<PageId>> =
        lens.iter().map(|len| next.by_ref().take(len.div_ceil(PageShape::SLOTS)).map(PageId).collect()).collect();
    let mut pages = backend.alloc_pages(shape, tables.iter().map(Vec::len).sum()).expect("pages");
    let heads: Vec<HeadPages<'_>> = tables.iter().zip(lens).map(|(pages, &len)| HeadPages { pages, len }).collect();
    let id = backend.alloc_latent(&mut pages, kind, lens.len()).expect("a memory");
    let count = 24;
    let mut features = backend.alloc(count * dim).expect("features");
    backend.upload(&values(count * dim, seed), &mut features, 0).expect("it fits");
    for round in 1..3 {
        for (head, slots) in heads.iter().enumerate() {
            let at = seed + 100 * round + 2 * head as u64;
            let (keys, others) = (values(slots.len * dim, at), values(slots.len * dim, at + 1));
            backend.write_slots(&mut pages, *slots, 0, &keys, &others).expect("they fit");
        }
        let stays =
            |head: usize, slot: u32| values(1, seed + round + 7 * head as u64 + 1000 * u64::from(slot))[0] > 0.3;
        let lists: Vec<Vec<u32>> =
            lens.iter().enumerate().map(|(head, &len)| (0..len as u32).filter(|&s| stays(head, s)).collect()).collect();
        let kept = backend.keep_lists(lens, &lists).expect("lists");
        backend.memorise(&mut pages, id, Some((&features, count)), &heads, &kept).expect("a boundary");
    }
    (0..lens.len()).map(|head| backend.read_latent(&pages, LatentHead { id, head }).expect("a head")).collect()
}

/// Zeros where a backend has nothing yet.
fn bits(state: &LatentState, len: usize) -> Vec<u32> {
    let mut bits: Vec<u32> = state.all().map(|x| (x + 0.0).to_bits()).collect();
    bits.resize(len.max(bits.len()), 0);
    bits
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn memories_have_the_bits_of_the_cpu(
        eighths in 1usize..20,
        lens in prop::collection::vec(0usize..150, 1..5),
        size in 1usize..70,
        seed in any::<u32>(),
        choice in 0usize..4,
    ) {
        let kind = match choice / 2 {
            0 => LatentKind::Centroids { most: size },
            _ => LatentKind::Associative { features: size.min(24) },
        };
        let dtype = if choice % 2 == 0 { KvType::F16 } else { KvType::F32 };
        let shape = PageShape { head_dim: 8 * eighths, dtype };
        let options = CpuOptions { threads: Some(1), activations: Activations::F32, simd: None };
        let want = after(&CpuBackend::new(options), shape, kind, &lens, u64::from(seed));
        let device = CudaBackend::new(Emulated::new(u64::from(seed % 5)), Precision::F32);
        let got = after(&device, shape, kind, &lens, u64::from(seed));
        for (got, want) in got.iter().zip(&want) {
            let len = got.all().count();
            prop_assert_eq!(bits(got, len), bits(want, len), "{:?} {:?}", kind, shape);
        }
    }
}
