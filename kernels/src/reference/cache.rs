//! The slot arena as plain vectors.

use std::sync::LazyLock;

use super::device::ReferenceBackend;
use super::rows::norm;
use crate::backend::{Cache, HeadPages, KvType, PageId, PageShape, QkvShape, RotateItem, SplitQkv};
use crate::error::{Error, Result, at_least};
use crate::latent::{HostLatent, Latents};
use crate::stored::{StoredParts, check_bytes};

/// Keys and values of all slots as f32, rounded to the stored type: slot `s` of page `p` is entry
/// `p * 32 + s`.
pub struct ReferencePages {
    pub(super) shape: PageShape,
    pub(super) keys: Vec<Vec<f32>>,
    pub(super) values: Vec<Vec<f32>>,
    /// Value and position.
    pub(super) notes: Vec<(u32, u32)>,
    pub(super) latents: Latents<HostLatent>,
}

/// All halves from 0 on, in order.
static HALVES: LazyLock<Vec<f32>> = LazyLock::new(|| {
    (0..=half::f16::MAX.to_bits())
        .map(|bits| half::f16::from_bits(bits).to_f32())
        .collect()
});

impl ReferencePages {
    /// Entry of slot `slot` of a head.
    pub(super) fn entry(&self, op: &'static str, table: &[PageId], slot: usize) -> Result<usize> {
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
                let scale = Self::scale(x);
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

    /// Appends the stored elements of a key or a value; returns their scale, where they have one.
    fn encode(&self, x: &[f32], out: &mut Vec<u8>) -> Option<half::f16> {
        match self.shape.dtype {
            KvType::F32 => out.extend(x.iter().flat_map(|x| x.to_le_bytes())),
            KvType::F16 => {
                let half = |x: &f32| half::f16::from_f32(*x).to_le_bytes();
                out.extend(x.iter().flat_map(half));
            }
            KvType::Q8 => {
                let scale = Self::scale(x);
                let integer = |x: &f32| {
                    let steps = if scale == 0.0 { 0.0 } else { x / scale };
                    (steps.round_ties_even() as i8).to_le_bytes()
                };
                out.extend(x.iter().flat_map(integer));
                return Some(half::f16::from_f32(scale));
            }
        }
        None
    }

    /// The key or the value of slot `slot` among stored elements `[L, D]` and scales `[L]`.
    fn decode(&self, elements: &[u8], scales: &[u8], slot: usize) -> Vec<f32> {
        let half = |b: &[u8]| half::f16::from_le_bytes([b[0], b[1]]).to_f32();
        let row = self.shape.head_dim * self.shape.dtype.bytes();
        let elements = &elements[slot * row..][..row];
        match self.shape.dtype {
            KvType::F32 => elements
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            KvType::F16 => elements.chunks_exact(2).map(half).collect(),
            KvType::Q8 => {
                let scale = half(&scales[2 * slot..]);
                let value = |b: &u8| f32::from(i8::from_le_bytes([*b])) * scale;
                elements.iter().map(value).collect()
            }
        }
    }

    /// The scale of a key or a value of 8-bit integers.
    fn scale(x: &[f32]) -> f32 {
        let most = x.iter().map(|x| x.abs()).fold(0.0, f32::max) / 127.0;
        HALVES[HALVES.partition_point(|scale| *scale <= most) - 1]
    }

    fn write(&mut self, entry: usize, key: &[f32], value: &[f32]) {
        self.keys[entry] = self.round(key);
        self.values[entry] = self.round(value);
    }
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

impl Cache for ReferenceBackend {
    type Pages = ReferencePages;

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
                (Some(weight), Some(qk_norm)) => norm(x, weight, qk_norm.eps),
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
                let key = head(t, heads + item.kv_head, qk_norm.map(|norm| norm.key));
                let value = &qkv
                    [t * shape.width() + (heads + kv_heads + item.kv_head) * head_dim..]
                    [..head_dim];
                let entry = pages.entry(op, item.slots.pages, item.slots.len + i)?;
                pages.write(entry, &key, value);
            }
        }
        for t in 0..rows {
            for h in 0..heads {
                let rotated = head(t, h, qk_norm.map(|norm| norm.query));
                q[(t * heads + h) * head_dim..][..head_dim].copy_from_slice(&rotated);
            }
        }
        Ok(())
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

    fn save_slots(
        &self,
        pages: &ReferencePages,
        heads: &[HeadPages<'_>],
        out: &mut [u8],
    ) -> Result<()> {
        check_bytes("save_slots", pages.shape, heads, out.len())?;
        let mut all = Vec::new();
        for head in heads {
            let entry = |slot| pages.entry("save_slots", head.pages, slot);
            let entries: Vec<usize> = (0..head.len).map(entry).collect::<Result<_>>()?;
            let mut scales = Vec::new();
            for rows in [&pages.keys, &pages.values] {
                for &entry in &entries {
                    let scale = pages.encode(&rows[entry], &mut all);
                    scales.extend(scale.into_iter().flat_map(half::f16::to_le_bytes));
                }
            }
            all.append(&mut scales);
        }
        out.copy_from_slice(&all);
        Ok(())
    }

    fn load_slots(
        &self,
        pages: &mut ReferencePages,
        heads: &[HeadPages<'_>],
        from: &[u8],
    ) -> Result<()> {
        check_bytes("load_slots", pages.shape, heads, from.len())?;
        let mut first = 0;
        for head in heads {
            let parts = StoredParts::of(pages.shape, head.len);
            let own = &from[first..first + parts.bytes()];
            for slot in 0..head.len {
                let entry = pages.entry("load_slots", head.pages, slot)?;
                pages.keys[entry] = pages.decode(
                    &own[parts.keys.clone()],
                    &own[parts.key_scales.clone()],
                    slot,
                );
                pages.values[entry] = pages.decode(
                    &own[parts.values.clone()],
                    &own[parts.value_scales.clone()],
                    slot,
                );
            }
            first += parts.bytes();
        }
        Ok(())
    }
}
