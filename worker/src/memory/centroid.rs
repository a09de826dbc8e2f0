//! Centroid memory: evicted entries of a KV head are merged into `R` weighted centroids that attention reads as extra
//! keys with a log-count bias.
//!
//! Source: IndexMem++ compressed memory pool (method section 3.8), online form. Centroid `r` stands for `n_r` equal
//! entries: logit `<q, k_r>/sqrt(D) + ln n_r`.

use super::{Memory, Readout};
use palimpsest_kernels::CentroidView;
use xxhash_rust::xxh3::Xxh3;

/// Running centroids of every KV head of a sequence, f32.
pub struct Centroids {
    slots: usize,
    head_dim: usize,
    heads: Vec<Head>,
}

#[derive(Clone, Default)]
struct Head {
    keys: Vec<f32>,
    values: Vec<f32>,
    bias: Vec<f32>,
    counts: Vec<f32>,
}

impl Centroids {
    /// Empty memory of `slots` centroids for each of `heads` KV heads.
    pub fn new(heads: usize, slots: usize, head_dim: usize) -> Self {
        Self { slots, head_dim, heads: vec![Head::default(); heads] }
    }

    /// Bytes of one centroid, key, value and count.
    pub const fn slot_bytes(head_dim: usize) -> usize {
        (2 * head_dim + 1) * 4
    }

    /// Centroids that `entries` cache entries of `entry_bytes` each pay for.
    pub const fn slots_for(entries: usize, entry_bytes: usize, head_dim: usize) -> usize {
        entries * entry_bytes / Self::slot_bytes(head_dim)
    }
}

impl Head {
    fn absorb(&mut self, slots: usize, key: &[f32], value: &[f32]) {
        if self.counts.len() < slots {
            self.keys.extend_from_slice(key);
            self.values.extend_from_slice(value);
            self.counts.push(1.0);
            self.bias.push(0.0);
            return;
        }
        let dim = key.len();
        let r = nearest(&self.keys, key);
        self.counts[r] += 1.0;
        let n = self.counts[r];
        self.bias[r] = n.ln();
        let mean = |centroid: &mut [f32], x: &[f32]| {
            for (c, &x) in centroid.iter_mut().zip(x) {
                *c += (x - *c) / n;
            }
        };
        mean(&mut self.keys[r * dim..][..dim], key);
        mean(&mut self.values[r * dim..][..dim], value);
    }
}

/// Index of the centroid nearest to `key` by squared Euclidean distance, the first of equals.
fn nearest(centroids: &[f32], key: &[f32]) -> usize {
    let mut best = (f32::INFINITY, 0);
    for (r, c) in centroids.chunks_exact(key.len()).enumerate() {
        // Eight running sums let the compiler use vector lanes in a fixed order.
        let mut lanes = [0.0f32; 8];
        for (c, k) in c.chunks(8).zip(key.chunks(8)) {
            for ((lane, c), k) in lanes.iter_mut().zip(c).zip(k) {
                *lane += (c - k) * (c - k);
            }
        }
        let distance: f32 = lanes.iter().sum();
        if distance < best.0 {
            best = (distance, r);
        }
    }
    best.1
}

impl Memory for Centroids {
    fn absorb(&mut self, head: usize, keys: &[f32], values: &[f32]) {
        if self.slots == 0 {
            return;
        }
        for (key, value) in keys.chunks_exact(self.head_dim).zip(values.chunks_exact(self.head_dim)) {
            self.heads[head].absorb(self.slots, key, value);
        }
    }

    fn centroids(&self, head: usize) -> Option<CentroidView<'_>> {
        let head = &self.heads[head];
        (!head.bias.is_empty()).then_some(CentroidView { keys: &head.keys, values: &head.values, bias: &head.bias })
    }

    fn readout(&self, _head: usize) -> Option<Readout<'_>> {
        None
    }

    fn bytes(&self) -> usize {
        self.heads.len() * self.slots * Self::slot_bytes(self.head_dim)
    }

    fn digest(&self, hash: &mut Xxh3) {
        for head in &self.heads {
            for v in head.keys.iter().chain(&head.values).chain(&head.counts) {
                hash.update(&v.to_bits().to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_centroid_is_the_mean_of_what_it_absorbed_and_counts_are_kept() {
        let mut m = Centroids::new(1, 2, 2);
        m.absorb(0, &[0.0, 0.0, 10.0, 0.0, 1.0, 0.0, 0.0, 1.0], &[1.0, 0.0, 0.0, 2.0, 4.0, 0.0, 1.0, 3.0]);
        let view = m.centroids(0).expect("entries were absorbed");
        assert_eq!(view.bias, &[3f32.ln(), 0.0]);
        for (got, want) in view.keys.iter().zip([1.0 / 3.0, 1.0 / 3.0, 10.0, 0.0]) {
            assert!((got - want).abs() < 1e-6);
        }
        for (got, want) in view.values.iter().zip([2.0, 1.0, 0.0, 2.0]) {
            assert!((got - want).abs() < 1e-6);
        }
    }

    #[test]
    fn absorbing_in_one_call_or_several_gives_the_same_bits() {
        let entries: Vec<f32> = (0..64u16).map(|i| f32::from(i * 37 % 101) / 7.0).collect();
        let (mut whole, mut parts) = (Centroids::new(1, 3, 4), Centroids::new(1, 3, 4));
        whole.absorb(0, &entries, &entries);
        entries.chunks(4).for_each(|e| parts.absorb(0, e, e));
        let (a, b) = (whole.centroids(0).expect("filled"), parts.centroids(0).expect("filled"));
        assert_eq!((a.keys, a.values, a.bias), (b.keys, b.values, b.bias));
    }
}
