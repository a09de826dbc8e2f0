//! The learned, query-independent policy: a score per token and KV head, computed once from the
//! hidden state that enters attention, that may fade with age.
//!
//! Source: IndexMem++ retention scores (method section 3.1), with another law of decay. For the
//! token at position `j`, `s_j(t) = m_j + r ln(1 + (t - j) / AGE)`, `r <= 0` per layer and KV head.
//! `m` is trained to predict the logarithm of an attention probability, so scores of different
//! heads and layers are comparable and budgets may be pooled; a term in the logarithm of the age is
//! then a power law of attention over distance, which goes on gently at lengths beyond those
//! trained on, where the published term, linear in the age, would leave nothing old.
//!
//! Text needs what is recent, questions may need what is old, and one number per token has to
//! choose. A file may therefore hold two scorers: `s_j(t) = max(m_j, n_j + r (t - j) / AGE)`. A
//! token stays for the better of two reasons: that it may be asked for at any time, or that it is
//! in use now, which passes. Here the age is linear, since nothing old hangs on it.

use std::sync::Arc;

use palimpsest_kernels::ScoreRule;

use super::{Ingest, Policy};
use crate::indexer::Indexer;

/// Age scale in tokens; a constant, never the live length (method section 6.2).
pub const AGE: f32 = 256.0;

/// Weights of one layer's linear scorer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerScorer {
    /// `[K, E]`: one row per KV head.
    pub weight: Vec<f32>,
    /// `[K]`.
    pub bias: Vec<f32>,
    /// `[K]`: `r`, at most 0; 0 beside a scorer of what is in use.
    pub rate: Vec<f32>,
    /// `n`, where a file has two scorers.
    pub recent: Option<RecentScorer>,
}

/// Weights of one layer's scorer of what is in use now.
#[derive(Debug, Clone, PartialEq)]
pub struct RecentScorer {
    /// `[K, E]`.
    pub weight: Vec<f32>,
    /// `[K]`.
    pub bias: Vec<f32>,
    /// `[K]`: nats for every [`AGE`] tokens, at most 0.
    pub rate: Vec<f32>,
}

impl LayerScorer {
    /// How a head's notes are turned into scores.
    pub fn rule(&self, kv_head: usize) -> ScoreRule {
        match &self.recent {
            Some(recent) => ScoreRule::Either {
                rate: recent.rate[kv_head],
                scale: AGE,
            },
            None => ScoreRule::Fading {
                rate: self.rate[kv_head],
                scale: AGE,
            },
        }
    }
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
    fn rule(&self, layer: usize, kv_head: usize) -> Option<ScoreRule> {
        Some(self.indexer.retention[layer].rule(kv_head))
    }
}
