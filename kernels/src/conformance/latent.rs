//! Cases of latent memory and pairwise indexers.

use super::cache::SHAPES;
use super::{Check, Named, Suite, refused};
use crate::backend::{AssociativeLayer, Backend, IndexItem, IndexShape, ReadoutItem};
use crate::reference::ReferenceBackend;

/// `readout`: sequences with and without rows, memories of all sizes up to the layer's.
pub(super) fn readout<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    const FEATURES: usize = 19;
    for shape in SHAPES {
        let dim = shape.head_dim;
        let (features, gates) = (suite.random.values(FEATURES * dim), suite.random.values(shape.kv_heads));
        let layer = AssociativeLayer { features: &features, gates: &gates };
        let mut states = Vec::new();
        for (rows, used) in [(1..2, 1), (2..2, 8), (2..39, FEATURES), (39..44, 7)] {
            for kv_head in 0..shape.kv_heads {
                let sums = suite.random.values(used * dim);
                let norms: Vec<f32> = suite.random.values(used).iter().map(|n| n * n).collect();
                states.push((rows.clone(), kv_head, sums, norms));
            }
        }
        let items: Vec<ReadoutItem<'_>> = states
            .iter()
            .map(|(rows, kv_head, sums, norms)| ReadoutItem { rows: rows.clone(), kv_head: *kv_head, sums, norms })
            .collect();
        // The first and the last row belong to no item and have to stay as they are.
        let len = 45 * shape.heads * dim;
        let (q, mut want) = (suite.random.values(len), suite.random.values(len));
        let case = format!("readout {shape:?}");
        let (device_q, mut out) = (suite.upload(&q)?, suite.upload(&want)?);
        ReferenceBackend.readout(shape, layer, &q, &items, &mut want).named(&case)?;
        suite.backend.readout(shape, layer, &device_q, &items, &mut out).named(&case)?;
        let got = suite.download(&out, len)?;
        // Denominators may be small, so differences are those of a quotient.
        suite.compare(&case, &got, &want, 10.0 * suite.tolerance.attention)?;
        let short = ReadoutItem { sums: &features[1..], norms: &features[..FEATURES], ..items[0].clone() };
        refused("sums of another size", suite.backend.readout(shape, layer, &device_q, &[short], &mut out))?;
        let far = ReadoutItem { kv_head: shape.kv_heads, ..items[0].clone() };
        refused("KV head out of range", suite.backend.readout(shape, layer, &device_q, &[far], &mut out))?;
    }
    Ok(())
}

/// `index`: new queries over slots that some have seen before, across tiles and tasks.
pub(super) fn index<B: Backend>(suite: &mut Suite<'_, B>) -> Check {
    for (heads, dim) in [(1, 1), (4, 8), (3, 5), (2, 16)] {
        let shape = IndexShape { heads, dim };
        let mut inputs = Vec::new();
        for (rows, slots) in [(0, 0), (1, 1), (1, 9), (5, 5), (3, 260), (17, 300), (256, 300), (300, 300)] {
            let mut scores = suite.random.values(slots);
            scores[slots - rows..].fill(f32::NEG_INFINITY);
            let random = &mut suite.random;
            let inputs_of =
                [random.values(rows * heads * dim), random.values(rows * heads), random.values(slots * dim)];
            inputs.push((rows, inputs_of, scores));
        }
        let items = |scores: &mut [Vec<f32>], backend: &dyn Fn(&mut [IndexItem<'_>]) -> Check| {
            let items = inputs.iter().zip(scores).map(|((rows, [queries, weights, keys], _), scores)| IndexItem {
                rows: *rows,
                queries,
                weights,
                keys,
                scores,
            });
            backend(&mut items.collect::<Vec<_>>())
        };
        let mut want: Vec<Vec<f32>> = inputs.iter().map(|(_, _, scores)| scores.clone()).collect();
        let mut got = want.clone();
        let case = format!("index {shape:?}");
        items(&mut want, &|items| ReferenceBackend.index(shape, items).named(&case))?;
        items(&mut got, &|items| suite.backend.index(shape, items).named(&case))?;
        for (got, want) in got.iter().zip(&want) {
            suite.compare(&case, got, want, suite.tolerance.elementwise)?;
        }
    }
    let (shape, zeros) = (IndexShape { heads: 1, dim: 2 }, [0.0; 4]);
    let mut one = [0.0];
    let item = IndexItem { rows: 2, queries: &zeros, weights: &zeros[..2], keys: &zeros[..2], scores: &mut one };
    refused("more rows than slots", suite.backend.index(shape, &mut [item]))?;
    let item = IndexItem { rows: 1, queries: &zeros[..2], weights: &zeros[..1], keys: &zeros, scores: &mut one };
    refused("keys of another size", suite.backend.index(shape, &mut [item]))
}
