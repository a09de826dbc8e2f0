//! Where a rank stands, and what is dealt to ranks.

use std::ops::Range;

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
    pub const ALONE: Self = Self {
        rank: 0,
        world_size: 1,
    };
}

impl Default for Place {
    fn default() -> Self {
        Self::ALONE
    }
}

/// Part `index` of `0 .. width` cut into `count` parts that are as even as can be: the first ones
/// are longer by one where `count` does not divide `width`.
pub fn even(width: usize, index: usize, count: usize) -> Range<usize> {
    let (base, extra) = (width / count, width % count);
    let start = index * base + index.min(extra);
    start..start + base + usize::from(index < extra)
}
