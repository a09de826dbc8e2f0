//! Scores of a pairwise indexer.

use crate::error::Result;

/// Heads and width of a pairwise indexer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexShape {
    /// Indexer heads of one KV head.
    pub heads: usize,
    /// Width of indexer queries and keys.
    pub dim: usize,
}

/// New queries and all slots of one KV head of one sequence, for [`Indexing::index`]. Arrays are on
/// the host, like everything that policies store there.
#[derive(Debug)]
pub struct IndexItem<'a> {
    /// New rows `R`, whose own slots are the last ones: row `i` sees slots `0 .. L - R + i + 1`.
    pub rows: usize,
    /// Indexer queries `[R, heads, dim]`.
    pub queries: &'a [f32],
    /// Weights of the heads `[R, heads]`.
    pub weights: &'a [f32],
    /// Indexer keys of the slots `[L, dim]`.
    pub keys: &'a [f32],
    /// Largest score of each slot so far `[L]`; negative infinity where no query has seen it.
    pub scores: &'a mut [f32],
}

/// A device that scores pairs of new queries and slots.
pub trait Indexing {
    /// Raises the slots' scores to the largest over the new rows of `sum_h weight[h] *
    /// relu(<query[h], key>)`, the lightning indexer of IndexMem (arXiv 2605.25475).
    fn index(&self, shape: IndexShape, items: &mut [IndexItem<'_>]) -> Result<()>;
}
