//! The slot arena as plain vectors.

use std::sync::LazyLock;

use super::device::ReferenceBackend;
use super::rows::norm;
use crate::backend::{Cache, HeadPages, KvType, PageId, PageShape, QkvShape, RotateItem, SplitQkv};
use crate::error::{Error, Result, at_least};
use crate::latent::{HostLatent, Latents};

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
}
