//! Same bits for any number of threads, either instruction set, any batch, and however a sequence
//! is cut into pieces.

use palimpsest_kernels::cpu::{CpuBackend, CpuOptions, SimdLevel};
use palimpsest_kernels::latent::CentroidState;
use palimpsest_kernels::parts::*;
use palimpsest_kernels::{
    AttentionItem, HeadPages, KvType, LatentHead, LatentId, LatentKind, LatentState, ObserveItem,
    PageId, PageShape, QkvShape, Reduce, SplitItem, SplitQkv,
};
use proptest::prelude::*;

fn backend(simd: SimdLevel, threads: usize) -> CpuBackend {
    CpuBackend::new(CpuOptions {
        threads: Some(threads),
        simd: Some(simd),
        ..CpuOptions::default()
    })
}

/// Values in about -2..2, from a multiplicative hash of index and seed.
fn values(len: usize, seed: u32) -> Vec<f32> {
    (0..len as u32)
        .map(|i| {
            let x = (i ^ seed.rotate_left(16))
                .wrapping_mul(0x9e37_79b9)
                .rotate_left(13)
                .wrapping_mul(0x85eb_ca6b);
            (x >> 8) as f32 / (1 << 22) as f32 - 2.0
        })
        .collect()
}

/// A sequence of fused rows with its rotary angles, the same for any cut.
struct Sequence {
    shape: QkvShape,
    rows: usize,
    qkv: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    window: Option<usize>,
    /// Each KV head's centroids.
    centroids: Vec<CentroidState>,
}

impl Sequence {
    fn new(shape: QkvShape, rows: usize, seed: u32) -> Self {
        let angles = values(rows * shape.head_dim / 2, seed + 1);
        Self {
            shape,
            rows,
            qkv: values(rows * shape.width(), seed),
            cos: angles.iter().map(|x| x.cos()).collect(),
            sin: angles.iter().map(|x| x.sin()).collect(),
            window: (seed % 2 == 1).then_some(100),
            centroids: (0..shape.kv_heads as u32)
                .map(|head| {
                    let count = 5 * (seed as usize % 3);
                    let len = count * shape.head_dim;
                    let counts = values(count, seed + 30 + head)
                        .iter()
                        .map(|x| 1.0 + x.abs())
                        .collect();
                    CentroidState::new(
                        &values(len, seed + 10 + head),
                        &values(len, seed + 20 + head),
                        counts,
                    )
                })
                .collect(),
        }
    }

    fn first_visible(&self, rows: std::ops::Range<usize>) -> Option<Vec<u32>> {
        self.window.map(|window| {
            rows.map(|row| (row + 1).saturating_sub(window) as u32)
                .collect()
        })
    }
}

/// The same item for its last row only.
fn last_row<'a>(item: &AttentionItem<'a>) -> AttentionItem<'a> {
    AttentionItem {
        rows: item.rows.end - 1..item.rows.end,
        first_visible: item.first_visible.map(|first| &first[first.len() - 1..]),
        ..item.clone()
    }
}

/// A latent memory that holds the sequence's centroids.
fn memory(
    backend: &CpuBackend,
    pages: &mut <CpuBackend as Cache>::Pages,
    sequence: &Sequence,
) -> LatentId {
    let kind = LatentKind::Centroids { most: 20 };
    let id = backend
        .alloc_latent(pages, kind, sequence.shape.kv_heads)
        .expect("fits in memory");
    for (head, state) in sequence.centroids.iter().enumerate() {
        let state = LatentState::Centroids(state.clone());
        backend
            .write_latent(pages, LatentHead { id, head }, &state)
            .expect("it fits");
    }
    id
}

/// Runs split and attention over `sequences`, in steps that take at most `piece` rows of each;
/// returns the outputs of each sequence, and the observed weights of its last row.
fn forward(
    backend: &CpuBackend,
    kv: KvType,
    sequences: &[Sequence],
    piece: usize,
) -> Vec<(Vec<f32>, Vec<Vec<f32>>)> {
    let shape = sequences[0].shape;
    let QkvShape {
        heads,
        kv_heads,
        head_dim,
    } = shape;
    let tables: Vec<Vec<Vec<PageId>>> = {
        let mut next = 0..;
        let mut table = |s: &Sequence| {
            next.by_ref()
                .take(s.rows.div_ceil(PageShape::SLOTS))
                .map(PageId)
                .collect()
        };
        sequences
            .iter()
            .map(|s| (0..kv_heads).map(|_| table(s)).collect())
            .collect()
    };
    let count = tables.iter().flatten().map(Vec::len).sum();
    let mut pages = backend
        .alloc_pages(
            PageShape {
                head_dim,
                dtype: kv,
            },
            count,
        )
        .expect("fits in memory");
    let memories: Vec<_> = sequences
        .iter()
        .map(|s| memory(backend, &mut pages, s))
        .collect();
    let mut results: Vec<(Vec<f32>, Vec<Vec<f32>>)> =
        sequences.iter().map(|_| Default::default()).collect();
    let longest = sequences
        .iter()
        .map(|s| s.rows)
        .max()
        .expect("at least one sequence");
    for first in (0..longest).step_by(piece) {
        let parts: Vec<_> = sequences
            .iter()
            .map(|s| first.min(s.rows)..(first + piece).min(s.rows))
            .collect();
        let (mut qkv, mut cos, mut sin) = (Vec::new(), Vec::new(), Vec::new());
        let (mut splits, mut starts) = (Vec::new(), Vec::new());
        let (mut start, half) = (0, head_dim / 2);
        for ((s, part), tables) in sequences.iter().zip(&parts).zip(&tables) {
            qkv.extend_from_slice(&s.qkv[part.start * shape.width()..part.end * shape.width()]);
            cos.extend_from_slice(&s.cos[part.start * half..part.end * half]);
            sin.extend_from_slice(&s.sin[part.start * half..part.end * half]);
            splits.extend(tables.iter().enumerate().map(|(kv_head, pages)| SplitItem {
                rows: start..start + part.len(),
                kv_head,
                slots: HeadPages {
                    pages,
                    len: part.start,
                },
            }));
            starts.push(start);
            start += part.len();
        }
        let mut q = backend
            .alloc(start * heads * head_dim)
            .expect("fits in memory");
        let args = SplitQkv {
            shape,
            qkv: &qkv,
            rows: start,
            cos: &cos,
            sin: &sin,
            qk_norm: None,
            items: &splits,
        };
        backend
            .split_qkv(args, &mut pages, &mut q)
            .expect("valid arguments");
        let firsts: Vec<_> = sequences
            .iter()
            .zip(&parts)
            .map(|(s, part)| s.first_visible(part.clone()))
            .collect();
        let mut items = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            items.extend((0..kv_heads).map(|kv_head| AttentionItem {
                rows: starts[i]..starts[i] + part.len(),
                kv_head,
                slots: HeadPages {
                    pages: &tables[i][kv_head],
                    len: part.end,
                },
                first_visible: firsts[i].as_deref(),
                centroids: Some(LatentHead {
                    id: memories[i],
                    head: kv_head,
                }),
            }));
        }
        let mut out = backend
            .alloc(start * heads * head_dim)
            .expect("fits in memory");
        backend
            .attention(shape, &pages, &q, &items, &mut out)
            .expect("valid arguments");
        for (i, part) in parts
            .iter()
            .enumerate()
            .filter(|(_, part)| !part.is_empty())
        {
            let width = heads * head_dim;
            results[i]
                .0
                .extend_from_slice(&out[starts[i] * width..(starts[i] + part.len()) * width]);
            if part.end == sequences[i].rows {
                let own = items[i * kv_heads..(i + 1) * kv_heads].iter();
                let own: Vec<_> = own
                    .map(|item| ObserveItem {
                        attend: last_row(item),
                        reduce: Reduce::Sum,
                        row_weights: None,
                    })
                    .collect();
                let mut observed = vec![Vec::new(); kv_heads];
                backend
                    .observe(shape, &pages, &q, &own, &mut observed)
                    .expect("valid arguments");
                results[i].1 = observed;
            }
        }
    }
    results
}

fn bits(results: &[(Vec<f32>, Vec<Vec<f32>>)]) -> Vec<Vec<u32>> {
    results
        .iter()
        .map(|(out, observed)| {
            out.iter()
                .chain(observed.iter().flatten())
                .map(|x| x.to_bits())
                .collect()
        })
        .collect()
}

const SMOL: QkvShape = QkvShape {
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
};

#[test]
fn pieces_of_any_size_give_the_same_bits() {
    let backend = backend(SimdLevel::detect(), 2);
    for kv in [KvType::Q8, KvType::F16, KvType::F32] {
        for seed in [0, 1, 2] {
            let sequence = [Sequence::new(SMOL, 601, seed)];
            let once = bits(&forward(&backend, kv, &sequence, 601));
            for piece in [1, 7, 64, 256] {
                assert!(
                    once == bits(&forward(&backend, kv, &sequence, piece)),
                    "seed {seed}, pieces of {piece}, {kv:?}"
                );
            }
        }
    }
}

#[test]
fn threads_and_instructions_do_not_matter() {
    let sequence = [Sequence::new(SMOL, 300, 1), Sequence::new(SMOL, 140, 2)];
    for (piece, kv) in [
        (1, KvType::F16),
        (130, KvType::F16),
        (1, KvType::Q8),
        (130, KvType::Q8),
    ] {
        let want = bits(&forward(
            &backend(SimdLevel::detect(), 1),
            kv,
            &sequence,
            piece,
        ));
        for threads in [2, 4] {
            let got = bits(&forward(
                &backend(SimdLevel::detect(), threads),
                kv,
                &sequence,
                piece,
            ));
            assert!(want == got, "{threads} threads, pieces of {piece}, {kv:?}");
        }
        let got = bits(&forward(
            &backend(SimdLevel::Portable, 2),
            kv,
            &sequence,
            piece,
        ));
        assert!(want == got, "portable, pieces of {piece}, {kv:?}");
    }
}

#[test]
fn a_sequence_alone_or_in_a_batch() {
    let backend = backend(SimdLevel::detect(), 2);
    let all: Vec<Sequence> = [(400, 5), (1, 6), (77, 7), (130, 8)]
        .into_iter()
        .map(|(rows, seed)| Sequence::new(SMOL, rows, seed))
        .collect();
    for piece in [1, 33, 256] {
        let batch = bits(&forward(&backend, KvType::F16, &all, piece));
        for (i, sequence) in all.iter().enumerate() {
            let alone = bits(&forward(
                &backend,
                KvType::F16,
                std::slice::from_ref(sequence),
                piece,
            ));
            assert!(alone[0] == batch[i], "sequence {i}, pieces of {piece}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_any_shape(
        group in 1usize..9,
        kv_heads in 1usize..3,
        eighths in 1usize..12,
        rows in 1usize..280,
        piece in 1usize..280,
        seed in 0u32..6,
        threads in 1usize..4,
        scaled in any::<bool>(),
    ) {
        let kv = if scaled { KvType::Q8 } else { KvType::F16 };
        let shape = QkvShape { heads: group * kv_heads, kv_heads, head_dim: 8 * eighths };
        let sequence = [Sequence::new(shape, rows, seed)];
        let once = bits(&forward(&backend(SimdLevel::detect(), 1), kv, &sequence, rows));
        let cut = bits(&forward(&backend(SimdLevel::detect(), threads), kv, &sequence, piece));
        prop_assert!(once == cut);
    }

    #[test]
    fn rows_of_elementwise_operations_are_independent(rows in 1usize..40, width in 1usize..700, seed in 0u32..100) {
        let (x, weight) = (values(rows * 2 * width, seed), values(width, seed + 1));
        let many = backend(SimdLevel::detect(), 2);
        let plain = backend(SimdLevel::Portable, 1);
        let run = |backend: &CpuBackend, x: &[f32], rows: usize| {
            let x = x.to_vec();
            let (mut norm, mut silu) = (vec![0.0; rows * width], vec![0.0; rows * width]);
            backend.rms_norm(&x, &weight, 1e-5, rows, &mut norm).unwrap();
            backend.silu_mul(&x, rows, width, &mut silu).unwrap();
            norm.iter().chain(&silu).map(|x| x.to_bits()).collect::<Vec<u32>>()
        };
        let all = run(&many, &x, rows);
        prop_assert!(all == run(&plain, &x, rows));
        for row in 0..rows {
            let alone = run(&plain, &x[row * 2 * width..(row + 1) * 2 * width], 1);
            prop_assert!(alone[width..] == all[(rows + row) * width..][..width], "silu row {}", row);
            let alone = run(&plain, &[&x[row * width..(row + 1) * width], &weight].concat(), 1);
            prop_assert!(alone[..width] == all[row * width..][..width], "norm row {}", row);
        }
    }
}

/// Memory of the process in use, in kB, where the system tells.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn an_untouched_arena_costs_no_memory() {
    let backend = backend(SimdLevel::detect(), 1);
    let before = resident();
    let shape = PageShape {
        head_dim: 64,
        dtype: KvType::F16,
    };
    let pages = backend
        .alloc_pages(shape, (2 << 30) / shape.bytes())
        .unwrap();
    if let (Some(before), Some(after)) = (before, resident()) {
        assert!(
            after.saturating_sub(before) < 512 << 10,
            "{before} kB became {after} kB"
        );
    }
    drop(pages);
    let error = backend.alloc_pages(shape, usize::MAX / 2);
    assert!(error.is_err(), "more than the address space");
}
