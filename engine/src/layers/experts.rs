//! Which experts tokens go to.

use palimpsest_models::config::Experts;

/// Rows of a step that go to one expert.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Assigned {
    /// The rows, increasing.
    pub rows: Vec<usize>,
    /// For each of them what the expert's output is multiplied with.
    pub weights: Vec<f32>,
}

/// Deals rows to experts by their router logits `[T, X]`: each row goes to the experts with the
/// largest ones, of equal ones to the first. Weights are the softmax of all logits of the row,
/// divided by their sum over the chosen experts where the model says so. Computed in f32 row by
/// row, so what a row gets does not depend on the others.
///
/// Source: Mixtral (arXiv 2401.04088), Qwen3 (arXiv 2505.09388), as transformers 4.57 computes it.
pub fn assign(logits: &[f32], experts: Experts) -> Vec<Assigned> {
    let mut assigned = vec![Assigned::default(); experts.count];
    let mut order: Vec<usize> = Vec::with_capacity(experts.count);
    for (row, logits) in logits.chunks_exact(experts.count).enumerate() {
        order.clear();
        order.extend(0..experts.count);
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let most = logits[order[0]];
        let share = |&expert: &usize| (logits[expert] - most).exp();
        let chosen = &order[..experts.used];
        let sum: f32 = if experts.normalise {
            chosen.iter().map(share).sum()
        } else {
            (0..experts.count).map(|expert| share(&expert)).sum()
        };
        for expert in chosen {
            assigned[*expert].rows.push(row);
            assigned[*expert].weights.push(share(expert) / sum);
        }
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experts(normalise: bool) -> Experts {
        Experts {
            count: 4,
            used: 2,
            normalise,
        }
    }

    #[test]
    fn rows_go_to_their_largest_logits_and_ties_to_the_first() {
        let logits = [0.0, 1.0, 3.0, 2.0, 5.0, 5.0, 5.0, 1.0];
        let assigned = assign(&logits, experts(true));
        let rows: Vec<_> = assigned.iter().map(|it| it.rows.clone()).collect();
        assert_eq!(rows, [vec![1], vec![1], vec![0], vec![0]]);
        assert_eq!(assigned[0].weights, [0.5]);
        let larger = 1.0 / (1.0 + (-1f32).exp());
        assert!((assigned[2].weights[0] - larger).abs() < 1e-6);
    }

    #[test]
    fn weights_that_are_not_normalised_are_shares_of_all_experts() {
        let logits = [0.0, 1.0, 3.0, 2.0];
        let assigned = assign(&logits, experts(false));
        let sum: f32 = logits.iter().map(|l: &f32| l.exp()).sum();
        for expert in [2, 3] {
            let want = logits[expert].exp() / sum;
            assert!((assigned[expert].weights[0] - want).abs() < 1e-6);
        }
    }

    #[test]
    fn a_row_goes_the_same_way_in_any_company() {
        let rows: Vec<f32> = (0..12 * 4u32).map(|i| (i * 37 % 11) as f32 / 3.0).collect();
        let all = assign(&rows, experts(true));
        for row in 0..12 {
            let alone = assign(&rows[row * 4..][..4], experts(true));
            for (expert, alone) in alone.iter().enumerate() {
                let at = all[expert].rows.iter().position(|&r| r == row);
                let weight = at.map(|at| all[expert].weights[at].to_bits());
                assert_eq!(weight, alone.weights.first().map(|w| w.to_bits()));
            }
        }
    }
}
