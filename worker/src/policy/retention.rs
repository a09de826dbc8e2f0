//! The learned, query-independent policy: a score per token and KV head, computed once from the hidden state that enters
//! attention, that may fade with age.
//!
//! Source: IndexMem++ retention scores (method section 3.1) in their intercept form. For the token at position `j`,
//! `s_j(t) = m_j + r_j * (t - j) / TAU = a_j + r_j * t / TAU` with `a_j = m_j - r_j * j / TAU`, `r_j <= 0`.
//! Here `m` is trained to predict the logarithm of an attention probability, so scores of different heads and layers are
//! comparable and budgets may be pooled.

use super::{HeadView, Ingest, Policy};
use crate::indexer::Indexer;
use std::sync::Arc;

/// Age scale in tokens; a constant, never the live length (method section 6.2).
pub const TAU: f32 = 16384.0;
/// Values stored per slot: intercept `a` and rate `r`.
pub const TERMS: usize = 2;

/// Weights of one layer's linear scorer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerScorer {
    /// `[K, E]`: one row per KV head.
    pub weight: Vec<f32>,
    /// `[K]`.
    pub bias: Vec<f32>,
    /// `[K]`: score lost per `TAU` tokens of age, at most 0.
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

    /// Intercept and rate of a token at `position` whose scorer gave `m` in `layer`, `kv_head`.
    pub fn terms_of(&self, layer: usize, kv_head: usize, position: u64, m: f32) -> [f32; TERMS] {
        let rate = self.indexer.retention[layer].rate[kv_head];
        [m - rate * (position as f32 / TAU), rate]
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
        Ingest::Retention(self)
    }
    fn terms(&self) -> usize {
        TERMS
    }
    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        let age = head.at as f32 / TAU;
        for (score, terms) in scores.iter_mut().zip(head.terms.chunks_exact(TERMS)) {
            *score = terms[0] + terms[1] * age;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_fade_with_age_as_the_pairwise_form_says() {
        let layer = LayerScorer { weight: vec![0.5; 6], bias: vec![0.5, 1.0], rate: vec![-1.0, 0.0] };
        let (query, associative, metadata) = (None, None, Default::default());
        let indexer = Indexer { kv_heads: 2, hidden: 3, retention: vec![layer], query, associative, metadata };
        let policy = Retention::new(Arc::new(indexer));
        let (j, m) = (1000u64, -3.0);
        let terms = policy.terms_of(0, 0, j, m);
        let view = HeadView {
            layer: 0,
            kv_head: 0,
            at: 9192,
            sinks: 4,
            head_dim: 2,
            positions: &[1000],
            terms: &terms,
            mass: &[],
            keys: &[],
            values: &[],
            queries: crate::policy::expected::QueryView { moments: &[], next: 0, inv_freq: &[] },
        };
        let mut score = [0.0];
        policy.score(&view, &mut score);
        assert!((score[0] - (m - (9192.0 - 1000.0) / TAU)).abs() < 1e-5);
    }
}
