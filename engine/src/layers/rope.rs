//! Rotary angles of a step's rows.

/// Cosines and sines `[T, D/2]` of `position * inv_freq`, the angle in f32 as the reference
/// implementations have it.
pub fn angles(
    positions: impl Iterator<Item = u64>,
    inv_freq: &[f32],
    cos: &mut Vec<f32>,
    sin: &mut Vec<f32>,
) {
    cos.clear();
    sin.clear();
    for position in positions {
        for freq in inv_freq {
            let (s, c) = f64::from(position as f32 * freq).sin_cos();
            cos.push(c as f32);
            sin.push(s as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_laid_out_by_row() {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        angles([0, 3].into_iter(), &[1.0, 0.5], &mut cos, &mut sin);
        assert_eq!(cos, [1.0, 1.0, 3f64.cos() as f32, 1.5f64.cos() as f32]);
        assert_eq!(sin, [0.0, 0.0, 3f64.sin() as f32, 1.5f64.sin() as f32]);
    }
}
