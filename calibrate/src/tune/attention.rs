//! Attention of a stride of queries to what is left of all tokens before them, in one softmax, and its gradient.
//!
//! Nothing of it is kept for the backward pass, which computes the probabilities again: they are what grows with the document.

use super::model::contiguous;
use candle_core::{CpuStorage, CustomOp3, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// `softmax(q kᵀ / sqrt(D) + left) v` for queries `[K, g * n, D]`, keys and values `[2, K, s, D]` and logarithms of what is left
/// of each entry `[K, s]`. Gives `[K, g * n, D]`.
pub fn attend(queries: &Tensor, entries: &Tensor, left: &Tensor, seen: Seen) -> Result<Tensor> {
    queries.contiguous()?.apply_op3(&entries.contiguous()?, &left.contiguous()?, Attend(seen))
}

/// Which entries a query sees.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// `n`: the last entries are the queries' own tokens, each of which sees those before it and itself.
    pub rows: usize,
    /// Entries at the beginning that are no tokens, and seen by all.
    pub centroids: usize,
    /// Tokens that are seen, where the model's window slides.
    pub window: Option<usize>,
}

struct Attend(Seen);

impl Attend {
    fn scale(queries: &Tensor) -> Result<f64> {
        Ok(1.0 / (queries.dim(2)? as f64).sqrt())
    }

    /// Probabilities `[K, g * n, s]`.
    fn probabilities(&self, queries: &Tensor, keys: &Tensor, left: &[f32]) -> Result<Tensor> {
        let logits = (queries * Self::scale(queries)?)?.matmul(&keys.t()?)?;
        let shape = logits.shape().clone();
        let (kv_heads, heads_rows, slots) = shape.dims3()?;
        debug_assert_eq!(left.len(), kv_heads * slots, "one for each entry");
        let Seen { rows, centroids, window } = self.0;
        let mut weights: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        weights.par_chunks_mut(slots).enumerate().for_each(|(index, row)| {
            let (kv_head, own) = (index / heads_rows, index % heads_rows % rows);
            let left = &left[kv_head * slots..][..slots];
            let (seen, hidden) = row.split_at_mut(slots - rows + own + 1);
            hidden.fill(0.0);
            seen.iter_mut().zip(left).for_each(|(logit, left)| *logit += left);
            let passed = window.map_or(0, |window| (seen.len() - centroids).saturating_sub(window));
            seen[centroids..][..passed].fill(f32::NEG_INFINITY);
            let most = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            seen.iter_mut().for_each(|logit| *logit = (*logit - most).exp());
            let sum: f32 = seen.iter().sum();
            seen.iter_mut().for_each(|weight| *weight /= sum);
        });
        Tensor::from_vec(weights, shape, &Device::Cpu)
    }
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
        let tensor =
            |storage, layout: &Layout| Tensor::from_slice(contiguous(storage, layout)?, layout.shape(), &Device::Cpu);
        let (queries, entries) = (tensor(queries, of_queries)?, tensor(entries, of_entries)?);
        let weights = self.probabilities(&queries, &entries.get(0)?, contiguous(left, of_left)?)?;
        let read = weights.matmul(&entries.get(1)?)?;
        Ok((CpuStorage::F32(read.flatten_all()?.to_vec1()?), read.shape().clone()))
    }

    fn bwd(
        &self,
        queries: &Tensor,
        entries: &Tensor,
        left: &Tensor,
        _read: &Tensor,
        slope: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (queries, entries) = (queries.detach(), entries.detach());
        let (keys, values) = (entries.get(0)?, entries.get(1)?);
        let (kv_heads, slots) = left.dims2()?;
        let left: Vec<f32> = left.flatten_all()?.to_vec1()?;
        let weights = self.probabilities(&queries, &keys, &left)?;
        let slope = slope.contiguous()?;
        let of_values = weights.t()?.matmul(&slope)?;
        let shape = weights.shape().clone();
        let weights: Vec<f32> = weights.flatten_all()?.to_vec1()?;
        // Slopes of weights, turned into slopes of logits in place.
        let mut slopes: Vec<f32> = slope.matmul(&values.t()?)?.flatten_all()?.to_vec1()?;
        slopes.par_chunks_mut(slots).zip(weights.par_chunks(slots)).for_each(|(row, weights)| {
            let mean: f32 = row.iter().zip(weights).map(|(slope, weight)| slope * weight).sum();
            row.iter_mut().zip(weights).for_each(|(slope, weight)| *slope = weight * (*slope - mean));
        });
        let slopes = Tensor::from_vec(slopes, shape, &Device::Cpu)?;
        let of_left = slopes.sum(1)?.reshape((kv_heads, slots))?;
        let scale = Self::scale(&queries)?;
        let of_queries = (slopes.matmul(&keys)? * scale)?;
        let of_keys = (slopes.t()?.matmul(&queries)? * scale)?;
        Ok((Some(of_queries), Some(Tensor::stack(&[of_keys, of_values], 0)?), Some(of_left)))
    }
}
