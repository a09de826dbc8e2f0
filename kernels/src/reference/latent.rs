//! Associative readout and pairwise indexer by their definitions, in f64.

use crate::backend::{AssociativeLayer, IndexItem, IndexShape, QkvShape, ReadoutItem};

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

pub(super) fn readout(
    shape: QkvShape,
    layer: AssociativeLayer<'_>,
    q: &[f32],
    items: &[ReadoutItem<'_>],
    out: &mut [f32],
) {
    let (dim, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    for item in items {
        let queries = item.rows.clone().flat_map(|row| (0..group).map(move |g| (row, g)));
        for (row, g) in queries {
            let first = (row * shape.heads + item.kv_head * group + g) * dim;
            let features = layer.features.chunks_exact(dim).take(item.norms.len());
            let phi: Vec<f64> = features.map(|feature| dot(feature, &q[first..first + dim])).collect();
            let mass: f64 = phi.iter().zip(item.norms).map(|(phi, &norm)| phi * phi * f64::from(norm)).sum();
            let scale = f64::from(layer.gates[item.kv_head]) / mass.max(f64::from(AssociativeLayer::LEAST_MASS));
            for d in 0..dim {
                let rows = item.sums.chunks_exact(dim);
                let sum: f64 = phi.iter().zip(rows).map(|(phi, row)| phi * f64::from(row[d])).sum();
                out[first + d] = (f64::from(out[first + d]) + scale * sum) as f32;
            }
        }
    }
}

pub(super) fn index(shape: IndexShape, items: &mut [IndexItem<'_>]) {
    for item in items {
        let before = item.scores.len() - item.rows;
        for (slot, key) in item.keys.chunks_exact(shape.dim).enumerate() {
            for row in slot.saturating_sub(before)..item.rows {
                let queries = item.queries[row * shape.heads * shape.dim..].chunks_exact(shape.dim);
                let weights = &item.weights[row * shape.heads..][..shape.heads];
                let score: f64 = queries.zip(weights).map(|(q, &w)| f64::from(w) * dot(q, key).max(0.0)).sum();
                item.scores[slot] = item.scores[slot].max(score as f32);
            }
        }
    }
}
