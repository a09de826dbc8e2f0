//! Deterministic draws.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Draws(u64);

impl Draws {
    /// Draws that depend on every element of `key`.
    pub fn new(key: &[u64]) -> Self {
        let mut draws = Self(0x7061_6c69_6d70_7365);
        for &part in key {
            draws.0 ^= part;
            draws.0 = draws.next();
        }
        draws
    }

    /// 64 uniform bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// Uniform in `0..bound`; `bound` is at least 1. The bias of the remainder is below 2^-40 for
    /// the bounds in use.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Puts the items into a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for left in (1..items.len()).rev() {
            items.swap(left, self.below(left + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_every_part_of_the_key() {
        let first = |key: &[u64]| Draws::new(key).next();
        assert_eq!(first(&[1, 2, 3]), first(&[1, 2, 3]));
        for other in [&[1, 2, 4][..], &[1, 3, 2], &[2, 2, 3], &[1, 2]] {
            assert_ne!(first(&[1, 2, 3]), first(other));
        }
        let mut draws = Draws::new(&[5]);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&draws.unit()) && draws.below(7) < 7));
    }
}
