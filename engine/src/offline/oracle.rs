//! Policies that look ahead. They are for calibration and for the evaluation's upper bound, never
//! for requests.

use std::ops::Range;
use std::sync::{Arc, RwLock};

use palimpsest_kernels::Reduce;

use crate::policy::{Attention, HeadView, Needs, Observe, Policy};

/// What the rows of a sequence count for.
#[derive(Debug, Clone, Default)]
pub struct RowWeights {
    /// Position of the first row that has a weight.
    pub first: u64,
    /// Weights of the rows from there on. All other rows count for nothing.
    pub weights: Vec<f32>,
}

/// Keeps everything and records the largest weighted attention probability that every slot
/// received.
#[derive(Default)]
pub struct MaxAttention {
    weights: Arc<RwLock<RowWeights>>,
}

impl MaxAttention {
    /// Name in contracts.
    pub const NAME: &'static str = "max-attention";

    /// Where the weights of the next rows are put.
    pub fn weights(&self) -> Arc<RwLock<RowWeights>> {
        self.weights.clone()
    }
}

impl Policy for MaxAttention {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn comparable(&self) -> bool {
        true
    }

    fn needs(&self) -> Needs {
        Needs {
            attention: Attention::Observed(Observe {
                last_rows: None,
                reduce: Reduce::Max,
                forgets: false,
            }),
            ..Needs::default()
        }
    }

    fn row_weights(&self, positions: Range<u64>) -> Option<Vec<f32>> {
        let RowWeights { first, weights } = &*self.weights.read().expect("no writer panics");
        let of = |position: u64| {
            let known = position
                .checked_sub(*first)
                .and_then(|row| weights.get(row as usize));
            known.copied().unwrap_or(0.0)
        };
        Some(positions.map(of).collect())
    }

    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        scores.copy_from_slice(head.mass);
    }
}

/// Scores known beforehand, per layer and KV head and position.
#[derive(Debug, Clone, Default)]
pub struct ScoreTable {
    /// KV heads per layer.
    pub kv_heads: usize,
    /// `layer * kv_heads + kv_head`, one score per position.
    pub heads: Vec<Vec<f32>>,
}

/// Ranks by a table of scores. Positions beyond the table rank highest.
#[derive(Default)]
pub struct Oracle {
    table: Arc<RwLock<ScoreTable>>,
}

impl Oracle {
    /// Name in contracts.
    pub const NAME: &'static str = "oracle";

    /// Where the scores of the next sequence are put.
    pub fn table(&self) -> Arc<RwLock<ScoreTable>> {
        self.table.clone()
    }
}

impl Policy for Oracle {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn comparable(&self) -> bool {
        true
    }

    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        let table = self.table.read().expect("no writer panics");
        let known = table.heads.get(head.layer * table.kv_heads + head.kv_head);
        for (score, &position) in scores.iter_mut().zip(head.positions) {
            *score = known
                .and_then(|k| k.get(position as usize))
                .copied()
                .unwrap_or(f32::MAX);
        }
    }
}
