//! What one KV head lost by an eviction, and how near a readout comes to it.

use palimpsest_kernels::LEAST_MASS;

use crate::collect::LayerSample;
use crate::gradient::{add_outer, add_product, dot, rows_by_rows};

/// Heads of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// `K`.
    pub kv_heads: usize,
    /// `G`: query heads of a KV head.
    pub group: usize,
    /// `D`.
    pub dim: usize,
}

/// One document and KV head after an eviction. Rows have `D` values.
pub struct Case {
    pub(super) dim: usize,
    /// Queries after the boundary, all heads of the group `[rows, D]`.
    pub(super) queries: Vec<f32>,
    /// Full attention less bounded attention `[rows, D]`.
    pub(super) missing: Vec<f32>,
    /// Evicted keys `[m, D]`.
    pub(super) keys: Vec<f32>,
    /// Evicted values `[m, D]`.
    pub(super) values: Vec<f32>,
}

/// Everything that a readout goes through.
pub(super) struct Readout {
    /// `phi` of evicted keys `[m, F]`.
    pub(super) keys: Vec<f32>,
    /// `phi` of queries `[rows, F]`.
    pub(super) queries: Vec<f32>,
    /// `A`, `[F, D]`.
    pub(super) sums: Vec<f32>,
    /// `b`, `[F]`.
    pub(super) norms: Vec<f32>,
    /// Denominators `[rows]`, at least [`LEAST_MASS`].
    pub(super) mass: Vec<f32>,
    /// The readout without its gate `[rows, D]`.
    pub(super) out: Vec<f32>,
}

/// Where gradients are added up.
pub(super) struct Slopes<'a> {
    /// Of the features `[F, D]`.
    pub features: &'a mut [f32],
    /// Of the gate.
    pub gate: &'a mut f32,
}

impl Case {
    /// What KV head `kv_head` lost when the entries before `boundary` that are not in `kept` were
    /// evicted.
    pub fn new(
        sample: &LayerSample,
        heads: Heads,
        kv_head: usize,
        boundary: usize,
        kept: &[u32],
    ) -> Self {
        let Heads {
            kv_heads,
            group,
            dim,
        } = heads;
        let tokens = sample.queries.len() / (kv_heads * group * dim);
        let keys = &sample.keys[kv_head * tokens * dim..][..tokens * dim];
        let values = &sample.values[kv_head * tokens * dim..][..tokens * dim];
        let mut stays = vec![true; tokens];
        stays[..boundary].fill(false);
        kept.iter().for_each(|slot| stays[*slot as usize] = true);
        let (mut queries, mut missing) = (Vec::new(), Vec::new());
        for t in boundary..tokens {
            for g in 0..group {
                let query =
                    &sample.queries[(t * kv_heads * group + kv_head * group + g) * dim..][..dim];
                let full = attend(query, &keys[..(t + 1) * dim], values, |_| true);
                let bounded = attend(query, &keys[..(t + 1) * dim], values, |j| stays[j]);
                queries.extend_from_slice(query);
                missing.extend(full.iter().zip(&bounded).map(|(f, b)| f - b));
            }
        }
        let evicted = |from: &[f32]| -> Vec<f32> {
            let rows = from
                .chunks_exact(dim)
                .zip(&stays)
                .filter(|(_, stays)| !**stays);
            rows.flat_map(|(row, _)| row.iter().copied()).collect()
        };
        Self {
            dim,
            queries,
            missing,
            keys: evicted(keys),
            values: evicted(values),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() || self.queries.is_empty()
    }

    pub(super) fn readout(&self, features: &[f32]) -> Readout {
        let (dim, count) = (self.dim, features.len() / self.dim);
        let keys = rows_by_rows(&self.keys, features, dim);
        let queries = rows_by_rows(&self.queries, features, dim);
        let mut sums = vec![0.0; count * dim];
        add_outer(&mut sums, &keys, &self.values, (count, dim));
        let mut norms = vec![0.0; count];
        for key in keys.chunks_exact(count) {
            norms
                .iter_mut()
                .zip(key)
                .for_each(|(norm, phi)| *norm += phi * phi);
        }
        let mass_of = |phi: &[f32]| phi.iter().zip(&norms).map(|(p, n)| p * p * n).sum::<f32>();
        let mass: Vec<f32> = queries
            .chunks_exact(count)
            .map(|phi| mass_of(phi).max(LEAST_MASS))
            .collect();
        let mut out = vec![0.0; self.queries.len()];
        add_product(&mut out, &queries, &sums, (count, dim));
        for (row, mass) in out.chunks_exact_mut(dim).zip(&mass) {
            row.iter_mut().for_each(|o| *o /= mass);
        }
        Readout {
            keys,
            queries,
            sums,
            norms,
            mass,
            out,
        }
    }

    /// Mean squared error of the gated readout in units of `energy`; its gradient is added to
    /// `slopes`.
    pub(super) fn loss(&self, features: &[f32], gate: f32, energy: f32, slopes: Slopes<'_>) -> f64 {
        let (dim, count) = (self.dim, features.len() / self.dim);
        let Readout {
            keys,
            queries,
            sums,
            norms,
            mass,
            out,
        } = self.readout(features);
        let unit = 1.0 / (out.len() as f32 * energy);
        let off: Vec<f32> = out
            .iter()
            .zip(&self.missing)
            .map(|(o, m)| gate * o - m)
            .collect();
        *slopes.gate += 2.0 * unit * dot(&off, &out);
        // With respect to numerators `[rows, D]` and denominators `[rows]`.
        let mut numerator: Vec<f32> = off.iter().map(|o| 2.0 * unit * gate * o).collect();
        let mut denominator = Vec::with_capacity(mass.len());
        for ((slope, out), mass) in numerator
            .chunks_exact_mut(dim)
            .zip(out.chunks_exact(dim))
            .zip(&mass)
        {
            let is_free = *mass > LEAST_MASS;
            denominator.push(if is_free {
                -dot(slope, out) / mass
            } else {
                0.0
            });
            slope.iter_mut().for_each(|s| *s /= mass);
        }
        // Back to `phi` of queries, to `A` and to `b`.
        let mut of_queries = rows_by_rows(&numerator, &sums, dim);
        let mut of_norms = vec![0.0; count];
        let rows = of_queries
            .chunks_exact_mut(count)
            .zip(queries.chunks_exact(count))
            .zip(&denominator);
        for ((slope, phi), denominator) in rows {
            for f in 0..count {
                slope[f] += 2.0 * phi[f] * denominator * norms[f];
                of_norms[f] += denominator * phi[f] * phi[f];
            }
        }
        let mut of_sums = vec![0.0; count * dim];
        add_outer(&mut of_sums, &queries, &numerator, (count, dim));
        // Back to `phi` of keys, then to the features.
        let mut of_keys = rows_by_rows(&self.values, &of_sums, dim);
        for (slope, phi) in of_keys
            .chunks_exact_mut(count)
            .zip(keys.chunks_exact(count))
        {
            for f in 0..count {
                slope[f] += 2.0 * phi[f] * of_norms[f];
            }
        }
        add_outer(slopes.features, &of_queries, &self.queries, (count, dim));
        add_outer(slopes.features, &of_keys, &self.keys, (count, dim));
        off.iter().map(|o| f64::from(o * o)).sum::<f64>() * f64::from(unit)
    }
}

/// Softmax attention of one query over the entries that `visible` lets through.
fn attend(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    visible: impl Fn(usize) -> bool,
) -> Vec<f32> {
    let dim = query.len();
    let scale = 1.0 / (dim as f32).sqrt();
    let dot = |key: &[f32]| query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>() * scale;
    let logits: Vec<(usize, f32)> = keys
        .chunks_exact(dim)
        .enumerate()
        .filter(|(j, _)| visible(*j))
        .map(|(j, key)| (j, dot(key)))
        .collect();
    let max = logits
        .iter()
        .map(|(_, l)| *l)
        .fold(f32::NEG_INFINITY, f32::max);
    let (mut out, mut sum) = (vec![0.0; dim], 0.0);
    for (j, logit) in logits {
        let weight = (logit - max).exp();
        sum += weight;
        out.iter_mut()
            .zip(&values[j * dim..])
            .for_each(|(o, v)| *o += weight * v);
    }
    out.iter_mut().for_each(|o| *o /= sum);
    out
}
