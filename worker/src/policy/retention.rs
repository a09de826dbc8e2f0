//! The learned, query-independent policy: a score per token and KV head, computed once from the hidden state that enters
//! attention, that may fade with age.
//!
//! Source: IndexMem++ retention scores (method section 3.1), with another law of decay. For the token at position `j`,
//! `s_j(t) = m_j + r ln(1 + (t - j) / AGE)`, `r <= 0` per layer and KV head. `m` is trained to predict the logarithm of an
//! attention probability, so scores of different heads and layers are comparable and budgets may be pooled; a term in
//! the logarithm of the age is then a power law of attention over distance, which goes on gently at lengths beyond those
//! trained on, where the published term, linear in the age, would leave nothing old.

use super::{HeadView, Ingest, Policy};
use crate::indexer::Indexer;
use std::sync::Arc;

/// Age scale in tokens; a constant, never the live length (method section 6.2).
pub const AGE: f32 = 256.0;
/// Values stored per slot: `m`.
pub const TERMS: usize = 1;

/// Weights of one layer's linear scorer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerScorer {
    /// `[K, E]`: one row per KV head.
    pub weight: Vec<f32>,
    /// `[K]`.
    pub bias: Vec<f32>,
    /// `[K]`: `r`, at most 0.
    pub rate: Vec<f32>,
}

/// Ranks by trained scorers.
pub struct Retention {
    indexer: Arc<Indexer>,
}

impl Retention {
    /// Name on the wire.
    pub const NAME: &'static str = "retention";

    /// The policy of a trained indexer.
    pub fn new(indexer: Arc<Indexer>) -> Self {
        Self { indexer }
    }
}

impl Policy for Retention {
    fn name(&self) -> &'static str {
        Self::NAME
    }
    fn comparable(&self) -> bool {
        true
    }
    fn ingest(&self) -> Ingest<'_> {
        Ingest::Retention
    }
    fn terms(&self) -> usize {
        TERMS
    }
    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        let rate = self.indexer.retention[head.layer].rate[head.kv_head];
        if rate == 0.0 {
            scores.copy_from_slice(head.terms);
            return;
        }
        for ((score, m), &position) in scores.iter_mut().zip(head.terms).zip(head.positions) {
            let age = head.at.saturating_sub(u64::from(position)) as f32;
            *score = m + rate * (age / AGE).ln_1p();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_fade_with_age_by_a_power_law() {
        let layer = LayerScorer { weight: vec![0.5; 6], bias: vec![0.5, 1.0], rate: vec![-1.0, 0.0] };
        let (query, associative, metadata) = (None, None, Default::default());
        let indexer = Indexer { kv_heads: 2, hidden: 3, retention: vec![layer], query, associative, metadata };
        let policy = Retention::new(Arc::new(indexer));
        let score = |kv_head: usize| {
            let mut scores = [0.0; 2];
            let view = HeadView {
                layer: 0,
                kv_head,
                at: 9192,
                sinks: 4,
                head_dim: 2,
                positions: &[1000, 9192],
                terms: &[-3.0, 2.0],
                mass: &[],
                keys: &[],
                values: &[],
                queries: crate::policy::expected::QueryView { moments: &[], next: 0, inv_freq: &[] },
            };
            policy.score(&view, &mut scores);
            scores
        };
        // 8,192 tokens are 32 times the scale.
        let [old, new] = score(0);
        assert!((old - (-3.0 - 33f32.ln())).abs() < 1e-5 && new == 2.0, "{old} {new}");
        assert_eq!(score(1), [-3.0, 2.0], "without a rate nothing fades");
    }
}
