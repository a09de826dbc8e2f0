//! The oracle of every backend: straight loops over plain vectors, sums in f64, no SIMD, no
//! threads, no tiles.
//!
//! Slow on purpose. [`crate::conformance`] compares other backends with it.

mod attention;
mod dequant;
mod latent;
mod score;
mod select;
mod tokens;

use std::sync::LazyLock;

use crate::backend::{
    AssociativeLayer, AttentionItem, Backend, HeadPages, IndexItem, IndexShape, KvType,
    ObserveItem, PageId, PageShape, QkvShape, ReadoutItem, RotateItem, SelectBudget, SelectHead,
    SplitQkv, WeightView,
};
use crate::error::{Error, Result};
use crate::fixed;
use crate::latent::{HostLatent, LatentHead, LatentId, LatentKind, LatentState, Latents};
use crate::sample::{self, SampleItem};
use crate::score::{NoteItem, ScoreItem};
use crate::select::{KeptLists, check_select, scored};

/// The backend. It keeps no state.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReferenceBackend;

/// Weights as f32.
pub struct ReferenceMatrix {
    cols: usize,
    /// `[rows, cols]`.
    weights: Vec<f32>,
}

/// Keys and values of all slots as f32, rounded to the stored type: slot `s` of page `p` is entry
/// `p * 32 + s`.
pub struct ReferencePages {
    shape: PageShape,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    /// Value and position.
    notes: Vec<(u32, u32)>,
    latents: Latents<HostLatent>,
}

/// All halves from 0 on, in order.
static HALVES: LazyLock<Vec<f32>> = LazyLock::new(|| {
    (0..=half::f16::MAX.to_bits())
        .map(|bits| half::f16::from_bits(bits).to_f32())
        .collect()
});

impl ReferencePages {
    /// Entry of slot `slot` of a head.
    fn entry(&self, op: &'static str, table: &[PageId], slot: usize) -> Result<usize> {
        let (index, len) = (slot / PageShape::SLOTS, table.len());
        let page = table
            .get(index)
            .ok_or(Error::Index {
                op,
                what: "page of the table",
                index,
                len,
            })?
            .0 as usize;
        let len = self.keys.len() / PageShape::SLOTS;
        if page >= len {
            return Err(Error::Index {
                op,
                what: "page",
                index: page,
                len,
            });
        }
        Ok(page * PageShape::SLOTS + slot % PageShape::SLOTS)
    }

    /// A key or a value as the arena stores it: halves are rounded to nearest, ties to even, and
    /// saturate.
    fn round(&self, x: &[f32]) -> Vec<f32> {
        match self.shape.dtype {
            KvType::F32 => x.to_vec(),
            KvType::F16 => {
                let largest = half::f16::MAX.to_f32();
                x.iter()
                    .map(|x| half::f16::from_f32(x.clamp(-largest, largest)).to_f32())
                    .collect()
            }
            KvType::Q8 => {
                let most = x.iter().map(|x| x.abs()).fold(0.0, f32::max) / 127.0;
                let scale = HALVES[HALVES.partition_point(|scale| *scale <= most) - 1];
                let integer = |x: f32| {
                    if scale == 0.0 {
                        0.0
                    } else {
                        (x / scale).round_ties_even().clamp(-127.0, 127.0)
                    }
                };
                x.iter().map(|&x| integer(x) * scale).collect()
            }
        }
    }

    fn write(&mut self, entry: usize, key: &[f32], value: &[f32]) {
        self.keys[entry] = self.round(key);
        self.values[entry] = self.round(value);
    }
}

/// Checks that `what` has at least `want` elements.
fn at_least(op: &'static str, what: &'static str, got: usize, want: usize) -> Result<()> {
    if got < want {
        Err(Error::Shape {
            op,
            what,
            got,
            want,
        })
    } else {
        Ok(())
    }
}

/// `x / sqrt(mean(x²) + eps) * weight`.
fn norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mean = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / x.len() as f64;
    let inverse = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter()
        .zip(weight)
        .map(|(&x, &w)| (f64::from(x) * inverse * f64::from(w)) as f32)
        .collect()
}

/// Rotates pairs `(i, i + D/2)` of `x` by angles with the given cosines and sines.
fn rotate(x: &[f32], cos: &[f64], sin: &[f64]) -> Vec<f32> {
    let half = x.len() / 2;
    let mut out = vec![0.0; x.len()];
    for i in 0..half {
        let (a, b) = (f64::from(x[i]), f64::from(x[i + half]));
        out[i] = (a * cos[i] - b * sin[i]) as f32;
        out[i + half] = (b * cos[i] + a * sin[i]) as f32;
    }
    out
}

/// Products `[T, N]` in fixed point, unit by unit.
fn units(
    op: &'static str,
    matrix: &ReferenceMatrix,
    (x, rows): (&[f32], usize),
    ends: &[usize],
) -> Result<Vec<i64>> {
    let cols = matrix.cols;
    at_least(op, "x", x.len(), rows * cols)?;
    fixed::check_ends(op, ends, cols)?;
    let mut sums = Vec::new();
    for x in x[..rows * cols].chunks_exact(cols.max(1)) {
        for weights in matrix.weights.chunks_exact(cols.max(1)) {
            let (mut sum, mut start) = (0i64, 0);
            for &end in ends {
                let unit: f64 = x[start..end]
                    .iter()
                    .zip(&weights[start..end])
                    .map(|(x, w)| f64::from(*x) * f64::from(*w))
                    .sum();
                sum = sum.wrapping_add(fixed::from_f32(unit as f32));
                start = end;
            }
            sums.push(sum);
        }
    }
    Ok(sums)
}

impl Backend for ReferenceBackend {
    type Buffer = Vec<f32>;
    type Matrix = ReferenceMatrix;
    type Pages = ReferencePages;
    type Kept = KeptLists;

    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn alloc(&self, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn upload(&self, src: &[f32], dst: &mut Vec<f32>, offset: usize) -> Result<()> {
        at_least("upload", "dst", dst.len(), offset.saturating_add(src.len()))?;
        dst[offset..offset + src.len()].copy_from_slice(src);
        Ok(())
    }

    fn download(&self, src: &Vec<f32>, offset: usize, dst: &mut [f32]) -> Result<()> {
        at_least(
            "download",
            "src",
            src.len(),
            offset.saturating_add(dst.len()),
        )?;
        dst.copy_from_slice(&src[offset..offset + dst.len()]);
        Ok(())
    }

    fn load_matrix(&self, parts: &[WeightView<'_>]) -> Result<ReferenceMatrix> {
        let op = "load_matrix";
        let cols = parts.first().map_or(0, |part| part.cols);
        let mut weights = Vec::new();
        for part in parts {
            let block = part.dtype.block().0;
            if part.cols != cols {
                return Err(Error::Shape {
                    op,
                    what: "a row of a stacked part",
                    got: part.cols,
                    want: cols,
                });
            }
            if !cols.is_multiple_of(block) {
                return Err(Error::Multiple {
                    op,
                    what: "cols",
                    got: cols,
                    multiple: block,
                });
            }
            let len = part.rows.saturating_mul(cols);
            let want = part.dtype.bytes(len).unwrap_or(usize::MAX);
            if part.bytes.len() != want {
                return Err(Error::Shape {
                    op,
                    what: "bytes",
                    got: part.bytes.len(),
                    want,
                });
            }
            weights.extend((0..len).map(|i| dequant::weight(part.dtype, part.bytes, i)));
        }
        Ok(ReferenceMatrix { cols, weights })
    }

    fn matrix_bytes(&self, matrix: &ReferenceMatrix) -> usize {
        matrix.weights.len() * size_of::<f32>()
    }

    fn embed(&self, table: &ReferenceMatrix, ids: &[u32], out: &mut Vec<f32>) -> Result<()> {
        let op = "embed";
        let (cols, len) = (table.cols, table.weights.len() / table.cols.max(1));
        at_least(op, "out", out.len(), ids.len() * cols)?;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= len) {
            return Err(Error::Index {
                op,
                what: "token id",
                index: id as usize,
                len,
            });
        }
        for (t, &id) in ids.iter().enumerate() {
            out[t * cols..(t + 1) * cols]
                .copy_from_slice(&table.weights[id as usize * cols..][..cols]);
        }
        Ok(())
    }

    fn matmul(
        &self,
        matrix: &ReferenceMatrix,
        x: &Vec<f32>,
        rows: usize,
        bias: Option<&Vec<f32>>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let (op, cols) = ("matmul", matrix.cols);
        let outputs = matrix.weights.len() / cols.max(1);
        at_least(op, "x", x.len(), rows * cols)?;
        at_least(op, "out", out.len(), rows * outputs)?;
        at_least(op, "bias", bias.map_or(outputs, Vec::len), outputs)?;
        for t in 0..rows {
            for n in 0..outputs {
                let mut sum = bias.map_or(0.0, |bias| f64::from(bias[n]));
                for c in 0..cols {
                    sum += f64::from(x[t * cols + c]) * f64::from(matrix.weights[n * cols + c]);
                }
                out[t * outputs + n] = sum as f32;
            }
        }
        Ok(())
    }

    fn matmul_units(
        &self,
        matrix: &ReferenceMatrix,
        x: &Vec<f32>,
        rows: usize,
        ends: &[usize],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        at_least(
            "matmul_units",
            "out",
            out.len(),
            rows * (matrix.weights.len() / matrix.cols.max(1)),
        )?;
        let sums = units("matmul_units", matrix, (x, rows), ends)?;
        out.iter_mut()
            .zip(sums)
            .for_each(|(out, sum)| *out = fixed::to_f32(sum));
        Ok(())
    }

    fn matmul_share(
        &self,
        matrix: &ReferenceMatrix,
        x: &Vec<f32>,
        rows: usize,
        ends: &[usize],
        out: &mut [i64],
    ) -> Result<()> {
        at_least(
            "matmul_share",
            "out",
            out.len(),
            rows * (matrix.weights.len() / matrix.cols.max(1)),
        )?;
        let sums = units("matmul_share", matrix, (x, rows), ends)?;
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum);
        Ok(())
    }

    fn rms_norm(
        &self,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        eps: f32,
        rows: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let (op, width) = ("rms_norm", weight.len());
        at_least(op, "x", x.len(), rows * width)?;
        at_least(op, "out", out.len(), rows * width)?;
        for r in 0..rows {
            let row = r * width..(r + 1) * width;
            out[row.clone()].copy_from_slice(&norm(&x[row], weight, eps));
        }
        Ok(())
    }

    fn add(&self, x: &mut Vec<f32>, y: &Vec<f32>, len: usize) -> Result<()> {
        at_least("add", "x", x.len(), len)?;
        at_least("add", "y", y.len(), len)?;
        for i in 0..len {
            x[i] += y[i];
        }
        Ok(())
    }

    fn silu_mul(
        &self,
        gate_up: &Vec<f32>,
        rows: usize,
        width: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let op = "silu_mul";
        at_least(op, "gate_up", gate_up.len(), rows * 2 * width)?;
        at_least(op, "out", out.len(), rows * width)?;
        for t in 0..rows {
            for f in 0..width {
                let gate = f64::from(gate_up[t * 2 * width + f]);
                let up = f64::from(gate_up[t * 2 * width + width + f]);
                out[t * width + f] = (gate / (1.0 + (-gate).exp()) * up) as f32;
            }
        }
        Ok(())
    }

    fn gather_rows(
        &self,
        x: &Vec<f32>,
        width: usize,
        rows: &[usize],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let op = "gather_rows";
        let len = x.len() / width.max(1);
        at_least(op, "out", out.len(), rows.len() * width)?;
        if let Some(&index) = rows.iter().find(|&&row| row >= len) {
            return Err(Error::Index {
                op,
                what: "row",
                index,
                len,
            });
        }
        for (i, &row) in rows.iter().enumerate() {
            out[i * width..(i + 1) * width].copy_from_slice(&x[row * width..(row + 1) * width]);
        }
        Ok(())
    }

    fn sample(
        &self,
        logits: &mut Vec<f32>,
        vocabulary: usize,
        items: &[SampleItem<'_>],
    ) -> Result<Vec<Option<u32>>> {
        sample::check(items, logits.len() / vocabulary.max(1), vocabulary)?;
        Ok(items
            .iter()
            .map(|item| tokens::choose(&mut logits[item.row * vocabulary..][..vocabulary], item))
            .collect())
    }

    fn split_qkv(
        &self,
        args: SplitQkv<'_, Self>,
        pages: &mut ReferencePages,
        q: &mut Vec<f32>,
    ) -> Result<()> {
        let (
            op,
            SplitQkv {
                shape,
                qkv,
                rows,
                cos,
                sin,
                qk_norm,
                items,
            },
        ) = ("split_qkv", args);
        let QkvShape {
            heads,
            kv_heads,
            head_dim,
        } = shape;
        let half = head_dim / 2;
        at_least(op, "qkv", qkv.len(), rows * shape.width())?;
        at_least(op, "cos", cos.len(), rows * half)?;
        at_least(op, "sin", sin.len(), rows * half)?;
        at_least(op, "q", q.len(), rows * heads * head_dim)?;
        // Head `h` of the fused row `t`, normalised by `weight` and rotated.
        let head = |t: usize, h: usize, weight: Option<&Vec<f32>>| {
            let x = &qkv[t * shape.width() + h * head_dim..][..head_dim];
            let x = match (weight, qk_norm) {
                (Some(weight), Some((_, _, eps))) => norm(x, weight, eps),
                _ => x.to_vec(),
            };
            let angle = |table: &[f32]| {
                table[t * half..(t + 1) * half]
                    .iter()
                    .map(|&x| f64::from(x))
                    .collect::<Vec<_>>()
            };
            rotate(&x, &angle(cos), &angle(sin))
        };
        for item in items {
            for (i, t) in item.rows.clone().enumerate() {
                let key = head(
                    t,
                    heads + item.kv_head,
                    qk_norm.map(|(_, weight, _)| weight),
                );
                let value = &qkv
                    [t * shape.width() + (heads + kv_heads + item.kv_head) * head_dim..]
                    [..head_dim];
                let entry = pages.entry(op, item.slots.pages, item.slots.len + i)?;
                pages.write(entry, &key, value);
            }
        }
        for t in 0..rows {
            for h in 0..heads {
                let rotated = head(t, h, qk_norm.map(|(weight, _, _)| weight));
                q[(t * heads + h) * head_dim..][..head_dim].copy_from_slice(&rotated);
            }
        }
        Ok(())
    }

    fn alloc_pages(&self, shape: PageShape, count: usize) -> Result<ReferencePages> {
        let slots = vec![vec![0.0; shape.head_dim]; count * PageShape::SLOTS];
        let notes = vec![(0, 0); slots.len()];
        Ok(ReferencePages {
            shape,
            keys: slots.clone(),
            values: slots,
            notes,
            latents: Latents::default(),
        })
    }

    fn attention(
        &self,
        shape: QkvShape,
        pages: &ReferencePages,
        q: &Vec<f32>,
        items: &[AttentionItem<'_>],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        attention::attention(shape, pages, q, items, out)
    }

    fn observe(
        &self,
        shape: QkvShape,
        pages: &ReferencePages,
        q: &Vec<f32>,
        items: &[ObserveItem<'_>],
        out: &mut [Vec<f32>],
    ) -> Result<()> {
        attention::observe(shape, pages, q, items, out)
    }

    fn readout(
        &self,
        layer: AssociativeLayer<'_, Self>,
        pages: &ReferencePages,
        q: &Vec<f32>,
        items: &[ReadoutItem],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        latent::readout(layer, (pages, q), items, out)
    }

    fn index(&self, shape: IndexShape, items: &mut [IndexItem<'_>]) -> Result<()> {
        latent::index(shape, items);
        Ok(())
    }

    fn note(
        &self,
        pages: &mut ReferencePages,
        values: &Vec<f32>,
        width: usize,
        items: &[NoteItem<'_>],
    ) -> Result<()> {
        score::note(pages, values, width, items)
    }

    fn read_notes(&self, pages: &ReferencePages, head: HeadPages<'_>) -> Result<Vec<u32>> {
        let note = |slot| Ok(pages.notes[pages.entry("read_notes", head.pages, slot)?].0);
        (0..head.len).map(note).collect()
    }

    fn score(
        &self,
        pages: &ReferencePages,
        at: u32,
        items: &[ScoreItem<'_>],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        score::score(pages, at, items, out)
    }

    fn select(
        &self,
        budget: SelectBudget,
        scores: &Vec<f32>,
        heads: &[SelectHead],
    ) -> Result<KeptLists> {
        check_select(budget, heads)?;
        let lens: Vec<usize> = heads.iter().map(|head| head.len).collect();
        KeptLists::new(&lens, &select::select(budget, &scored(scores, heads)?))
    }

    fn keep_lists(&self, lens: &[usize], lists: &[Vec<u32>]) -> Result<KeptLists> {
        KeptLists::new(lens, lists)
    }

    fn kept(&self, kept: &KeptLists) -> Result<Vec<Vec<u32>>> {
        Ok(kept.lists().to_vec())
    }

    fn compact(
        &self,
        pages: &mut ReferencePages,
        heads: &[HeadPages<'_>],
        kept: &KeptLists,
    ) -> Result<()> {
        let op = "compact";
        kept.check(op, heads)?;
        for (head, list) in heads.iter().zip(kept.lists()) {
            for (to, &from) in list.iter().enumerate() {
                let from = pages.entry(op, head.pages, from as usize)?;
                let to = pages.entry(op, head.pages, to)?;
                pages.keys[to] = pages.keys[from].clone();
                pages.values[to] = pages.values[from].clone();
                pages.notes[to] = pages.notes[from];
            }
        }
        Ok(())
    }

    fn alloc_latent(
        &self,
        pages: &mut ReferencePages,
        kind: LatentKind,
        heads: usize,
    ) -> Result<LatentId> {
        pages.latents.create(kind, heads)
    }

    fn free_latent(&self, pages: &mut ReferencePages, id: LatentId) {
        pages.latents.remove(id);
    }

    fn memorise(
        &self,
        pages: &mut ReferencePages,
        id: LatentId,
        features: Option<(&Vec<f32>, usize)>,
        heads: &[HeadPages<'_>],
        kept: &KeptLists,
    ) -> Result<()> {
        latent::memorise(
            pages,
            id,
            features.map(|(values, count)| (&values[..], count)),
            heads,
            kept,
        )
    }

    fn read_latent(&self, pages: &ReferencePages, head: LatentHead) -> Result<LatentState> {
        pages.latents.head("read_latent", head).cloned()
    }

    fn write_latent(
        &self,
        pages: &mut ReferencePages,
        head: LatentHead,
        state: &LatentState,
    ) -> Result<()> {
        pages.latents.write(head, state, pages.shape.head_dim)
    }

    fn rotate_keys(
        &self,
        pages: &mut ReferencePages,
        items: &[RotateItem<'_>],
        inv_freq: &[f32],
    ) -> Result<()> {
        for item in items {
            for (slot, &delta) in item.delta.iter().enumerate() {
                let entry = pages.entry("rotate_keys", item.slots.pages, slot)?;
                let angles: Vec<f64> = inv_freq
                    .iter()
                    .map(|&f| f64::from(delta) * f64::from(f))
                    .collect();
                let cos: Vec<f64> = angles.iter().map(|angle| angle.cos()).collect();
                let sin: Vec<f64> = angles.iter().map(|angle| angle.sin()).collect();
                let key = rotate(&pages.keys[entry], &cos, &sin);
                pages.keys[entry] = pages.round(&key);
            }
        }
        Ok(())
    }

    fn read_slots(
        &self,
        pages: &ReferencePages,
        head: HeadPages<'_>,
        slots: &[u32],
        keys: &mut [f32],
        values: &mut [f32],
    ) -> Result<()> {
        let dim = pages.shape.head_dim;
        for (i, &slot) in slots.iter().enumerate() {
            let entry = pages.entry("read_slots", head.pages, slot as usize)?;
            keys[i * dim..(i + 1) * dim].copy_from_slice(&pages.keys[entry]);
            values[i * dim..(i + 1) * dim].copy_from_slice(&pages.values[entry]);
        }
        Ok(())
    }

    fn write_slots(
        &self,
        pages: &mut ReferencePages,
        head: HeadPages<'_>,
        first: usize,
        keys: &[f32],
        values: &[f32],
    ) -> Result<()> {
        let dim = pages.shape.head_dim;
        for (i, (key, value)) in keys
            .chunks_exact(dim)
            .zip(values.chunks_exact(dim))
            .enumerate()
        {
            let entry = pages.entry("write_slots", head.pages, first + i)?;
            pages.write(entry, key, value);
        }
        Ok(())
    }
}
