//! Centroids of one KV head, laid out as attention reads them: pages of [`PageShape::SLOTS`]
//! centroids, `[D][32]` keys, then `[32][D]` values, in f32. A decode step reads every page it has,
//! so nothing is copied for it.

use crate::shapes::PageShape;

const SLOTS: usize = PageShape::SLOTS;

/// Centroids of one KV head.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CentroidState {
    /// `D`; 0 before the first entry.
    dim: usize,
    /// Whole pages; zero where no centroid is.
    pages: Vec<f32>,
    counts: Vec<f32>,
    /// Logarithms of the counts.
    bias: Vec<f32>,
}

impl CentroidState {
    /// `r` centroids: means of keys and of values `[r, D]` (post-RoPE) and how many entries each
    /// stands for `[r]`, at least 1. Unequal lengths are refused where the state is written
    /// (`LatentMemory::write_latent`).
    pub fn new(keys: &[f32], values: &[f32], counts: Vec<f32>) -> Self {
        let dim = keys.len() / counts.len().max(1);
        let mut state = Self {
            dim,
            ..Self::default()
        };
        let rowless = dim == 0 && !counts.is_empty();
        if rowless || keys.len() != dim * counts.len() || values.len() != keys.len() {
            // No whole number of rows: counts without pages, which `check` names.
            return Self {
                counts,
                ..Self::default()
            };
        }
        for ((key, value), &count) in keys
            .chunks_exact(dim.max(1))
            .zip(values.chunks_exact(dim.max(1)))
            .zip(&counts)
        {
            state.push(key, value, count);
        }
        state
    }

    /// Means of keys `[r, D]`.
    pub fn keys(&self) -> Vec<f32> {
        let key = |r: usize| (0..self.dim).map(move |d| self.pages[self.first_key(r) + d * SLOTS]);
        (0..self.counts.len()).flat_map(key).collect()
    }

    /// Means of values `[r, D]`.
    pub fn values(&self) -> Vec<f32> {
        (0..self.counts.len())
            .flat_map(|r| &self.pages[self.first_value(r)..][..self.dim])
            .copied()
            .collect()
    }

    /// Entries that each stands for `[r]`.
    pub fn counts(&self) -> &[f32] {
        &self.counts
    }

    /// Logarithms of the counts `[r]`, which are added to logits.
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// `D`; 0 while there is no centroid, or where it was made of unequal lengths.
    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    /// Whole pages, as attention reads them: centroid `r` has logit `scale * <q, key_r> + bias_r`.
    pub(crate) fn pages(&self) -> &[f32] {
        &self.pages
    }

    fn first_key(&self, r: usize) -> usize {
        r / SLOTS * 2 * SLOTS * self.dim + r % SLOTS
    }

    fn first_value(&self, r: usize) -> usize {
        (r / SLOTS * 2 * SLOTS + SLOTS + r % SLOTS) * self.dim
    }

    fn push(&mut self, key: &[f32], value: &[f32], count: f32) {
        self.dim = key.len();
        let r = self.counts.len();
        if r.is_multiple_of(SLOTS) {
            self.pages
                .resize(self.pages.len() + 2 * SLOTS * self.dim, 0.0);
        }
        self.counts.push(count);
        self.bias.push(count.ln());
        let (first_key, first_value) = (self.first_key(r), self.first_value(r));
        self.pages[first_key..]
            .iter_mut()
            .step_by(SLOTS)
            .zip(key)
            .for_each(|(to, k)| *to = *k);
        self.pages[first_value..][..value.len()].copy_from_slice(value);
    }

    /// Takes in an entry `[D]` each: as a centroid of its own while there are fewer than `most`,
    /// else into the nearest.
    pub(crate) fn absorb(&mut self, most: usize, key: &[f32], value: &[f32]) {
        if self.counts.len() < most {
            return self.push(key, value, 1.0);
        }
        let r = self.nearest(key);
        self.counts[r] += 1.0;
        let n = self.counts[r];
        self.bias[r] = n.ln();
        let mean = |centroid: &mut f32, x: f32| *centroid += (x - *centroid) / n;
        let (first_key, first_value) = (self.first_key(r), self.first_value(r));
        self.pages[first_key..]
            .iter_mut()
            .step_by(SLOTS)
            .zip(key)
            .for_each(|(c, &k)| mean(c, k));
        self.pages[first_value..]
            .iter_mut()
            .zip(value)
            .for_each(|(c, &v)| mean(c, v));
    }

    /// Index of the centroid nearest to `key` by squared Euclidean distance, the first of equals.
    fn nearest(&self, key: &[f32]) -> usize {
        let mut best = (f32::INFINITY, 0);
        for (page, first) in self
            .pages
            .chunks_exact(2 * SLOTS * self.dim)
            .zip((0..).step_by(SLOTS))
        {
            // Eight running sums over the dimensions, then those in order: the sum that the CUDA
            // kernel makes, here for all centroids of a page side by side.
            let mut sums = [[0.0f32; SLOTS]; 8];
            for (d, (keys, k)) in page.chunks_exact(SLOTS).zip(key).enumerate() {
                for (sum, c) in sums[d % 8].iter_mut().zip(keys) {
                    *sum += (c - k) * (c - k);
                }
            }
            for r in first..self.counts.len().min(first + SLOTS) {
                let distance: f32 = sums.iter().map(|sums| sums[r - first]).sum();
                if distance < best.0 {
                    best = (distance, r);
                }
            }
        }
        best.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_comes_out_in_order_across_pages() {
        let rows = |len: u16, step: u16| {
            (0..len)
                .map(|i| f32::from(i * step % 997))
                .collect::<Vec<f32>>()
        };
        for count in [1u16, 31, 32, 33, 70] {
            let (keys, values) = (rows(count * 12, 7), rows(count * 12, 11));
            let counts: Vec<f32> = (1..=count).map(f32::from).collect();
            let state = CentroidState::new(&keys, &values, counts.clone());
            assert_eq!(
                (state.keys(), state.values(), state.counts()),
                (keys, values, &counts[..])
            );
            assert_eq!(
                state.pages.len(),
                usize::from(count).div_ceil(32) * 2 * 32 * 12
            );
        }
    }

    #[test]
    fn the_nearest_is_found_on_every_page_and_the_first_of_equals_wins() {
        let keys: Vec<f32> = (0..70u8).flat_map(|r| [f32::from(r / 2); 9]).collect();
        let state = CentroidState::new(&keys, &keys, vec![1.0; 70]);
        for r in 0..35u8 {
            assert_eq!(state.nearest(&[f32::from(r) + 0.2; 9]), 2 * usize::from(r));
        }
    }
}
