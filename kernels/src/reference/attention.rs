//! Attention by its definition: all logits of a row, softmax, weighted sum, in f64.

use super::ReferencePages;
use crate::backend::{AttentionItem, ObserveItem, PartItem, QkvShape, Reduce};
use crate::error::Result;

/// Probabilities of one query row: those of the centroids, then those of all `slots.len` slots (0 where not visible).
struct Row {
    /// Logarithm of the sum of exponentials.
    lse: f64,
    centroids: Vec<f64>,
    slots: Vec<f64>,
    /// Arena entry of each slot.
    entries: Vec<usize>,
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Probabilities of token row `i` of the item for query head `g` of its group.
fn probabilities(
    op: &'static str,
    shape: QkvShape,
    pages: &ReferencePages,
    q: &[f32],
    item: &PartItem<'_>,
    (i, g): (usize, usize),
) -> Result<Row> {
    let PartItem { attend: item, causal } = item;
    let dim = shape.head_dim;
    let scale = 1.0 / (dim as f64).sqrt();
    let q = &q[offset(shape, item, i, g)..][..dim];
    let mut centroids = Vec::new();
    if let Some(view) = item.centroids {
        for (key, &bias) in view.keys.chunks_exact(dim).zip(view.bias) {
            centroids.push(scale * dot(q, key) + f64::from(bias));
        }
    }
    let first = item.first_visible.map_or(0, |first| first[i] as usize);
    let end = if *causal { item.slots.len - item.rows.len() + i + 1 } else { item.slots.len };
    let (mut slots, mut entries) = (Vec::new(), Vec::new());
    for slot in 0..item.slots.len {
        let entry = pages.entry(op, item.slots.pages, slot)?;
        entries.push(entry);
        let visible = (first..end).contains(&slot);
        slots.push(if visible { scale * dot(q, &pages.keys[entry]) } else { f64::NEG_INFINITY });
    }
    let max = centroids.iter().chain(&slots).copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = centroids.iter().chain(&slots).map(|logit| (logit - max).exp()).sum();
    if max == f64::NEG_INFINITY {
        slots.fill(0.0);
        centroids.fill(0.0);
        return Ok(Row { lse: max, centroids, slots, entries });
    }
    for logit in centroids.iter_mut().chain(&mut slots) {
        *logit = (*logit - max).exp() / sum;
    }
    Ok(Row { lse: max + sum.ln(), centroids, slots, entries })
}

/// First element of a query row in `q` and `out`.
fn offset(shape: QkvShape, item: &AttentionItem<'_>, i: usize, g: usize) -> usize {
    let group = shape.heads / shape.kv_heads;
    ((item.rows.start + i) * shape.heads + item.kv_head * group + g) * shape.head_dim
}

pub(super) fn attention(
    shape: QkvShape,
    pages: &ReferencePages,
    q: &[f32],
    items: &[AttentionItem<'_>],
    out: &mut [f32],
) -> Result<()> {
    let items: Vec<_> = items.iter().map(|item| PartItem { attend: item.clone(), causal: true }).collect();
    let mut lse = vec![0.0; q.len() / shape.head_dim.max(1)];
    attention_part(shape, pages, q, &items, (out, &mut lse))
}

pub(super) fn attention_part(
    shape: QkvShape,
    pages: &ReferencePages,
    q: &[f32],
    items: &[PartItem<'_>],
    (out, lse): (&mut [f32], &mut [f32]),
) -> Result<()> {
    let dim = shape.head_dim;
    for part in items {
        let item = &part.attend;
        for i in 0..item.rows.len() {
            for g in 0..shape.heads / shape.kv_heads {
                let row = probabilities("attention", shape, pages, q, part, (i, g))?;
                let mut sum = vec![0.0; dim];
                if let Some(view) = item.centroids {
                    for (p, value) in row.centroids.iter().zip(view.values.chunks_exact(dim)) {
                        sum.iter_mut().zip(value).for_each(|(sum, &v)| *sum += p * f64::from(v));
                    }
                }
                for (p, &entry) in row.slots.iter().zip(&row.entries) {
                    sum.iter_mut().zip(&pages.values[entry]).for_each(|(sum, &v)| *sum += p * f64::from(v));
                }
                let first = offset(shape, item, i, g);
                out[first..][..dim].iter_mut().zip(sum).for_each(|(out, sum)| *out = sum as f32);
                lse[first / dim] = row.lse as f32;
            }
        }
    }
    Ok(())
}

pub(super) fn observe(
    shape: QkvShape,
    pages: &ReferencePages,
    q: &[f32],
    items: &[ObserveItem<'_>],
    out: &mut [Vec<f32>],
) -> Result<()> {
    let group = shape.heads / shape.kv_heads;
    for (ObserveItem { attend, reduce }, out) in items.iter().zip(out) {
        let whole = PartItem { attend: attend.clone(), causal: true };
        let mut weights: Vec<f64> = out.iter().map(|&weight| f64::from(weight)).collect();
        weights.resize(attend.slots.len, 0.0);
        for i in 0..attend.rows.len() {
            for g in 0..group {
                let row = probabilities("observe", shape, pages, q, &whole, (i, g))?;
                for (weight, p) in weights.iter_mut().zip(row.slots) {
                    match reduce {
                        Reduce::Sum => *weight += p / group as f64,
                        Reduce::Max => *weight = weight.max(p),
                    }
                }
            }
        }
        *out = weights.into_iter().map(|weight| weight as f32).collect();
    }
    Ok(())
}
