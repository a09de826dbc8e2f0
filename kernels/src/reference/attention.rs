//! Attention by its definition: all logits of a row, softmax, weighted sum, in f64.

use super::cache::ReferencePages;
use super::device::ReferenceBackend;
use crate::backend::{Attention, AttentionItem, ObserveItem, QkvShape, Reduce};
use crate::error::Result;

/// Probabilities of one query row: those of the centroids, then those of all `slots.len` slots (0
/// where not visible).
struct Row {
    centroids: Vec<f64>,
    slots: Vec<f64>,
    /// Arena entry of each slot.
    entries: Vec<usize>,
}

/// Sum of products, in order.
pub(in crate::reference) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}

/// A query row of an item.
#[derive(Clone, Copy)]
struct Query {
    /// Token row, counted in the item.
    row: usize,
    /// Query head, counted in its group.
    head: usize,
}

/// Probabilities of a query row of the item.
fn probabilities(
    op: &'static str,
    shape: QkvShape,
    pages: &ReferencePages,
    q: &[f32],
    item: &AttentionItem<'_>,
    query: Query,
) -> Result<Row> {
    let dim = shape.head_dim;
    let scale = 1.0 / (dim as f64).sqrt();
    let q = &q[offset(shape, item, query)..][..dim];
    let mut centroids = Vec::new();
    if let Some(view) = pages.latents.centroids(op, item.centroids)? {
        for (key, &bias) in view.keys().chunks_exact(dim).zip(view.bias()) {
            centroids.push(scale * dot(q, key) + f64::from(bias));
        }
    }
    let first = item
        .first_visible
        .map_or(0, |first| first[query.row] as usize);
    let end = item.slots.len - item.rows.len() + query.row + 1;
    let (mut slots, mut entries) = (Vec::new(), Vec::new());
    for slot in 0..item.slots.len {
        let entry = pages.entry(op, item.slots.pages, slot)?;
        entries.push(entry);
        let visible = (first..end).contains(&slot);
        slots.push(if visible {
            scale * dot(q, &pages.keys[entry])
        } else {
            f64::NEG_INFINITY
        });
    }
    let sink = item.sinks.map(|sinks| f64::from(sinks[query.head]));
    let max = centroids
        .iter()
        .chain(&slots)
        .chain(&sink)
        .copied()
        .fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = centroids
        .iter()
        .chain(&slots)
        .chain(&sink)
        .map(|logit| (logit - max).exp())
        .sum();
    for logit in centroids.iter_mut().chain(&mut slots) {
        *logit = (*logit - max).exp() / sum;
    }
    Ok(Row {
        centroids,
        slots,
        entries,
    })
}

/// First element of a query row in `q` and `out`.
fn offset(shape: QkvShape, item: &AttentionItem<'_>, query: Query) -> usize {
    let group = shape.heads / shape.kv_heads;
    let head = item.kv_head * group + query.head;
    ((item.rows.start + query.row) * shape.heads + head) * shape.head_dim
}

fn attention(
    shape: QkvShape,
    pages: &ReferencePages,
    q: &[f32],
    items: &[AttentionItem<'_>],
    out: &mut [f32],
) -> Result<()> {
    let dim = shape.head_dim;
    for item in items {
        for row in 0..item.rows.len() {
            for head in 0..shape.heads / shape.kv_heads {
                let query = Query { row, head };
                let row = probabilities("attention", shape, pages, q, item, query)?;
                let mut sum = vec![0.0; dim];
                if let Some(view) = pages.latents.centroids("attention", item.centroids)? {
                    for (p, value) in row.centroids.iter().zip(view.values().chunks_exact(dim)) {
                        sum.iter_mut()
                            .zip(value)
                            .for_each(|(sum, &v)| *sum += p * f64::from(v));
                    }
                }
                for (p, &entry) in row.slots.iter().zip(&row.entries) {
                    sum.iter_mut()
                        .zip(&pages.values[entry])
                        .for_each(|(sum, &v)| *sum += p * f64::from(v));
                }
                let out = &mut out[offset(shape, item, query)..][..dim];
                out.iter_mut()
                    .zip(sum)
                    .for_each(|(out, sum)| *out = sum as f32);
            }
        }
    }
    Ok(())
}

fn observe(
    shape: QkvShape,
    pages: &ReferencePages,
    q: &[f32],
    items: &[ObserveItem<'_>],
    out: &mut [Vec<f32>],
) -> Result<()> {
    let group = shape.heads / shape.kv_heads;
    for (
        ObserveItem {
            attend,
            reduce,
            row_weights,
        },
        out,
    ) in items.iter().zip(out)
    {
        let mut weights: Vec<f64> = out.iter().map(|&weight| f64::from(weight)).collect();
        weights.resize(attend.slots.len, 0.0);
        for i in 0..attend.rows.len() {
            for g in 0..group {
                let query = Query { row: i, head: g };
                let row = probabilities("observe", shape, pages, q, attend, query)?;
                let scale = row_weights.map_or(1.0, |weights| f64::from(weights[i]));
                for (weight, p) in weights.iter_mut().zip(row.slots) {
                    match reduce {
                        Reduce::Sum => *weight += scale * p / group as f64,
                        Reduce::Max => *weight = weight.max(scale * p),
                    }
                }
            }
        }
        *out = weights.into_iter().map(|weight| weight as f32).collect();
    }
    Ok(())
}

impl Attention for ReferenceBackend {
    fn offers_sinks(&self) -> bool {
        true
    }

    fn attention(
        &self,
        shape: QkvShape,
        pages: &ReferencePages,
        q: &Vec<f32>,
        items: &[AttentionItem<'_>],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        attention(shape, pages, q, items, out)
    }

    fn observe(
        &self,
        shape: QkvShape,
        pages: &ReferencePages,
        q: &Vec<f32>,
        items: &[ObserveItem<'_>],
        out: &mut [Vec<f32>],
    ) -> Result<()> {
        observe(shape, pages, q, items, out)
    }
}
