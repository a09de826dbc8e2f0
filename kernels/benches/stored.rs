//! Slots to the host and back: `cargo bench -p palimpsest-kernels --bench stored`. Prints a table.
//!
//! What a sequence takes to be kept and to be forked from: 90 heads of 64 elements, 4,096 slots
//! each. GB/s count bytes of slots. Every figure is the best of 20 runs.

use std::time::Instant;

use palimpsest_kernels::cpu::{CpuBackend, CpuOptions};
use palimpsest_kernels::parts::*;
use palimpsest_kernels::{HeadPages, KvType, PageId, PageShape, StoredParts};

const HEADS: usize = 90;
const SLOTS: usize = 4096;
const RUNS: usize = 20;

fn main() {
    println!("| type | threads | MB | save ms | GB/s | load ms | GB/s |");
    println!("|---|---|---|---|---|---|---|");
    for dtype in [KvType::F16, KvType::Q8, KvType::F32] {
        for threads in [1, 2] {
            measure(dtype, threads);
        }
    }
}

fn measure(dtype: KvType, threads: usize) {
    let backend = CpuBackend::new(CpuOptions {
        threads: Some(threads),
        ..CpuOptions::default()
    });
    let shape = PageShape {
        head_dim: 64,
        dtype,
    };
    let pages = SLOTS / PageShape::SLOTS;
    let mut arena = backend.alloc_pages(shape, HEADS * pages).expect("memory");
    let all: Vec<PageId> = (0..(HEADS * pages) as u32).map(PageId).collect();
    let head = |pages| HeadPages::new(pages, SLOTS);
    let heads: Vec<HeadPages<'_>> = all.chunks(pages).map(head).collect();
    let mut bytes = vec![1u8; HEADS * StoredParts::of(shape, SLOTS).bytes()];
    let load = best(|| {
        backend
            .load_slots(&mut arena, &heads, &bytes)
            .expect("slots")
    });
    let save = best(|| {
        backend
            .save_slots(&arena, &heads, &mut bytes)
            .expect("slots")
    });
    let size = bytes.len() as f64;
    println!(
        "| {} | {threads} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} |",
        dtype.name(),
        size / 1e6,
        save * 1e3,
        size / save / 1e9,
        load * 1e3,
        size / load / 1e9
    );
}

/// Seconds of the shortest of some runs.
fn best(mut run: impl FnMut()) -> f64 {
    let mut seconds = f64::INFINITY;
    for _ in 0..RUNS {
        let since = Instant::now();
        run();
        seconds = seconds.min(since.elapsed().as_secs_f64());
    }
    seconds
}
