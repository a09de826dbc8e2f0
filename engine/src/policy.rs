//! Eviction policies: one number per slot, higher = keep. Protection of sinks and window, ranking
//! and gathering are shared code in `kv`.

mod attention;
pub mod expected;
mod geometry;
pub mod pairwise;
pub mod retention;
mod simple;

use std::sync::Arc;

pub use attention::{H2o, SnapKv, Tova};
pub use expected::ExpectedAttention;
pub use geometry::{KNorm, KeyDiff, LagKv};
pub use pairwise::PairwiseIndexer;
use palimpsest_kernels::{Reduce, ScoreRule};
pub use retention::Retention;
pub(crate) use simple::splitmix;
pub use simple::{Full, RandomPolicy, Window};

use crate::error::{Error, Result};

/// One KV head of one layer at a boundary.
pub struct HeadView<'a> {
    /// Decoder layer.
    pub layer: usize,
    /// KV head, over all ranks.
    pub kv_head: usize,
    /// Absolute position of the last token read.
    pub at: u64,
    /// Protected first positions.
    pub sinks: usize,
    /// `D`.
    pub head_dim: usize,
    /// Absolute position of every slot.
    pub positions: &'a [u32],
    /// What the policy stored, `terms` values per slot.
    pub terms: &'a [f32],
    /// Attention per slot, observed or expected, over all query heads of the KV head, or what else
    /// the policy keeps for each slot; empty if it keeps nothing.
    pub mass: &'a [f32],
    /// Keys (post-RoPE) `[L, D]`, empty unless the policy reads slots.
    pub keys: &'a [f32],
    /// Values `[L, D]`, likewise.
    pub values: &'a [f32],
    /// How queries are distributed; without moments unless the policy reads queries.
    pub queries: expected::QueryView<'a>,
}

/// Which attention rows a policy looks at. Rows are chosen by absolute position, so the answer does
/// not depend on how a sequence was cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observe {
    /// Only rows among the last this many before a boundary; `None`: all rows.
    pub last_rows: Option<u64>,
    /// How rows are reduced.
    pub reduce: Reduce,
}

/// What a policy wants computed for every new token.
#[derive(Clone, Copy)]
pub enum Ingest<'a> {
    /// Nothing.
    Nothing,
    /// The retention scorer's notes, from the layer's normalised hidden state.
    Retention,
    /// The pairwise indexer's keys and scores, likewise.
    Query(&'a PairwiseIndexer),
}

/// Scores slots at a boundary. Implementations are pure functions of their view.
pub trait Policy: Send + Sync {
    /// Name on the wire.
    fn name(&self) -> &'static str;
    /// Whether scores of different heads and layers can be compared, so that budgets may be pooled.
    fn comparable(&self) -> bool;
    /// Attention rows to observe.
    fn observes(&self) -> Option<Observe> {
        None
    }
    /// Whether slots carry a number that goes on from step to step: observed attention, or the
    /// like.
    fn keeps_mass(&self) -> bool {
        self.observes().is_some()
    }
    /// What observed attention of each of the rows at `positions` is multiplied with; `None`: 1.
    fn row_weights(&self, positions: std::ops::Range<u64>) -> Option<Vec<f32>> {
        let _ = positions;
        None
    }
    /// Whether observed attention starts anew after each boundary.
    fn forgets_mass(&self) -> bool {
        false
    }
    /// Whether keys and values are read at a boundary.
    fn reads_slots(&self) -> bool {
        false
    }
    /// What each of this rank's query heads is expected to give to every slot, for policies that
    /// read queries; attention of the view is empty. The mean over all query heads of the KV head
    /// is what [`Self::score`] sees.
    fn expected(&self, head: &HeadView<'_>) -> Vec<Vec<f32>> {
        let _ = head;
        Vec::new()
    }
    /// Whether the distribution of queries is kept. Costs a download of all queries and a sum over
    /// their products.
    fn reads_queries(&self) -> bool {
        false
    }
    /// Computation per new token.
    fn ingest(&self) -> Ingest<'_> {
        Ingest::Nothing
    }
    /// Values stored per slot, on the host.
    fn terms(&self) -> usize {
        0
    }
    /// Whether a number is kept with each slot on the device.
    fn keeps_notes(&self) -> bool {
        matches!(self.ingest(), Ingest::Retention)
    }
    /// How the device scores a head's slots by itself; `None`: [`Self::score`] does, here.
    fn rule(&self, layer: usize, kv_head: usize) -> Option<ScoreRule> {
        let _ = (layer, kv_head);
        None
    }
    /// Writes one score per slot. Policies with a rule are not asked; without either, all slots are
    /// worth the same.
    fn score(&self, head: &HeadView<'_>, scores: &mut [f32]) {
        let _ = head;
        scores.fill(0.0);
    }
}

/// Policies that need no trained weights.
pub fn heuristics() -> Vec<Arc<dyn Policy>> {
    vec![
        Arc::new(Full),
        Arc::new(Window),
        Arc::new(RandomPolicy),
        Arc::new(H2o),
        Arc::new(Tova),
        Arc::new(SnapKv),
        Arc::new(KNorm),
        Arc::new(KeyDiff),
        Arc::new(LagKv),
        Arc::new(ExpectedAttention),
    ]
}

/// The policy called `name` among `known`.
///
/// # Errors
/// [`Error::Contract`] lists the known names.
pub fn find(known: &[Arc<dyn Policy>], name: &str) -> Result<Arc<dyn Policy>> {
    known
        .iter()
        .find(|p| p.name() == name)
        .cloned()
        .ok_or_else(|| {
            let names: Vec<_> = known.iter().map(|p| p.name()).collect();
            Error::Contract(format!(
                "policy `{name}` is not one of {}",
                names.join(", ")
            ))
        })
}

#[cfg(test)]
mod tests;
