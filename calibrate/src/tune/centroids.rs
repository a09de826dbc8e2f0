//! What went from a layer, as the service's `centroid` memory keeps it, but that entries which go
//! together join the centroid that was nearest before any of them came. No gradient goes through
//! it.

use candle_core::{Device, Result, Tensor};

/// Centroids of one layer.
pub struct Centroids {
    slots: usize,
    dim: usize,
    heads: Vec<Head>,
}

#[derive(Clone)]
struct Head {
    /// `[c, D]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    counts: Vec<f32>,
    gone: Vec<bool>,
}

/// Centroids as attention reads them.
#[derive(Clone)]
pub struct Snapshot {
    /// Keys and values `[2, K, c, D]`.
    pub entries: Tensor,
    /// Logarithms of their counts `[K, c]`; those of unused ones are negative infinity.
    pub counts: Tensor,
}

impl Centroids {
    /// Empty, for `slots` centroids of each head.
    pub fn new(kv_heads: usize, slots: usize, dim: usize) -> Self {
        let (keys, counts) = (vec![0.0; slots * dim], vec![0.0; slots]);
        let head = Head {
            values: keys.clone(),
            keys,
            counts,
            gone: Vec::new(),
        };
        Self {
            slots,
            dim,
            heads: vec![head; kv_heads],
        }
    }

    /// Takes in what went since the last call. `keys`, `values`: `[K, n, D]` of all tokens so far;
    /// `is_gone`: by head and token.
    pub fn absorb(&mut self, keys: &[f32], values: &[f32], is_gone: &[bool]) {
        let (tokens, dim, slots) = (is_gone.len() / self.heads.len(), self.dim, self.slots);
        for (index, head) in self.heads.iter_mut().enumerate() {
            head.gone.resize(tokens, false);
            let now = &is_gone[index * tokens..][..tokens];
            let new: Vec<usize> = (0..tokens)
                .filter(|&token| now[token] && !head.gone[token])
                .collect();
            new.iter().for_each(|&token| head.gone[token] = true);
            let row = |all: &'_ [f32], token: usize| {
                all[(index * tokens + token) * dim..][..dim].to_vec()
            };
            let used = head.counts.iter().filter(|count| **count > 0.0).count();
            let (first, rest) = new.split_at(new.len().min(slots - used));
            for (slot, &token) in (used..).zip(first) {
                head.keys[slot * dim..][..dim].copy_from_slice(&row(keys, token));
                head.values[slot * dim..][..dim].copy_from_slice(&row(values, token));
                head.counts[slot] = 1.0;
            }
            let joining: Vec<_> = rest
                .iter()
                .map(|&t| (row(keys, t), row(values, t)))
                .collect();
            let nearest: Vec<usize> = joining.iter().map(|(key, _)| head.nearest(key)).collect();
            for ((key, value), slot) in joining.iter().zip(nearest) {
                head.join(slot, key, value);
            }
        }
    }

    /// As they are now.
    ///
    /// # Errors
    /// Those of candle.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let (kv_heads, slots) = (self.heads.len(), self.slots);
        let both = [0, 1].into_iter().flat_map(|part| {
            self.heads
                .iter()
                .map(move |head| if part == 0 { &head.keys } else { &head.values })
        });
        let entries: Vec<f32> = both.flatten().copied().collect();
        let counts: Vec<f32> = self
            .heads
            .iter()
            .flat_map(|head| &head.counts)
            .map(|count| count.ln())
            .collect();
        Ok(Snapshot {
            entries: Tensor::from_vec(entries, (2, kv_heads, slots, self.dim), &Device::Cpu)?,
            counts: Tensor::from_vec(counts, (kv_heads, slots), &Device::Cpu)?,
        })
    }
}

impl Head {
    fn nearest(&self, key: &[f32]) -> usize {
        let distance = |centroid: &[f32]| {
            centroid
                .iter()
                .zip(key)
                .map(|(c, k)| (c - k) * (c - k))
                .sum::<f32>()
        };
        let distances = self.keys.chunks_exact(key.len()).map(distance).enumerate();
        distances
            .min_by(|(_, a), (_, b)| a.total_cmp(b))
            .map_or(0, |(slot, _)| slot)
    }

    fn join(&mut self, slot: usize, key: &[f32], value: &[f32]) {
        self.counts[slot] += 1.0;
        let share = 1.0 / self.counts[slot];
        let dim = key.len();
        for (all, new) in [(&mut self.keys, key), (&mut self.values, value)] {
            all[slot * dim..][..dim]
                .iter_mut()
                .zip(new)
                .for_each(|(mean, new)| *mean += share * (new - *mean));
        }
    }
}
