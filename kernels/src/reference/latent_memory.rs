//! Latent memories by their definitions, in f64.

use super::attention::dot;
use super::cache::ReferencePages;
use super::device::ReferenceBackend;
use crate::backend::{
    AssociativeLayer, Features, HeadPages, LEAST_MASS, LatentMemory, ReadoutItem,
};
use crate::error::{Error, Result};
use crate::latent::{
    AssociativeState, CentroidState, FeatureSize, LatentHead, LatentId, LatentKind, LatentState,
    check_features,
};
use crate::select::KeptLists;

fn readout(
    layer: AssociativeLayer<'_, ReferenceBackend>,
    pages: &ReferencePages,
    q: &[f32],
    items: &[ReadoutItem],
    out: &mut [f32],
) -> Result<()> {
    let shape = layer.shape;
    let (dim, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let features = &layer.features[layer.layer * layer.count * dim..][..layer.count * dim];
    for item in items {
        let state = pages.latents.associative("readout", item.memory)?;
        let gate = f64::from(layer.gates[layer.layer * shape.kv_heads + item.kv_head]);
        let queries = item
            .rows
            .clone()
            .flat_map(|row| (0..group).map(move |g| (row, g)));
        for (row, g) in queries {
            let first = (row * shape.heads + item.kv_head * group + g) * dim;
            let phi: Vec<f64> = features
                .chunks_exact(dim)
                .map(|feature| dot(feature, &q[first..first + dim]))
                .collect();
            let mass: f64 = phi
                .iter()
                .zip(&state.norms)
                .map(|(phi, &norm)| phi * phi * f64::from(norm))
                .sum();
            let scale = gate / mass.max(f64::from(LEAST_MASS));
            for d in 0..dim {
                let rows = state.sums.chunks_exact(dim);
                let sum: f64 = phi
                    .iter()
                    .zip(rows)
                    .map(|(phi, row)| phi * f64::from(row[d]))
                    .sum();
                out[first + d] = (f64::from(out[first + d]) + scale * sum) as f32;
            }
        }
    }
    Ok(())
}

fn memorise(
    pages: &mut ReferencePages,
    id: LatentId,
    features: Option<Features<'_, [f32]>>,
    heads: &[HeadPages<'_>],
    kept: &KeptLists,
) -> Result<()> {
    let (op, dim) = ("memorise", pages.shape.head_dim);
    kept.check(op, heads)?;
    let latent = pages.latents.get(op, id)?;
    let (kind, want) = (latent.kind, latent.heads.len());
    if heads.len() != want {
        return Err(Error::Shape {
            op,
            what: "heads",
            got: heads.len(),
            want,
        });
    }
    let values = features.map_or(&[][..], |features| features.values);
    let layout = check_features(
        kind,
        want,
        features.map(|features| FeatureSize {
            len: features.values.len(),
            count: features.count,
        }),
        dim,
    )?;
    for (index, head) in heads.iter().enumerate() {
        let mut entries = Vec::new();
        for slot in (0..head.len as u32).filter(|slot| !kept.lists()[index].contains(slot)) {
            let entry = pages.entry(op, head.pages, slot as usize)?;
            entries.push((pages.keys[entry].clone(), pages.values[entry].clone()));
        }
        if entries.is_empty() {
            continue;
        }
        let state = &mut pages.latents.get_mut(op, id)?.heads[index];
        *state = match (&*state, kind) {
            (LatentState::Centroids(old), LatentKind::Centroids { most }) => {
                LatentState::Centroids(centroids(old, most, &entries))
            }
            (LatentState::Associative(old), LatentKind::Associative { features }) => {
                let layer =
                    &values[index / layout.layer_heads * layout.layer_values..][..features * dim];
                LatentState::Associative(associative(old, layer, &entries))
            }
            _ => unreachable!("checked when it was written"),
        };
    }
    Ok(())
}

/// A centroid of `count` entries.
struct Mean {
    key: Vec<f64>,
    value: Vec<f64>,
    count: f64,
}

/// Every centroid as the mean of the entries that it was given, one after the other.
fn centroids(old: &CentroidState, most: usize, entries: &[(Vec<f32>, Vec<f32>)]) -> CentroidState {
    let dim = entries[0].0.len();
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let (keys, values) = (old.keys(), old.values());
    let rows = keys
        .chunks_exact(dim)
        .zip(values.chunks_exact(dim))
        .zip(old.counts());
    let mean = |((key, value), &count): ((&[f32], &[f32]), &f32)| Mean {
        key: wide(key),
        value: wide(value),
        count: f64::from(count),
    };
    let mut all: Vec<Mean> = rows.map(mean).collect();
    for (key, value) in entries {
        let (key, value) = (wide(key), wide(value));
        if all.len() < most {
            all.push(Mean {
                key,
                value,
                count: 1.0,
            });
            continue;
        }
        let distance = |c: &Mean| {
            c.key
                .iter()
                .zip(&key)
                .map(|(c, k)| (c - k) * (c - k))
                .sum::<f64>()
        };
        let nearest = (0..all.len())
            .min_by(|&a, &b| distance(&all[a]).total_cmp(&distance(&all[b])))
            .expect("one");
        let Mean {
            key: keys,
            value: values,
            count,
        } = &mut all[nearest];
        for (m, x) in keys
            .iter_mut()
            .zip(&key)
            .chain(values.iter_mut().zip(&value))
        {
            *m = (*m * *count + x) / (*count + 1.0);
        }
        *count += 1.0;
    }
    let narrow = |values: &Vec<f64>| values.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    CentroidState::new(
        &all.iter()
            .flat_map(|c| narrow(&c.key))
            .collect::<Vec<f32>>(),
        &all.iter()
            .flat_map(|c| narrow(&c.value))
            .collect::<Vec<f32>>(),
        all.iter().map(|c| c.count as f32).collect(),
    )
}

fn associative(
    old: &AssociativeState,
    features: &[f32],
    entries: &[(Vec<f32>, Vec<f32>)],
) -> AssociativeState {
    let dim = entries[0].0.len();
    let (mut sums, mut norms) = (Vec::new(), Vec::new());
    for (f, feature) in features.chunks_exact(dim).enumerate() {
        let phi: Vec<f64> = entries.iter().map(|(key, _)| dot(feature, key)).collect();
        let before = |values: &[f32], i: usize| values.get(i).map_or(0.0, |&x| f64::from(x));
        for d in 0..dim {
            let sum: f64 = phi
                .iter()
                .zip(entries)
                .map(|(phi, (_, value))| phi * f64::from(value[d]))
                .sum();
            sums.push((before(&old.sums, f * dim + d) + sum) as f32);
        }
        norms.push((before(&old.norms, f) + phi.iter().map(|phi| phi * phi).sum::<f64>()) as f32);
    }
    AssociativeState { sums, norms }
}

impl LatentMemory for ReferenceBackend {
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
        features: Option<Features<'_, Vec<f32>>>,
        heads: &[HeadPages<'_>],
        kept: &KeptLists,
    ) -> Result<()> {
        memorise(
            pages,
            id,
            features.map(|features| Features {
                values: &features.values[..],
                count: features.count,
            }),
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

    fn readout(
        &self,
        layer: AssociativeLayer<'_, Self>,
        pages: &ReferencePages,
        q: &Vec<f32>,
        items: &[ReadoutItem],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        readout(layer, pages, q, items, out)
    }
}
