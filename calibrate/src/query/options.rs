//! Shape and training.

/// Shape and training of the pairwise indexer.
#[derive(Debug, Clone, Copy)]
pub struct QueryOptions {
    /// `h`: indexer heads of one KV head.
    pub heads: usize,
    /// `d`: width of indexer queries and keys.
    pub dim: usize,
    /// Passes over the documents.
    pub epochs: usize,
    /// Learning rate at the start; it falls to 0 linearly.
    pub rate: f32,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self {
            heads: 2,
            dim: 8,
            epochs: 5,
            rate: 3e-3,
        }
    }
}
