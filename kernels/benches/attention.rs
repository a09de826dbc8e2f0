//! Attention of SmolLM2-135M's heads: `cargo bench -p palimpsest-kernels --bench attention`. Prints
//! a table.
//!
//! Prefill counts `4 * D` operations per (query head, row, visible slot). Decode reads keys and
//! values of 30 layers.

use std::time::Instant;

use palimpsest_kernels::cpu::{CpuBackend, CpuOptions};
use palimpsest_kernels::parts::*;
use palimpsest_kernels::{
    AttentionItem, HeadPages, KvType, ObserveItem, PageId, PageShape, QkvShape, Reduce, SplitItem,
    SplitQkv,
};

const SHAPE: QkvShape = QkvShape {
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
};
const LAYERS: usize = 30;

/// Median seconds of a call, over `runs` runs after one for warming up, and the fastest.
fn time(runs: usize, mut call: impl FnMut()) -> (f64, f64) {
    call();
    let mut seconds: Vec<f64> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    (seconds[runs / 2], seconds[0])
}

fn median(runs: usize, call: impl FnMut()) -> f64 {
    time(runs, call).0
}

fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut x = seed | 1;
    (0..len)
        .map(|_| {
            x = x.wrapping_mul(0x2c1b_3c6d).wrapping_add(0x297a_2d39);
            (x >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Pages and tables of `heads` heads with `slots` slots each, filled.
fn arena(
    backend: &CpuBackend,
    kv: KvType,
    heads: usize,
    slots: usize,
) -> (<CpuBackend as Cache>::Pages, Vec<Vec<PageId>>) {
    let per_head = slots.div_ceil(PageShape::SLOTS);
    let shape = PageShape {
        head_dim: SHAPE.head_dim,
        dtype: kv,
    };
    let mut pages = backend
        .alloc_pages(shape, heads * per_head)
        .expect("room for the pages");
    let tables: Vec<Vec<PageId>> = (0..heads)
        .map(|head| {
            (0..per_head)
                .map(|page| PageId((page * heads + head) as u32))
                .collect()
        })
        .collect();
    for (head, table) in tables.iter().enumerate() {
        let (keys, values) = (
            noise(slots * SHAPE.head_dim, head as u32),
            noise(slots * SHAPE.head_dim, 77 + head as u32),
        );
        let table = HeadPages::new(table, slots);
        backend
            .write_slots(&mut pages, table, 0, &keys, &values)
            .expect("slots fit");
    }
    (pages, tables)
}

fn items<'a>(tables: &'a [Vec<PageId>], rows: usize, slots: usize) -> Vec<AttentionItem<'a>> {
    tables
        .iter()
        .enumerate()
        .map(|(kv_head, pages)| AttentionItem {
            rows: 0..rows,
            kv_head,
            slots: HeadPages::new(pages, slots),
            first_visible: None,
            centroids: None,
            sinks: None,
        })
        .collect()
}

fn prefill(backend: &CpuBackend, threads: usize, kv: KvType, rows: usize, slots: usize) {
    let (pages, tables) = arena(backend, kv, SHAPE.kv_heads, slots);
    let items = items(&tables, rows, slots);
    let len = rows * SHAPE.heads * SHAPE.head_dim;
    let (q, mut out) = (noise(len, 5), vec![0.0; len]);
    let (seconds, best) = time(25, || {
        backend
            .attention(SHAPE, &pages, &q, &items, &mut out)
            .expect("valid call")
    });
    let pairs: usize = (0..rows).map(|row| slots - rows + row + 1).sum();
    let flops = (4 * SHAPE.head_dim * SHAPE.heads * pairs) as f64;
    println!(
        "{threads} threads  {kv:?}  attention {rows:>4} rows x {slots:>5} slots  {:>8.3} ms  \
         {:>6.1} GFLOP/s per thread (best {:.1})",
        seconds * 1e3,
        flops / seconds / threads as f64 / 1e9,
        flops / best / threads as f64 / 1e9
    );
    let items: Vec<_> = items
        .into_iter()
        .map(|attend| ObserveItem {
            attend,
            reduce: Reduce::Sum,
            row_weights: None,
        })
        .collect();
    let mut weights = vec![Vec::new(); items.len()];
    let seconds = median(7, || {
        backend
            .observe(SHAPE, &pages, &q, &items, &mut weights)
            .expect("valid call")
    });
    println!(
        "{threads} threads  {kv:?}  observe   {rows:>4} rows x {slots:>5} slots  {:>8.3} ms",
        seconds * 1e3
    );
}

fn decode(backend: &CpuBackend, threads: usize, kv: KvType, slots: usize) {
    let (pages, tables) = arena(backend, kv, SHAPE.kv_heads * LAYERS, slots);
    let layers: Vec<Vec<AttentionItem<'_>>> = tables
        .chunks(SHAPE.kv_heads)
        .map(|tables| items(tables, 1, slots))
        .collect();
    let len = SHAPE.heads * SHAPE.head_dim;
    let (q, mut out) = (noise(len, 5), vec![0.0; len]);
    // Layer by layer, so that a call is shorter than the system's time slice on a busy machine.
    let mut layer = 0;
    let (seconds, best) = time(40 * LAYERS, || {
        backend
            .attention(SHAPE, &pages, &q, &layers[layer % LAYERS], &mut out)
            .expect("valid call");
        layer += 1;
    });
    let (seconds, best) = (seconds * LAYERS as f64, best * LAYERS as f64);
    let bytes = (LAYERS * SHAPE.kv_heads * slots * 2 * SHAPE.head_dim * kv.bytes()) as f64;
    println!(
        "{threads} threads  {kv:?}  decode {slots:>5} slots x {LAYERS} layers  {:>8.3} ms per \
         token (best {:.3})  {:>6.1} GB/s",
        seconds * 1e3,
        best * 1e3,
        bytes / seconds / 1e9
    );
}

fn elementwise(backend: &CpuBackend, threads: usize, rows: usize) {
    let (mut pages, tables) = arena(backend, KvType::F16, SHAPE.kv_heads, 1280);
    let items: Vec<_> = tables
        .iter()
        .enumerate()
        .map(|(kv_head, pages)| SplitItem {
            rows: 0..rows,
            kv_head,
            slots: HeadPages::new(pages, 1280 - rows),
        })
        .collect();
    let half = SHAPE.head_dim / 2;
    let (qkv, cos, sin) = (
        noise(rows * SHAPE.width(), 1),
        noise(rows * half, 2),
        noise(rows * half, 3),
    );
    let mut q = vec![0.0; rows * SHAPE.heads * SHAPE.head_dim];
    let seconds = median(41, || {
        let args = SplitQkv {
            shape: SHAPE,
            qkv: &qkv,
            rows,
            cos: &cos,
            sin: &sin,
            qk_norm: None,
            items: &items,
        };
        backend
            .split_qkv(args, &mut pages, &mut q)
            .expect("valid call");
    });
    println!(
        "{threads} threads  F16  split_qkv {rows:>4} rows  {:>8.4} ms",
        seconds * 1e3
    );
    let (x, mut out) = (noise(rows * 3072, 4), vec![0.0; rows * 1536]);
    let seconds = median(41, || {
        backend
            .silu_mul(&x, rows, 1536, &mut out)
            .expect("valid call")
    });
    println!(
        "{threads} threads       silu_mul  {rows:>4} rows x 1536  {:>8.4} ms",
        seconds * 1e3
    );
    let (weight, mut out) = (noise(576, 5), vec![0.0; rows * 576]);
    let seconds = median(41, || {
        backend
            .rms_norm(&x, &weight, 1e-5, rows, &mut out)
            .expect("valid call")
    });
    println!(
        "{threads} threads       rms_norm  {rows:>4} rows x 576   {:>8.4} ms",
        seconds * 1e3
    );
}

fn main() {
    // `-- decode` runs one part only.
    let part = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    for threads in [1, 2] {
        let backend = CpuBackend::new(CpuOptions {
            threads: Some(threads),
            ..CpuOptions::default()
        });
        println!("{}", backend.name());
        for kv in [KvType::F16, KvType::F32] {
            if wanted("prefill") {
                prefill(&backend, threads, kv, 256, 1280);
            }
            if wanted("decode") {
                decode(&backend, threads, kv, 1280);
                decode(&backend, threads, kv, 128);
            }
        }
        if wanted("prefill") {
            prefill(&backend, threads, KvType::F16, 256, 256);
            prefill(&backend, threads, KvType::F16, 32, 1056);
        }
        if wanted("elementwise") {
            elementwise(&backend, threads, 256);
            elementwise(&backend, threads, 1);
        }
    }
}
