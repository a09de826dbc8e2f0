//! Rotary angles of a step's rows.

/// Cosines and sines of rotary angles.
#[derive(Debug, Clone, Default)]
pub struct Angles {
    /// `[T, D/2]`.
    pub cos: Vec<f32>,
    /// `[T, D/2]`.
    pub sin: Vec<f32>,
}

impl Angles {
    /// Computes the angle `position * inv_freq` of every position, in f32 as the reference
    /// implementations have it, and puts its cosine and sine here.
    pub fn fill(&mut self, positions: impl Iterator<Item = u64>, inv_freq: &[f32]) {
        self.cos.clear();
        self.sin.clear();
        for position in positions {
            for freq in inv_freq {
                let (sin, cos) = f64::from(position as f32 * freq).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_laid_out_by_row() {
        let mut angles = Angles::default();
        angles.fill([0, 3].into_iter(), &[1.0, 0.5]);
        assert_eq!(
            angles.cos,
            [1.0, 1.0, 3f64.cos() as f32, 1.5f64.cos() as f32]
        );
        assert_eq!(
            angles.sin,
            [0.0, 0.0, 3f64.sin() as f32, 1.5f64.sin() as f32]
        );
    }
}
