//! Ridge regression per layer by normal equations, in double precision.

use palimpsest_engine::policy::retention::LayerScorer;

use crate::collect::LayerSample;
use crate::{Error, Result};

/// Sums of one layer: `XᵀX` (lower triangle) and `XᵀY` over all rows, with a constant input
/// appended to `x`.
#[derive(Clone)]
pub struct Sums {
    inputs: usize,
    outputs: usize,
    gram: Vec<f64>,
    cross: Vec<f64>,
    rows: u64,
}

impl Sums {
    /// Empty sums for `hidden` inputs and `outputs` targets.
    pub fn new(hidden: usize, outputs: usize) -> Self {
        let inputs = hidden + 1;
        Self {
            inputs,
            outputs,
            gram: vec![0.0; inputs * inputs],
            cross: vec![0.0; inputs * outputs],
            rows: 0,
        }
    }

    /// Adds the rows of a document.
    pub fn add(&mut self, sample: &LayerSample) {
        let width = self.inputs - 1;
        let rows = sample
            .hidden
            .chunks_exact(width)
            .zip(sample.targets.chunks_exact(self.outputs));
        let mut x = vec![1.0f32; self.inputs];
        // Single-precision products of one document, summed over documents in double precision.
        let mut gram = vec![0.0f32; self.inputs * self.inputs];
        for (hidden, y) in rows {
            x[..width].copy_from_slice(hidden);
            for (i, &xi) in x.iter().enumerate() {
                for (sum, &xj) in gram[i * self.inputs..][..=i].iter_mut().zip(&x) {
                    *sum += xi * xj;
                }
                for (sum, &yk) in self.cross[i * self.outputs..].iter_mut().zip(y) {
                    *sum += f64::from(xi) * f64::from(yk);
                }
            }
            self.rows += 1;
        }
        self.gram
            .iter_mut()
            .zip(&gram)
            .for_each(|(sum, &g)| *sum += f64::from(g));
    }

    /// Weights that minimise squared error plus `ridge` times their squared norm, the constant not
    /// penalised.
    ///
    /// # Errors
    /// [`Error::Singular`].
    pub fn solve(&self, ridge: f64, layer: usize) -> Result<LayerScorer> {
        let n = self.inputs;
        let mut a = self.gram.clone();
        for i in 0..n - 1 {
            a[i * n + i] += ridge;
        }
        cholesky(&mut a, n).ok_or(Error::Singular { layer })?;
        let mut scorer = LayerScorer {
            weight: vec![0.0; self.outputs * (n - 1)],
            bias: vec![0.0; self.outputs],
            rate: vec![0.0; self.outputs],
            recent: None,
        };
        for k in 0..self.outputs {
            let mut b: Vec<f64> = (0..n).map(|i| self.cross[i * self.outputs + k]).collect();
            substitute(&a, n, &mut b);
            for (weight, &value) in scorer.weight[k * (n - 1)..].iter_mut().zip(&b[..n - 1]) {
                *weight = value as f32;
            }
            scorer.bias[k] = b[n - 1] as f32;
        }
        Ok(scorer)
    }

    /// Rows added so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }
}

/// Cholesky factor of the lower triangle, in place; `None` when the matrix is not positive
/// definite.
fn cholesky(a: &mut [f64], n: usize) -> Option<()> {
    for i in 0..n {
        for j in 0..=i {
            let (row_i, row_j) = (&a[i * n..i * n + j], &a[j * n..j * n + j]);
            let dot: f64 = row_i.iter().zip(row_j).map(|(x, y)| x * y).sum();
            let value = a[i * n + j] - dot;
            if i == j {
                if value.is_nan() || value <= 0.0 {
                    return None;
                }
                a[i * n + i] = value.sqrt();
            } else {
                a[i * n + j] = value / a[j * n + j];
            }
        }
    }
    Some(())
}

/// Solves `L Lᵀ x = b` in place.
fn substitute(l: &[f64], n: usize, b: &mut [f64]) {
    for i in 0..n {
        let dot: f64 = (0..i).map(|j| l[i * n + j] * b[j]).sum();
        b[i] = (b[i] - dot) / l[i * n + i];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|j| l[j * n + i] * b[j]).sum();
        b[i] = (b[i] - dot) / l[i * n + i];
    }
}

/// Scores of a layer's rows `[n, K]`.
pub fn predict(scorer: &LayerScorer, hidden: &[f32], kv_heads: usize) -> Vec<f32> {
    let width = scorer.weight.len() / kv_heads;
    let mut scores = Vec::with_capacity(hidden.len() / width * kv_heads);
    for x in hidden.chunks_exact(width) {
        for k in 0..kv_heads {
            let dot: f32 = x
                .iter()
                .zip(&scorer.weight[k * width..][..width])
                .map(|(x, w)| x * w)
                .sum();
            scores.push(dot + scorer.bias[k]);
        }
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::Draws;

    #[test]
    fn a_linear_relation_is_recovered() {
        let mut draws = Draws::new(3);
        let (inputs, outputs, rows) = (5, 2, 200);
        let value = |draws: &mut Draws| draws.between(0, 2000) as f32 / 1000.0 - 1.0;
        let truth: Vec<f32> = (0..outputs * (inputs + 1))
            .map(|_| value(&mut draws))
            .collect();
        let hidden: Vec<f32> = (0..rows * inputs).map(|_| value(&mut draws)).collect();
        let targets = hidden
            .chunks_exact(inputs)
            .flat_map(|x| {
                let truth = &truth;
                (0..outputs).map(move |k| {
                    let w = &truth[k * (inputs + 1)..];
                    x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>() + w[inputs]
                })
            })
            .collect();
        let sample = LayerSample {
            hidden,
            targets,
            ..LayerSample::default()
        };
        let mut sums = Sums::new(inputs, outputs);
        sums.add(&sample);
        let scorer = sums.solve(1e-9, 0).expect("regular");
        for k in 0..outputs {
            for i in 0..inputs {
                assert!((scorer.weight[k * inputs + i] - truth[k * (inputs + 1) + i]).abs() < 1e-4);
            }
            assert!((scorer.bias[k] - truth[k * (inputs + 1) + inputs]).abs() < 1e-4);
        }
        let predicted = predict(&scorer, &sample.hidden, outputs);
        assert!(
            predicted
                .iter()
                .zip(&sample.targets)
                .all(|(p, y)| (p - y).abs() < 1e-3)
        );
    }

    #[test]
    fn equal_rows_without_ridge_are_singular() {
        let sample = LayerSample {
            hidden: vec![1.0; 12],
            targets: vec![0.0; 4],
            ..LayerSample::default()
        };
        let mut sums = Sums::new(3, 1);
        sums.add(&sample);
        assert!(matches!(
            sums.solve(0.0, 2),
            Err(Error::Singular { layer: 2 })
        ));
        assert!(sums.solve(1.0, 2).is_ok());
    }
}
