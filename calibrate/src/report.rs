//! How well what was trained agrees with held-out documents.

/// One layer, means over KV heads and documents.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LayerReport {
    /// Of the linear scorers.
    pub retention: Agreement,
    /// Of the pairwise indexer, if it was trained.
    pub query: Option<Agreement>,
    /// Share of what eviction took from attention outputs (squared) that the associative memory
    /// gives back, if trained.
    pub explained: Option<f64>,
}

/// Agreement of scores and targets.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Agreement {
    /// Spearman's rank correlation.
    pub rank_correlation: f64,
    /// Share of the oracle's best slots that the scores also rank best.
    pub recall: f64,
}

impl Agreement {
    /// Adds `found`, one of `count` whose mean this becomes.
    pub fn add(&mut self, found: Self, count: usize) {
        self.rank_correlation += found.rank_correlation / count as f64;
        self.recall += found.recall / count as f64;
    }
}

/// Share of slots that counts as best.
pub const TOP_SHARE: f64 = 0.15;

/// Compares scores and targets `[n, K]` of one document.
pub fn compare(scores: &[f32], targets: &[f32], kv_heads: usize) -> Agreement {
    let mut report = Agreement::default();
    for k in 0..kv_heads {
        let column = |values: &[f32]| {
            values
                .iter()
                .skip(k)
                .step_by(kv_heads)
                .copied()
                .collect::<Vec<f32>>()
        };
        let (a, b) = (ranks(&column(scores)), ranks(&column(targets)));
        report.rank_correlation += correlation(&a, &b) / kv_heads as f64;
        report.recall += recall(&a, &b) / kv_heads as f64;
    }
    report
}

/// Rank of every value, the smallest 0; ties in order.
fn ranks(values: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0; values.len()];
    for (rank, index) in order.into_iter().enumerate() {
        ranks[index] = rank;
    }
    ranks
}

fn correlation(a: &[usize], b: &[usize]) -> f64 {
    let n = a.len() as f64;
    if a.len() < 2 {
        return 0.0;
    }
    let squares: f64 = a
        .iter()
        .zip(b)
        .map(|(&a, &b)| (a as f64 - b as f64).powi(2))
        .sum();
    1.0 - 6.0 * squares / (n * (n * n - 1.0))
}

fn recall(a: &[usize], b: &[usize]) -> f64 {
    let top = ((a.len() as f64 * TOP_SHARE) as usize).max(1);
    let least = a.len().saturating_sub(top);
    let both = a
        .iter()
        .zip(b)
        .filter(|&(&a, &b)| a >= least && b >= least)
        .count();
    both as f64 / top as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_and_opposite_orders() {
        let values: Vec<f32> = (0..100u8).map(f32::from).collect();
        let reversed: Vec<f32> = values.iter().map(|v| -v).collect();
        let same = compare(&values, &values, 1);
        assert!((same.rank_correlation - 1.0).abs() < 1e-12 && (same.recall - 1.0).abs() < 1e-12);
        let opposite = compare(&values, &reversed, 1);
        assert!((opposite.rank_correlation + 1.0).abs() < 1e-12 && opposite.recall == 0.0);
        assert!((compare(&values, &values, 2).recall - 1.0).abs() < 1e-12);
    }
}
