//! Same bits for any number of threads, either instruction set, any batch, and however a sequence
//! is cut into pieces.

use std::ops::Range;

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

    fn first_visible(&self, rows: Range<usize>) -> Option<Vec<u32>> {
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

/// What comes out of a sequence: attention outputs of all rows, and the observed weights of its
/// last row for each KV head.
#[derive(Clone, Default)]
struct Outcome {
    out: Vec<f32>,
    observed: Vec<Vec<f32>>,
}

/// Sequences on their way through split and attention.
struct Run<'a> {
    backend: &'a CpuBackend,
    sequences: &'a [Sequence],
    shape: QkvShape,
    /// Page tables of each sequence's KV heads.
    tables: Vec<Vec<Vec<PageId>>>,
    pages: <CpuBackend as Cache>::Pages,
    memories: Vec<LatentId>,
    outcomes: Vec<Outcome>,
}

/// Rows of all sequences side by side.
struct Step {
    /// Rows of each sequence, counted in the sequence.
    parts: Vec<Range<usize>>,
    /// First row of each sequence in the step.
    starts: Vec<usize>,
    /// Rows of the step.
    rows: usize,
}

impl<'a> Run<'a> {
    fn new(backend: &'a CpuBackend, kv: KvType, sequences: &'a [Sequence]) -> Self {
        let shape = sequences[0].shape;
        let tables = page_tables(sequences, shape.kv_heads);
        let page = PageShape {
            head_dim: shape.head_dim,
            dtype: kv,
        };
        let count = tables.iter().flatten().map(Vec::len).sum();
        let mut pages = backend.alloc_pages(page, count).expect("fits in memory");
        let memories = sequences
            .iter()
            .map(|s| memory(backend, &mut pages, s))
            .collect();
        Self {
            backend,
            sequences,
            shape,
            tables,
            pages,
            memories,
            outcomes: vec![Outcome::default(); sequences.len()],
        }
    }

    /// Values of a row of queries.
    fn width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    /// The next `piece` rows of each sequence, those that it has.
    fn step(&self, first: usize, piece: usize) -> Step {
        let part = |s: &Sequence| first.min(s.rows)..(first + piece).min(s.rows);
        let parts: Vec<Range<usize>> = self.sequences.iter().map(part).collect();
        let mut rows = 0;
        let starts = parts
            .iter()
            .map(|part| {
                rows += part.len();
                rows - part.len()
            })
            .collect();
        Step {
            parts,
            starts,
            rows,
        }
    }

    /// Stores keys and values of the step's rows, and returns its queries.
    fn split(&mut self, step: &Step) -> Vec<f32> {
        let (shape, half) = (self.shape, self.shape.head_dim / 2);
        let (mut qkv, mut cos, mut sin) = (Vec::new(), Vec::new(), Vec::new());
        let mut items = Vec::new();
        for (i, part) in step.parts.iter().enumerate() {
            let (s, start) = (&self.sequences[i], step.starts[i]);
            qkv.extend_from_slice(&s.qkv[part.start * shape.width()..part.end * shape.width()]);
            cos.extend_from_slice(&s.cos[part.start * half..part.end * half]);
            sin.extend_from_slice(&s.sin[part.start * half..part.end * half]);
            items.extend(
                self.tables[i]
                    .iter()
                    .enumerate()
                    .map(|(kv_head, pages)| SplitItem {
                        rows: start..start + part.len(),
                        kv_head,
                        slots: HeadPages::new(pages, part.start),
                    }),
            );
        }
        let args = SplitQkv {
            shape,
            qkv: &qkv,
            rows: step.rows,
            cos: &cos,
            sin: &sin,
            qk_norm: None,
            items: &items,
        };
        let len = step.rows * self.width();
        let mut q = self.backend.alloc(len).expect("fits in memory");
        self.backend
            .split_qkv(args, &mut self.pages, &mut q)
            .expect("valid arguments");
        q
    }

    /// Attends with the step's queries, and keeps what comes out.
    fn attend(&mut self, step: &Step, q: &Vec<f32>) {
        let firsts: Vec<_> = self
            .sequences
            .iter()
            .zip(&step.parts)
            .map(|(s, part)| s.first_visible(part.clone()))
            .collect();
        let mut items = Vec::new();
        for (i, part) in step.parts.iter().enumerate() {
            items.extend((0..self.shape.kv_heads).map(|kv_head| AttentionItem {
                rows: step.starts[i]..step.starts[i] + part.len(),
                kv_head,
                slots: HeadPages::new(&self.tables[i][kv_head], part.end),
                first_visible: firsts[i].as_deref(),
                centroids: Some(LatentHead {
                    id: self.memories[i],
                    head: kv_head,
                }),
                sinks: None,
            }));
        }
        let width = self.width();
        let mut out = self
            .backend
            .alloc(step.rows * width)
            .expect("fits in memory");
        self.backend
            .attention(self.shape, &self.pages, q, &items, &mut out)
            .expect("valid arguments");
        let kv_heads = self.shape.kv_heads;
        for (i, part) in step.parts.iter().enumerate() {
            if part.is_empty() {
                continue;
            }
            let rows = &out[step.starts[i] * width..(step.starts[i] + part.len()) * width];
            self.outcomes[i].out.extend_from_slice(rows);
            if part.end == self.sequences[i].rows {
                let own = &items[i * kv_heads..(i + 1) * kv_heads];
                self.outcomes[i].observed = self.observe(q, own);
            }
        }
    }

    /// Observed weights of the last row of one sequence's items.
    fn observe(&self, q: &Vec<f32>, items: &[AttentionItem<'_>]) -> Vec<Vec<f32>> {
        let last: Vec<_> = items
            .iter()
            .map(|item| ObserveItem {
                attend: last_row(item),
                reduce: Reduce::Sum,
                row_weights: None,
            })
            .collect();
        let mut observed = vec![Vec::new(); items.len()];
        self.backend
            .observe(self.shape, &self.pages, q, &last, &mut observed)
            .expect("valid arguments");
        observed
    }
}

/// A page table for each KV head of each sequence, one after the other.
fn page_tables(sequences: &[Sequence], kv_heads: usize) -> Vec<Vec<Vec<PageId>>> {
    let mut next = (0..).map(PageId);
    let mut table = |s: &Sequence| {
        let count = s.rows.div_ceil(PageShape::SLOTS);
        next.by_ref().take(count).collect()
    };
    sequences
        .iter()
        .map(|s| (0..kv_heads).map(|_| table(s)).collect())
        .collect()
}

/// Runs split and attention over `sequences`, in steps that take at most `piece` rows of each.
fn forward(backend: &CpuBackend, kv: KvType, sequences: &[Sequence], piece: usize) -> Vec<Outcome> {
    let mut run = Run::new(backend, kv, sequences);
    let longest = sequences.iter().map(|s| s.rows).max();
    for first in (0..longest.expect("at least one sequence")).step_by(piece) {
        let step = run.step(first, piece);
        let q = run.split(&step);
        run.attend(&step, &q);
    }
    run.outcomes
}

fn bits(outcomes: &[Outcome]) -> Vec<Vec<u32>> {
    outcomes
        .iter()
        .map(|outcome| {
            outcome
                .out
                .iter()
                .chain(outcome.observed.iter().flatten())
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

/// A sequence, and one way to cut it.
#[derive(Debug)]
struct Case {
    shape: QkvShape,
    kv: KvType,
    rows: usize,
    piece: usize,
    seed: u32,
    threads: usize,
}

/// Shapes, lengths, cuts and threads of all kinds.
fn cases() -> impl Strategy<Value = Case> {
    let shape =
        (1usize..9, 1usize..3, 1usize..12).prop_map(|(group, kv_heads, eighths)| QkvShape {
            heads: group * kv_heads,
            kv_heads,
            head_dim: 8 * eighths,
        });
    let kv = prop_oneof![Just(KvType::F16), Just(KvType::Q8)];
    (shape, kv, 1usize..280, 1usize..280, 0u32..6, 1usize..4).prop_map(
        |(shape, kv, rows, piece, seed, threads)| Case {
            shape,
            kv,
            rows,
            piece,
            seed,
            threads,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_any_shape(case in cases()) {
        let Case { shape, kv, rows, piece, seed, threads } = case;
        let sequence = [Sequence::new(shape, rows, seed)];
        let once = bits(&forward(&backend(SimdLevel::detect(), 1), kv, &sequence, rows));
        let cut = bits(&forward(&backend(SimdLevel::detect(), threads), kv, &sequence, piece));
        prop_assert!(once == cut);
    }

    #[test]
    fn rows_of_elementwise_operations_are_independent(
        rows in 1usize..40,
        width in 1usize..700,
        seed in 0u32..100,
    ) {
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
            let silu = &all[(rows + row) * width..][..width];
            prop_assert!(alone[width..] == *silu, "silu row {}", row);
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
