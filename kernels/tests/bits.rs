//! Latent memories and scores on the emulated device have the bits of the CPU's. On a GPU the
//! logarithm of a fading score may round otherwise; all else is made of operations that round
//! alike.
#![cfg(feature = "emulate")]

use palimpsest_kernels::cpu::{Activations, CpuBackend, CpuOptions};
use palimpsest_kernels::cuda::emulated::Emulated;
use palimpsest_kernels::cuda::{CudaBackend, Precision};
use palimpsest_kernels::parts::*;
use palimpsest_kernels::{
    Features, HeadPages, KvType, LatentHead, LatentKind, LatentState, NoteItem, PageId, PageShape,
    ScoreItem, ScoreRule,
};
use proptest::prelude::*;

/// Values between -1 and 1 by splitmix64.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let at = |i: u64| {
        let z =
            (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len as u64).map(at).collect()
}

/// Page tables for heads of these lengths, one page after the other.
fn tables(lens: &[usize]) -> Vec<Vec<PageId>> {
    let mut next = 0..;
    lens.iter()
        .map(|len| {
            next.by_ref()
                .take(len.div_ceil(PageShape::SLOTS))
                .map(PageId)
                .collect()
        })
        .collect()
}

/// What two boundaries leave in a memory, head by head.
fn after<B: Backend>(
    backend: &B,
    shape: PageShape,
    kind: LatentKind,
    lens: &[usize],
    seed: u64,
) -> Vec<LatentState> {
    let dim = shape.head_dim;
    let tables = tables(lens);
    let mut pages = backend
        .alloc_pages(shape, tables.iter().map(Vec::len).sum())
        .expect("pages");
    let heads: Vec<HeadPages<'_>> = tables
        .iter()
        .zip(lens)
        .map(|(pages, &len)| HeadPages::new(pages, len))
        .collect();
    let id = backend
        .alloc_latent(&mut pages, kind, lens.len())
        .expect("a memory");
    let count = 24;
    let mut features = backend.alloc(count * dim).expect("features");
    backend
        .upload(&values(count * dim, seed), &mut features, 0)
        .expect("it fits");
    for round in 1..3 {
        for (head, slots) in heads.iter().enumerate() {
            let at = seed + 100 * round + 2 * head as u64;
            let (keys, others) = (values(slots.len * dim, at), values(slots.len * dim, at + 1));
            backend
                .write_slots(&mut pages, *slots, 0, &keys, &others)
                .expect("they fit");
        }
        let stays = |head: usize, slot: u32| {
            values(1, seed + round + 7 * head as u64 + 1000 * u64::from(slot))[0] > 0.3
        };
        let lists: Vec<Vec<u32>> = lens
            .iter()
            .enumerate()
            .map(|(head, &len)| (0..len as u32).filter(|&s| stays(head, s)).collect())
            .collect();
        let kept = backend.keep_lists(lens, &lists).expect("lists");
        backend
            .memorise(
                &mut pages,
                id,
                Some(Features {
                    values: &features,
                    count,
                }),
                &heads,
                &kept,
            )
            .expect("a boundary");
    }
    (0..lens.len())
        .map(|head| {
            backend
                .read_latent(&pages, LatentHead { id, head })
                .expect("a head")
        })
        .collect()
}

/// Notes that heads are given.
#[derive(Clone, Copy)]
struct Notes {
    seed: u64,
    /// Of two numbers.
    of_two: bool,
}

/// Scores of heads by all rules in turn, after notes were kept and one in four slots went.
fn scores<B: Backend>(backend: &B, shape: PageShape, lens: &[usize], notes: Notes) -> Vec<u32> {
    let tables = tables(lens);
    let mut pages = backend
        .alloc_pages(shape, tables.iter().map(Vec::len).sum())
        .expect("pages");
    let mut heads: Vec<HeadPages<'_>> = tables
        .iter()
        .zip(lens)
        .map(|(pages, &len)| HeadPages::new(pages, len))
        .collect();
    annotate(backend, shape, &mut pages, &heads, notes);
    compact(backend, &mut pages, &mut heads);
    let (rate, scale) = (-0.8, 256.0);
    let by_note = if notes.of_two {
        ScoreRule::Either { rate, scale }
    } else {
        ScoreRule::Fading { rate, scale }
    };
    let mut all = Vec::new();
    for rule in [by_note, ScoreRule::KeyNorm, ScoreRule::KeyDirection] {
        let items: Vec<_> = heads
            .iter()
            .map(|&slots| ScoreItem { slots, rule })
            .collect();
        let mut found = vec![0.0; heads.iter().map(|head| head.len).sum()];
        let mut out = backend.alloc(found.len()).expect("scores");
        backend
            .score(&pages, 3000, &items, &mut out)
            .expect("scores");
        backend
            .download(&out, 0, &mut found)
            .expect("they are there");
        all.extend(found.iter().map(|x| (x + 0.0).to_bits()));
    }
    all
}

/// Writes keys, values and notes of all slots.
fn annotate<B: Backend>(
    backend: &B,
    shape: PageShape,
    pages: &mut B::Pages,
    heads: &[HeadPages<'_>],
    Notes { seed, of_two }: Notes,
) {
    let rows = heads.iter().map(|head| head.len).max().unwrap_or(0);
    let mut notes = backend.alloc(2 * rows).expect("notes");
    backend
        .upload(&values(2 * rows, seed), &mut notes, 0)
        .expect("they fit");
    for (head, slots) in heads.iter().enumerate() {
        let of = |salt| values(slots.len * shape.head_dim, seed + 10 * head as u64 + salt);
        backend
            .write_slots(pages, *slots, 0, &of(1), &of(2))
            .expect("they fit");
        let item = NoteItem {
            rows: 0..slots.len,
            kv_head: 0,
            second: of_two.then_some(1),
            slots: HeadPages { len: 0, ..*slots },
            position: 5,
        };
        backend.note(pages, &notes, 2, &[item]).expect("notes");
    }
}

/// One in four slots goes.
fn compact<B: Backend>(backend: &B, pages: &mut B::Pages, heads: &mut [HeadPages<'_>]) {
    let lens: Vec<usize> = heads.iter().map(|head| head.len).collect();
    let lists: Vec<Vec<u32>> = lens
        .iter()
        .map(|&len| (0..len as u32).filter(|slot| slot % 4 != 1).collect())
        .collect();
    let kept = backend.keep_lists(&lens, &lists).expect("lists");
    backend.compact(pages, heads, &kept).expect("a compaction");
    heads
        .iter_mut()
        .zip(&lists)
        .for_each(|(head, list)| head.len = list.len());
}

fn cpu() -> CpuBackend {
    CpuBackend::new(CpuOptions {
        threads: Some(1),
        activations: Activations::F32,
        simd: None,
    })
}

fn emulated(seed: u32) -> CudaBackend<Emulated> {
    CudaBackend::new(Emulated::new(u64::from(seed % 5)), Precision::F32)
}

/// Zeros where a backend has nothing yet.
fn bits(state: &LatentState, len: usize) -> Vec<u32> {
    let mut bits: Vec<u32> = state.all().iter().map(|x| (x + 0.0).to_bits()).collect();
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
        let want = after(&cpu(), shape, kind, &lens, u64::from(seed));
        let got = after(&emulated(seed), shape, kind, &lens, u64::from(seed));
        for (got, want) in got.iter().zip(&want) {
            let len = got.all().len();
            prop_assert_eq!(bits(got, len), bits(want, len), "{:?} {:?}", kind, shape);
        }
    }
    #[test]
    fn scores_have_the_bits_of_the_cpu(
        eighths in 1usize..20,
        lens in prop::collection::vec(0usize..600, 1..4),
        seed in any::<u32>(),
        f16 in any::<bool>(),
    ) {
        let dtype = if f16 { KvType::F16 } else { KvType::F32 };
        let shape = PageShape { head_dim: 8 * eighths, dtype };
        for of_two in [false, true] {
            let notes = Notes { seed: u64::from(seed), of_two };
            let want = scores(&cpu(), shape, &lens, notes);
            let got = scores(&emulated(seed), shape, &lens, notes);
            prop_assert_eq!(got, want, "{:?}", shape);
        }
    }
}
