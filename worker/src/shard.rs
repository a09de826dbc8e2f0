//! What part of a model a rank holds.

/// Where a rank stands in its group.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Place {
    /// This rank, from 0.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
}

impl Place {
    /// The only rank of a group.
    pub const ALONE: Self = Self { rank: 0, world_size: 1 };
}

impl Default for Place {
    fn default() -> Self {
        Self::ALONE
    }
}
