//! Attention of a stride of queries to what is left of all tokens before them, in one softmax, and
//! its gradient.
//!
//! Nothing of it is kept for the backward pass, which computes the probabilities again: they are
//! what grows with the document. Of an entry that is all but gone nothing is computed, so that the
//! cost grows with what is left of a document.

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};
use palimpsest_kernels::cpu::{SimdLevel, exp_minus};
use rayon::prelude::*;

use super::model::{contiguous, values};

/// Logarithm of the share of an entry below which it counts as gone. What is lost by that is at
/// most `e^GONE` of the attention that the full cache pays, and as much of the slopes.
const GONE: f32 = -9.0;

/// `softmax(q kᵀ / sqrt(D) + left) v` for queries `[K, g * n, D]`, keys and values `[2, K, s, D]`
/// and logarithms of what is left of each entry `[K, s]`. Gives `[K, g * n, D]`.
pub fn attend(queries: &Tensor, entries: &Tensor, left: &Tensor, seen: Seen) -> Result<Tensor> {
    queries
        .contiguous()?
        .apply_op3(&entries.contiguous()?, &left.contiguous()?, Attend(seen))
}

/// Which entries a query sees.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// `n`: the last entries are the queries' own tokens, each of which sees those before it and
    /// itself.
    pub rows: usize,
    /// Entries at the beginning that are no tokens, and seen by all.
    pub centroids: usize,
    /// Tokens that are seen, where the model's window slides.
    pub window: Option<usize>,
}

struct Attend(Seen);

/// What one KV head works with.
struct Head {
    /// Indices of the `m` entries that are left, in order.
    kept: Vec<usize>,
    /// Logarithms of what is left of them.
    left: Vec<f32>,
    /// `[g * n, D]`, `[m, D]`, `[m, D]`.
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl Head {
    fn new(
        index: usize,
        queries: &Tensor,
        entries: &[f32],
        left: &[f32],
        seen: Seen,
    ) -> Result<Self> {
        let (kv_heads, _, dim) = queries.dims3()?;
        let slots = left.len() / kv_heads;
        let left = &left[index * slots..][..slots];
        let kept: Vec<usize> = (0..slots)
            .filter(|&slot| left[slot] > GONE || slot + seen.rows >= slots)
            .collect();
        let rows = |part: usize| {
            let all = &entries[(part * kv_heads + index) * slots * dim..][..slots * dim];
            let rows: Vec<f32> = kept
                .iter()
                .flat_map(|&slot| &all[slot * dim..][..dim])
                .copied()
                .collect();
            Tensor::from_vec(rows, (kept.len(), dim), &Device::Cpu)
        };
        let (keys, values) = (rows(0)?, rows(1)?);
        let left = kept.iter().map(|&slot| left[slot]).collect();
        Ok(Self {
            kept,
            left,
            queries: queries.get(index)?,
            keys,
            values,
        })
    }

    /// Probabilities `[g * n, m]`.
    fn probabilities(&self, seen: Seen) -> Result<Vec<f32>> {
        let logits = (&self.queries * scale(&self.queries)?)?.matmul(&self.keys.t()?)?;
        let (level, count) = (SimdLevel::detect(), self.kept.len());
        let slots = self.kept.last().map_or(0, |last| last + 1);
        let tokens_before = slots - seen.rows - seen.centroids;
        let mut weights = values(&logits)?;
        weights
            .par_chunks_mut(count)
            .enumerate()
            .for_each(|(index, row)| {
                let own = index % seen.rows;
                let (row, hidden) = row.split_at_mut(count - seen.rows + own + 1);
                hidden.fill(0.0);
                row.iter_mut()
                    .zip(&self.left)
                    .for_each(|(logit, left)| *logit += left);
                let passed = seen
                    .window
                    .map_or(0, |window| (tokens_before + own + 1).saturating_sub(window));
                let from = self.kept.partition_point(|&slot| slot < seen.centroids);
                let until = self
                    .kept
                    .partition_point(|&slot| slot < seen.centroids + passed);
                row[from..until].fill(f32::NEG_INFINITY);
                let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let share = 1.0 / exp_minus(level, row, most);
                row.iter_mut().for_each(|weight| *weight *= share);
            });
        Ok(weights)
    }

    /// `[g * n, m]`.
    fn matrix(&self, values: Vec<f32>) -> Result<Tensor> {
        Tensor::from_vec(
            values,
            (self.queries.dim(0)?, self.kept.len()),
            &Device::Cpu,
        )
    }
}

fn scale(queries: &Tensor) -> Result<f64> {
    Ok(1.0 / (queries.dim(candle_core::D::Minus1)? as f64).sqrt())
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        of_queries: &Layout,
        entries: &CpuStorage,
        of_entries: &Layout,
        left: &CpuStorage,
        of_left: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let queries = Tensor::from_slice(
            contiguous(queries, of_queries)?,
            of_queries.shape(),
            &Device::Cpu,
        )?;
        let (entries, left) = (contiguous(entries, of_entries)?, contiguous(left, of_left)?);
        let mut read = Vec::with_capacity(queries.elem_count());
        for index in 0..queries.dim(0)? {
            let head = Head::new(index, &queries, entries, left, self.0)?;
            let weights = head.matrix(head.probabilities(self.0)?)?;
            read.extend(values(&weights.matmul(&head.values)?)?);
        }
        Ok((CpuStorage::F32(read), queries.shape().clone()))
    }

    fn bwd(
        &self,
        queries: &Tensor,
        entries: &Tensor,
        left: &Tensor,
        _read: &Tensor,
        slope: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (queries, slope, scale) = (queries.detach(), slope.contiguous()?, scale(queries)?);
        let (kv_heads, slots, dim) = (left.dim(0)?, left.dim(1)?, queries.dim(2)?);
        let (entries, left) = (values(entries)?, values(left)?);
        let mut of_queries = Vec::with_capacity(queries.elem_count());
        let (mut of_entries, mut of_left) = (vec![0.0; entries.len()], vec![0.0; left.len()]);
        for index in 0..kv_heads {
            let head = Head::new(index, &queries, &entries, &left, self.0)?;
            let (weights, slope) = (head.probabilities(self.0)?, slope.get(index)?);
            // Slopes of weights, turned into slopes of logits in place.
            let mut slopes = values(&slope.matmul(&head.values.t()?)?)?;
            let count = head.kept.len();
            slopes
                .par_chunks_mut(count)
                .zip(weights.par_chunks(count))
                .for_each(|(row, weights)| {
                    let mean: f32 = row
                        .iter()
                        .zip(weights)
                        .map(|(slope, weight)| slope * weight)
                        .sum();
                    row.iter_mut()
                        .zip(weights)
                        .for_each(|(slope, weight)| *slope = weight * (*slope - mean));
                });
            let (weights, slopes) = (head.matrix(weights)?, head.matrix(slopes)?);
            of_queries.extend(values(&(slopes.matmul(&head.keys)? * scale)?)?);
            let of_keys = values(&(slopes.t()?.matmul(&head.queries)? * scale)?)?;
            let of_values = values(&weights.t()?.matmul(&slope)?)?;
            for (row, &slot) in head.kept.iter().enumerate() {
                for (part, rows) in [&of_keys, &of_values].into_iter().enumerate() {
                    let at = ((part * kv_heads + index) * slots + slot) * dim;
                    of_entries[at..][..dim].copy_from_slice(&rows[row * dim..][..dim]);
                }
            }
            let sums = values(&slopes.sum(0)?)?;
            head.kept
                .iter()
                .zip(sums)
                .for_each(|(&slot, sum)| of_left[index * slots + slot] = sum);
        }
        let of_queries = Tensor::from_vec(of_queries, queries.shape(), &Device::Cpu)?;
        let of_entries = Tensor::from_vec(of_entries, (2, kv_heads, slots, dim), &Device::Cpu)?;
        let of_left = Tensor::from_vec(of_left, (kv_heads, slots), &Device::Cpu)?;
        Ok((Some(of_queries), Some(of_entries), Some(of_left)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Var};

    use super::*;
    use crate::draws::Draws;

    type Attention = fn(&Tensor, &Tensor, &Tensor, Seen) -> Result<Tensor>;

    /// In candle's own operations, with masks, over all entries.
    fn plain(queries: &Tensor, entries: &Tensor, left: &Tensor, seen: Seen) -> Result<Tensor> {
        let (heads_rows, slots) = (queries.dim(1)?, left.dim(1)?);
        let sees = |row: usize, slot: usize| {
            let own = slots - seen.rows + row % seen.rows;
            let is_near = seen.window.is_none_or(|window| slot + window > own);
            slot <= own && (slot < seen.centroids || is_near)
        };
        let mask =
            |row: usize| (0..slots).map(move |slot| if sees(row, slot) { 0.0 } else { -1e9f32 });
        let mask: Vec<f32> = (0..heads_rows).flat_map(mask).collect();
        let mask = Tensor::from_vec(mask, (1, heads_rows, slots), &Device::Cpu)?;
        let logits = (queries.matmul(&entries.get(0)?.t()?.contiguous()?)? * scale(queries)?)?;
        let logits = logits
            .broadcast_add(&left.unsqueeze(1)?)?
            .broadcast_add(&mask)?;
        let weights = logits
            .broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?
            .exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        weights.matmul(&entries.get(1)?.contiguous()?)
    }

    #[test]
    fn attention_and_its_slopes_are_those_of_plain_operations() {
        let (kv_heads, group, rows, slots, dim) = (2, 3, 5, 23, 8);
        let mut draws = Draws::new(5);
        let mut random = |shape: &[usize]| {
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|_| 2.0 * draws.signed())
                .collect();
            Tensor::from_vec(values, shape, &Device::Cpu)
        };
        for (centroids, window) in [(0, None), (4, None), (4, Some(9)), (0, Some(3))] {
            let mut made = || -> Result<_> {
                let left: Vec<f32> = values(&random(&[kv_heads, slots])?)?;
                let left = left.iter().enumerate().map(|(i, left)| match i % slots {
                    slot if slot >= slots - rows => 0.0,
                    2 => f32::NEG_INFINITY,
                    slot if slot % 3 == 1 => -25.0 + left,
                    _ => *left - 2.0,
                });
                let left = Tensor::from_vec(left.collect(), (kv_heads, slots), &Device::Cpu)?;
                let inputs = [
                    random(&[kv_heads, group * rows, dim])?,
                    random(&[2, kv_heads, slots, dim])?,
                    left,
                ];
                Ok((inputs, random(&[kv_heads, group * rows, dim])?))
            };
            let (inputs, slope) = made().expect("shapes agree");
            let seen = Seen {
                rows,
                centroids,
                window,
            };
            let run = |f: Attention| -> Result<Vec<Vec<f32>>> {
                let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
                let read = f(&vars[0], &vars[1], &vars[2], seen)?;
                let grads = (&read * &slope)?.sum_all()?.backward()?;
                let mut found = vec![values(&read)?];
                for var in &vars {
                    found.push(values(grads.get(var).expect("it depends on all"))?);
                }
                Ok(found)
            };
            let (got, want) = (
                run(attend).expect("it reads"),
                run(plain).expect("it reads"),
            );
            for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                let off = got
                    .iter()
                    .zip(want)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                assert!(
                    off < 1e-4,
                    "output or slope {index}, {centroids} centroids, window {window:?}: off by \
                     {off}"
                );
            }
        }
    }
}
