//! A pairwise indexer by its definition, in f64.

use super::attention::dot;
use super::device::ReferenceBackend;
use crate::backend::{IndexItem, IndexShape, Indexing};
use crate::error::Result;

fn index(shape: IndexShape, items: &mut [IndexItem<'_>]) {
    for item in items {
        let before = item.scores.len() - item.rows;
        for (slot, key) in item.keys.chunks_exact(shape.dim).enumerate() {
            for row in slot.saturating_sub(before)..item.rows {
                let queries = item.queries[row * shape.heads * shape.dim..].chunks_exact(shape.dim);
                let weights = &item.weights[row * shape.heads..][..shape.heads];
                let score: f64 = queries
                    .zip(weights)
                    .map(|(q, &w)| f64::from(w) * dot(q, key).max(0.0))
                    .sum();
                item.scores[slot] = item.scores[slot].max(score as f32);
            }
        }
    }
}

impl Indexing for ReferenceBackend {
    fn index(&self, shape: IndexShape, items: &mut [IndexItem<'_>]) -> Result<()> {
        index(shape, items);
        Ok(())
    }
}
