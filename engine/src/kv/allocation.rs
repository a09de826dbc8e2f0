//! What every allocation of slots to heads goes by.

use super::HeadBudget;

/// Heads of this rank among those of the model.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    /// KV heads here.
    pub own: usize,
    /// The first of them.
    pub first: usize,
    /// KV heads of the model.
    pub total: usize,
}

/// How the slots that stay are dealt to heads.
#[derive(Debug, Clone, Copy)]
pub struct Allocation {
    /// Heads of this rank.
    pub columns: Columns,
    /// Mean number of candidates that a head may keep.
    pub take: usize,
    /// Which heads share.
    pub head_budget: HeadBudget,
}

/// Share of the mean evictable slots that every head keeps for itself under a pooled budget.
pub const FLOOR_SHARE: f32 = 0.15;

/// Candidates that every head keeps for itself under a pooled budget, where heads keep `take` on
/// average.
pub fn floor_of(take: usize) -> usize {
    (take as f32 * FLOOR_SHARE) as usize
}
