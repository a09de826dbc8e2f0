//! Means with their uncertainty, and small questions about lists of values.

/// Standard normal quantile of a two-sided 95 % interval.
const Z95: f64 = 1.959_963_984_540_054;

/// A value with the ends of its interval, 95 % where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// 95 % interval of a proportion from `n` trials with mean `p` (Wilson, "Probable inference, the
/// law of succession, and statistical inference", 1927). For fractions within a trial, which vary
/// less than 0 and 1, it is wider than needed.
pub fn wilson(p: f64, n: usize) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let (n, z2) = (n as f64, Z95 * Z95);
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

/// Mean and standard error of the mean; the error is `None` below two values, the mean 0 without
/// any.
pub fn mean_and_error(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    if values.is_empty() {
        return (0.0, None);
    }
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return (mean, None);
    }
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0);
    (mean, Some((variance / n).sqrt()))
}

/// Quantiles 0.975 of Student's t distribution by degrees of freedom, from 1 on.
const T975: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];

/// Half the width of the 95 % interval of a mean of `n` values with this standard error, by
/// Student's t ("The probable error of a mean", 1908). `n` is at least 2.
pub fn half_width(error: f64, n: usize) -> f64 {
    let freedom = n.saturating_sub(1).max(1);
    error * T975.get(freedom - 1).copied().unwrap_or(Z95)
}

/// Different values in the order they come.
pub fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// Natural logarithm of the softmax probability of `token`, and whether it is the greatest logit
/// (the first of equal ones). NaN logits give NaN.
pub fn log_probability(logits: &[f32], token: u32) -> (f64, bool) {
    let token = token as usize;
    let best = argmax(logits);
    let max = f64::from(logits[best]);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    (f64::from(logits[token]) - max - sum.ln(), best == token)
}

/// Index of the greatest value, the first of equal ones; NaN is never greater.
pub fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-4, "{a} is not {b}");
    }

    #[test]
    fn wilson_matches_published_values() {
        // Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I,
        // method 3.
        for (r, n, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let (l, h) = wilson(f64::from(r) / n as f64, n);
            close(l, low);
            close(h, high);
        }
        assert_eq!(wilson(0.5, 0), (0.0, 1.0));
    }

    #[test]
    fn standard_error_of_known_values() {
        let (mean, error) = mean_and_error(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        close(mean, 5.0);
        close(error.expect("two values"), (32.0_f64 / 7.0 / 8.0).sqrt());
        assert_eq!(mean_and_error(&[3.0]), (3.0, None));
    }

    #[test]
    fn few_values_have_wide_intervals() {
        // Student's own example: the additional sleep of ten patients, 1908, table of section 9.
        let more = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4];
        let (mean, error) = mean_and_error(&more);
        let half = half_width(error.expect("ten values"), more.len());
        close(mean, 1.58);
        assert!((half - 0.8798).abs() < 1e-3, "{half}");
        assert!(half_width(1.0, 2) > 12.0 && half_width(1.0, 1000) < 1.97);
    }

    #[test]
    fn log_probabilities_sum_to_one() {
        let logits = [1.0, -2.0, 0.5, 1.0];
        let sum: f64 = (0..4).map(|t| log_probability(&logits, t).0.exp()).sum();
        close(sum, 1.0);
        assert!(log_probability(&logits, 0).1 && !log_probability(&logits, 3).1);
        assert!(log_probability(&[f32::NAN, 1.0], 1).0.is_nan());
    }
}
