//! The measurements, over any device that can time itself: `kernels/tests/emulated.rs` runs them at
//! small sizes, so that what they call is right before a GPU is there. What they print then is no
//! figure of anything.

use palimpsest_kernels::cuda::{CudaBackend, Device, Product};
use palimpsest_kernels::error::Result;
use palimpsest_kernels::parts::*;
use palimpsest_kernels::{
    AttentionItem, HeadPages, KvType, LatentKind, NoteItem, PageId, PageShape, QkvShape, ScoreItem,
    ScoreRule, SelectBudget, SelectHead,
};
use serde_json::{Value, json};

/// A device that says how long it takes.
pub trait Timed: Device {
    /// Seconds of everything that `work` starts.
    fn seconds(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;
    /// Seconds of each kernel that `work` starts.
    fn kernel_seconds(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<(String, f64)>>;
    /// Copies on the device.
    fn copy(&self, src: &Self::Memory, dst: &Self::Memory, bytes: usize) -> Result<()>;
}

/// An attention call.
#[derive(Clone, Copy)]
pub struct Attended {
    /// Sequences.
    pub sequences: usize,
    /// Rows of each.
    pub rows: usize,
    /// Slots of each head, those of the rows included.
    pub slots: usize,
}

/// A boundary of one sequence.
#[derive(Clone, Copy)]
pub struct BoundarySize {
    /// Layers.
    pub layers: usize,
    /// Slots that a head keeps.
    pub keep: usize,
    /// Slots that it has beyond them.
    pub stride: usize,
    /// Centroids of a head.
    pub centroids: usize,
}

/// How much is measured.
pub struct Sizes {
    /// Bytes that are copied.
    pub copy: usize,
    /// Rows, columns and outputs of a product.
    pub product: usize,
    /// Heads of the attention that is measured.
    pub heads: QkvShape,
    /// Calls of decoding.
    pub decode: &'static [Attended],
    /// Calls of reading a prompt.
    pub prefill: &'static [Attended],
    /// Boundaries of one sequence.
    pub boundaries: &'static [BoundarySize],
    /// Runs of each, of which the median counts.
    pub runs: usize,
}

impl Sizes {
    /// Llama-3.1-8B's heads, batches of 1 to 64 sequences, and 4,096 slots of a head.
    #[allow(dead_code, reason = "the test of the measurements has its own sizes")]
    pub const REAL: Self = Self {
        copy: 1 << 30,
        product: 8192,
        heads: QkvShape {
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
        },
        decode: &[
            Self::decode_call(1),
            Self::decode_call(16),
            Self::decode_call(64),
        ],
        prefill: &[Self::prefill_call(1), Self::prefill_call(4)],
        // The default contract: an eighth of the budget pays for centroids, two entries for one.
        boundaries: &[BoundarySize {
            layers: 32,
            keep: 4096 - 512,
            stride: 512,
            centroids: 254,
        }],
        runs: 21,
    };

    const fn decode_call(sequences: usize) -> Attended {
        Attended {
            sequences,
            rows: 1,
            slots: 4096,
        }
    }

    const fn prefill_call(sequences: usize) -> Attended {
        Attended {
            sequences,
            rows: 512,
            slots: 4608,
        }
    }
}

/// Measures everything and hands each figure to `report`.
pub fn all<D: Timed>(
    backend: &CudaBackend<D>,
    sizes: &Sizes,
    report: &mut dyn FnMut(Value),
) -> Result<()> {
    let copy_rate = copy_rate(backend.device(), sizes)?;
    report(json!({"kind": "copy", "bytes": sizes.copy, "bytes_per_second": copy_rate}));
    let product_rate = product_rate(backend, sizes)?;
    report(json!({
        "kind": "bf16 product", "size": sizes.product, "flops": product_rate,
        "by": product_rate.map(|_| "cuBLAS"),
    }));
    for &call in sizes.decode {
        let seconds = attention(backend, sizes, call)?;
        let shape = sizes.heads;
        let heads = call.sequences * shape.kv_heads;
        let bytes = heads * call.slots * 2 * shape.head_dim * KvType::F16.bytes();
        let rate = bytes as f64 / seconds;
        report(json!({
            "kind": "decode attention", "sequences": call.sequences, "slots": call.slots,
            "seconds": seconds, "bytes_per_second": rate, "of_copy": rate / copy_rate,
        }));
    }
    for &call in sizes.prefill {
        let seconds = attention(backend, sizes, call)?;
        let Attended {
            sequences,
            rows,
            slots,
        } = call;
        let pairs: usize = (0..rows).map(|row| slots - rows + row + 1).sum();
        let flops =
            (sequences * 4 * sizes.heads.head_dim * sizes.heads.heads * pairs) as f64 / seconds;
        report(json!({
            "kind": "prefill attention", "sequences": sequences, "rows": rows, "slots": slots,
            "seconds": seconds, "flops": flops, "of_product": product_rate.map(|rate| flops / rate),
        }));
    }
    for &size in sizes.boundaries {
        let kernels = boundary(backend, sizes, size)?;
        let seconds: f64 = kernels.iter().map(|kernel| kernel.1).sum();
        report(json!({
            "kind": "boundary", "layers": size.layers, "keep": size.keep, "stride": size.stride,
            "centroids": size.centroids, "seconds": seconds, "kernels": kernels,
        }));
    }
    Ok(())
}

/// Page tables of `count` heads with `per_head` pages each, which lie apart, as they do in an arena
/// that has been in use.
fn scattered(count: usize, per_head: usize) -> Vec<Vec<PageId>> {
    (0..count)
        .map(|head| {
            (0..per_head)
                .map(|page| PageId((page * count + head) as u32))
                .collect()
        })
        .collect()
}

fn noise(len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0)
        .collect()
}

/// Slots of all heads of a sequence, with entries and notes.
fn filled<D: Timed>(
    backend: &CudaBackend<D>,
    shape: QkvShape,
    heads: &[HeadPages<'_>],
) -> Result<<CudaBackend<D> as Cache>::Pages> {
    let (dim, kv_heads, len) = (shape.head_dim, shape.kv_heads, heads[0].len);
    let shape = PageShape {
        head_dim: dim,
        dtype: KvType::F16,
    };
    let mut pages = backend.alloc_pages(shape, heads.len() * heads[0].pages.len())?;
    let mut notes = backend.alloc(len * kv_heads)?;
    backend.upload(&noise(len * kv_heads), &mut notes, 0)?;
    for (index, head) in heads.iter().enumerate() {
        let entries = noise(len * dim + index);
        backend.write_slots(&mut pages, *head, 0, &entries[index..], &entries[index..])?;
        let item = NoteItem {
            rows: 0..len,
            kv_head: index % kv_heads,
            second: None,
            slots: HeadPages { len: 0, ..*head },
            position: 0,
        };
        backend.note(&mut pages, &notes, kv_heads, &[item])?;
    }
    Ok(pages)
}

/// Seconds of each kernel of a boundary of the default policy and memory, in the run whose sum is
/// the median.
fn boundary<D: Timed>(
    backend: &CudaBackend<D>,
    sizes: &Sizes,
    size: BoundarySize,
) -> Result<Vec<(String, f64)>> {
    let kv_heads = sizes.heads.kv_heads;
    let (count, len) = (size.layers * kv_heads, size.keep + size.stride);
    let tables = scattered(count, len.div_ceil(PageShape::SLOTS));
    let heads: Vec<HeadPages<'_>> = tables
        .iter()
        .map(|pages| HeadPages::new(pages, len))
        .collect();
    let mut pages = filled(backend, sizes.heads, &heads)?;
    let most = size.centroids;
    let id = backend.alloc_latent(&mut pages, LatentKind::Centroids { most }, count)?;
    let mut scores = backend.alloc(len * count)?;
    let rule = ScoreRule::Fading {
        rate: -0.1,
        scale: 256.0,
    };
    let items: Vec<_> = heads
        .iter()
        .map(|&slots| ScoreItem { slots, rule })
        .collect();
    let budget = SelectBudget {
        pools: kv_heads,
        take: size.keep,
        floor: size.keep * 15 / 100,
    };
    let candidates = 0..len;
    let ranked = vec![SelectHead { len, candidates }; count];
    let mut pass = || {
        backend.score(&pages, len as u32 - 1, &items, &mut scores)?;
        let kept = backend.select(budget, &scores, &ranked)?;
        backend.memorise(&mut pages, id, None, &heads, &kept)?;
        backend.compact(&mut pages, &heads, &kept)
    };
    // The first one fills the memory.
    pass()?;
    let mut runs = (0..sizes.runs)
        .map(|_| backend.device().kernel_seconds(&mut pass))
        .collect::<Result<Vec<_>>>()?;
    let total = |run: &Vec<(String, f64)>| run.iter().map(|kernel| kernel.1).sum::<f64>();
    runs.sort_by(|a, b| total(a).total_cmp(&total(b)));
    Ok(runs.swap_remove(runs.len() / 2))
}

/// Median of `runs` measurements, after one that warms up.
fn median(runs: usize, mut measure: impl FnMut() -> Result<f64>) -> Result<f64> {
    measure()?;
    let mut seconds = (0..runs).map(|_| measure()).collect::<Result<Vec<f64>>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[runs / 2])
}

/// Bytes read and written per second by copies on the device.
fn copy_rate<D: Timed>(device: &D, sizes: &Sizes) -> Result<f64> {
    let (src, dst) = (
        device.alloc("source", sizes.copy)?,
        device.alloc("destination", sizes.copy)?,
    );
    let seconds = median(sizes.runs, || {
        device.seconds(&mut || device.copy(&src, &dst, sizes.copy))
    })?;
    Ok(2.0 * sizes.copy as f64 / seconds)
}

/// Multiply-adds, counted as two, per second of a bf16 product by the vendor's library; `None`
/// where there is none.
fn product_rate<D: Timed>(backend: &CudaBackend<D>, sizes: &Sizes) -> Result<Option<f64>> {
    let (device, size) = (backend.device(), sizes.product);
    if !device.has_products() {
        return Ok(None);
    }
    // Numbers near 1, of two bytes each: a product of zeros draws less power and runs at a higher
    // clock.
    let noise: Vec<u8> = (0..size * size)
        .flat_map(|i| [(i * 37 % 251) as u8, 0x3f])
        .collect();
    let operand = |what| {
        let memory = device.alloc(what, 2 * size * size)?;
        device.upload(&noise, &memory, 0)?;
        Ok(memory)
    };
    let (x, w, out) = (
        operand("x")?,
        operand("w")?,
        device.alloc("out", 4 * size * size)?,
    );
    let [x, w, out] = [&x, &w, &out].map(D::address);
    let product = Product {
        x,
        w,
        out,
        rows: size,
        outputs: size,
        stride: size,
        accumulate: false,
    };
    // SAFETY: all three were allocated here with `size` rows of `size` elements of their types.
    let multiply = || unsafe { device.product(&product) };
    let seconds = median(sizes.runs, || device.seconds(&mut || multiply()))?;
    Ok(Some(2.0 * (size as f64).powi(3) / seconds))
}

/// Median seconds of the kernels of one attention call.
fn attention<D: Timed>(backend: &CudaBackend<D>, sizes: &Sizes, call: Attended) -> Result<f64> {
    let Attended {
        sequences,
        rows,
        slots,
    } = call;
    let QkvShape {
        heads,
        kv_heads,
        head_dim,
    } = sizes.heads;
    let (count, per_head) = (sequences * kv_heads, slots.div_ceil(PageShape::SLOTS));
    let mut pages = backend.alloc_pages(
        PageShape {
            head_dim,
            dtype: KvType::F16,
        },
        count * per_head,
    )?;
    let tables = scattered(count, per_head);
    let entries = noise(slots * head_dim);
    for pages_of in &tables {
        backend.write_slots(
            &mut pages,
            HeadPages::new(pages_of, slots),
            0,
            &entries,
            &entries,
        )?;
    }
    let items: Vec<_> = tables
        .iter()
        .enumerate()
        .map(|(index, pages)| AttentionItem {
            rows: index / kv_heads * rows..(index / kv_heads + 1) * rows,
            kv_head: index % kv_heads,
            slots: HeadPages::new(pages, slots),
            first_visible: None,
            centroids: None,
            sinks: None,
        })
        .collect();
    let len = sequences * rows * heads * head_dim;
    let (mut q, mut out) = (backend.alloc(len)?, backend.alloc(len)?);
    backend.upload(&noise(len), &mut q, 0)?;
    let mut attend = || backend.attention(sizes.heads, &pages, &q, &items, &mut out);
    median(sizes.runs, || {
        Ok(backend
            .device()
            .kernel_seconds(&mut attend)?
            .iter()
            .map(|kernel| kernel.1)
            .sum())
    })
}
