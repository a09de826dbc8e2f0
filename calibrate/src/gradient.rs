//! Gradient descent for a few thousand parameters: Adam and the products that gradients are made
//! of. The two small models that are trained over it, [`crate::query`] and [`crate::associative`],
//! have gradients of a page each, which finite differences check.

use crate::draws::Draws;

/// Adam (Kingma and Ba, arXiv 1412.6980) on one array, without weight decay.
pub struct Adam {
    first: Vec<f32>,
    second: Vec<f32>,
    steps: i32,
    decay: (f32, f32),
}

impl Adam {
    const EPSILON: f32 = 1e-8;

    /// For `len` parameters.
    pub fn new(len: usize) -> Self {
        Self::with_decay(len, (0.9, 0.999))
    }

    /// Which remembers gradients, and their squares, for longer or shorter.
    pub fn with_decay(len: usize, decay: (f32, f32)) -> Self {
        Self {
            first: vec![0.0; len],
            second: vec![0.0; len],
            steps: 0,
            decay,
        }
    }

    /// Running means of gradients and of their squares.
    pub fn moments(&self) -> (&[f32], &[f32]) {
        (&self.first, &self.second)
    }

    /// Goes on from moments after `steps` steps.
    pub fn resume(&mut self, first: Vec<f32>, second: Vec<f32>, steps: usize) {
        (self.first, self.second, self.steps) = (first, second, steps as i32);
    }

    /// One step of size `rate` against `gradient`.
    pub fn step(&mut self, parameters: &mut [f32], gradient: &[f32], rate: f32) {
        self.steps += 1;
        let (keep_first, keep_second) = self.decay;
        let unbias = |keep: f32| 1.0 / (1.0 - keep.powi(self.steps));
        let (of_first, of_second) = (unbias(keep_first), unbias(keep_second));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((p, g), (first, second)) in parameters.iter_mut().zip(gradient).zip(moments) {
            *first = keep_first * *first + (1.0 - keep_first) * g;
            *second = keep_second * *second + (1.0 - keep_second) * g * g;
            *p -= rate * *first * of_first / ((*second * of_second).sqrt() + Self::EPSILON);
        }
    }
}

/// Means and deviations of the channels of some inputs.
pub struct Scaling {
    mean: Vec<f32>,
    inverse: Vec<f32>,
}

impl Scaling {
    /// Of all rows of `inputs`, `width` channels each.
    pub fn of<'a>(inputs: impl Iterator<Item = &'a [f32]>, width: usize) -> Self {
        let (mut sums, mut squares, mut rows) = (vec![0.0f64; width], vec![0.0f64; width], 0.0);
        for row in inputs.flat_map(|input| input.chunks_exact(width)) {
            for ((x, sum), square) in row.iter().zip(&mut sums).zip(&mut squares) {
                *sum += f64::from(*x);
                *square += f64::from(*x) * f64::from(*x);
            }
            rows += 1.0;
        }
        let rows = f64::max(rows, 1.0);
        let moments = || {
            sums.iter()
                .zip(&squares)
                .map(|(sum, square)| (sum / rows, square / rows))
        };
        // A channel that never changes says nothing, and stays as it is.
        let inverse = |(mean, square): (f64, f64)| {
            let deviation = (square - mean * mean).max(0.0).sqrt();
            if deviation > 1e-6 {
                (1.0 / deviation) as f32
            } else {
                1.0
            }
        };
        Self {
            mean: moments().map(|(mean, _)| mean as f32).collect(),
            inverse: moments().map(inverse).collect(),
        }
    }

    /// The same, but means are not subtracted: for maps without a constant.
    pub fn without_means(self) -> Self {
        Self {
            mean: vec![0.0; self.mean.len()],
            ..self
        }
    }

    /// Rows with every channel standardised.
    pub fn standardised(&self, rows: &[f32]) -> Vec<f32> {
        let row = |row: &[f32]| {
            let moments = self.mean.iter().zip(&self.inverse);
            row.iter()
                .zip(moments)
                .map(|(x, (mean, inverse))| (x - mean) * inverse)
                .collect::<Vec<f32>>()
        };
        rows.chunks_exact(self.mean.len()).flat_map(row).collect()
    }

    /// Makes weights for standardised inputs into weights for the inputs themselves. `bias`: one
    /// value per row.
    pub fn fold(&self, weight: &mut [f32], mut bias: Option<&mut Vec<f32>>) {
        for (index, row) in weight.chunks_exact_mut(self.mean.len()).enumerate() {
            row.iter_mut()
                .zip(&self.inverse)
                .for_each(|(w, inverse)| *w *= inverse);
            if let Some(bias) = &mut bias {
                bias[index] -= dot(row, &self.mean);
            }
        }
    }
}

/// `len` draws from `[-bound, bound)`.
pub fn uniform(draws: &mut Draws, len: usize, bound: f32) -> Vec<f32> {
    (0..len).map(|_| draws.signed() * bound).collect()
}

/// `a · bᵀ`: rows of `a` and of `b` have `width` values.
pub fn rows_by_rows(a: &[f32], b: &[f32], width: usize) -> Vec<f32> {
    a.chunks_exact(width)
        .flat_map(|a| b.chunks_exact(width).map(move |b| dot(a, b)))
        .collect()
}

/// `out += aᵀ · b`: rows of `a` have `inner` values, those of `b` and of `out` `width`.
pub fn add_outer(out: &mut [f32], a: &[f32], b: &[f32], (inner, width): (usize, usize)) {
    for (a, b) in a.chunks_exact(inner).zip(b.chunks_exact(width)) {
        for (a, out) in a
            .iter()
            .zip(out.chunks_exact_mut(width))
            .filter(|(a, _)| **a != 0.0)
        {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += a * b);
        }
    }
}

/// `out += a · b`: rows of `a` have `inner` values, those of `b` and of `out` `width`.
pub fn add_product(out: &mut [f32], a: &[f32], b: &[f32], (inner, width): (usize, usize)) {
    for (a, out) in a.chunks_exact(inner).zip(out.chunks_exact_mut(width)) {
        for (a, b) in a.iter().zip(b.chunks_exact(width)) {
            out.iter_mut().zip(b).for_each(|(out, b)| *out += a * b);
        }
    }
}

/// Inner product. Eight running sums let the compiler use vector lanes.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        lanes
            .iter_mut()
            .zip(a.iter().zip(b))
            .for_each(|(lane, (a, b))| *lane += a * b);
    }
    lanes.iter().sum()
}

#[cfg(test)]
/// Checks of gradients.
pub(crate) mod testing {
    /// Checks `gradient` of `loss` at `parameters` against central differences, every `every`-th
    /// parameter.
    pub fn check(
        parameters: &mut [f32],
        gradient: &[f32],
        every: usize,
        loss: &mut dyn FnMut(&[f32]) -> f64,
    ) {
        let step = 5e-4;
        let largest = gradient.iter().fold(0.0f32, |m, g| m.max(g.abs()));
        assert!(largest > 0.0, "no gradient at all");
        for i in (0..parameters.len()).step_by(every) {
            let at = parameters[i];
            let mut moved = |to: f32| {
                parameters[i] = to;
                loss(parameters)
            };
            let slope = ((moved(at + step) - moved(at - step)) / f64::from(2.0 * step)) as f32;
            parameters[i] = at;
            let off = (slope - gradient[i]).abs();
            assert!(
                off < 0.02 * largest,
                "parameter {i}: gradient {} where differences say {slope}",
                gradient[i]
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adam_finds_the_bottom_of_a_bowl() {
        let (mut x, mut adam) = (vec![3.0, -2.0], Adam::new(2));
        for step in 0..500 {
            let gradient = [2.0 * (x[0] - 1.0), 20.0 * (x[1] - 4.0)];
            adam.step(&mut x, &gradient, 0.1 * (1.0 - step as f32 / 500.0));
        }
        assert!(
            (x[0] - 1.0).abs() < 1e-2 && (x[1] - 4.0).abs() < 1e-2,
            "{x:?}"
        );
    }

    #[test]
    fn folded_weights_see_the_inputs_as_the_trained_ones_saw_them_standardised() {
        let inputs = [100.0, 0.5, 7.0, 300.0, 0.25, 7.0, -100.0, 0.75, 7.0];
        let scaling = Scaling::of([&inputs[..3], &inputs[3..]].into_iter(), 3);
        let (mut weight, mut bias) = (vec![0.5, -2.0, 1.0, 3.0, 0.1, -1.0], vec![0.3, -0.7]);
        let standardised = scaling.standardised(&inputs);
        assert!(
            standardised.iter().all(|x| x.abs() < 2.0),
            "{standardised:?}"
        );
        let apply = |rows: &[f32], weight: &[f32], bias: &[f32]| -> Vec<f32> {
            rows_by_rows(rows, weight, 3)
                .iter()
                .zip(bias.iter().cycle())
                .map(|(y, b)| y + b)
                .collect()
        };
        let want = apply(&standardised, &weight, &bias);
        scaling.fold(&mut weight, Some(&mut bias));
        let got = apply(&inputs, &weight, &bias);
        assert!(
            got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-4),
            "{got:?} {want:?}"
        );
    }

    #[test]
    fn products_are_the_textbook_ones() {
        let (a, b) = (
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            [1.0, 0.0, 2.0, 0.0, 1.0, 1.0],
        );
        assert_eq!(rows_by_rows(&a, &b, 3), [7.0, 5.0, 16.0, 11.0]);
        let mut outer = vec![0.0; 9];
        add_outer(&mut outer, &a, &b, (3, 3));
        assert_eq!(outer, [1.0, 4.0, 6.0, 2.0, 5.0, 9.0, 3.0, 6.0, 12.0]);
        let mut product = vec![0.0; 4];
        add_product(&mut product, &a, &b, (3, 2));
        assert_eq!(product, [8.0, 3.0, 20.0, 6.0]);
    }
}
