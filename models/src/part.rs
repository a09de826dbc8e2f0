//! Which part of a model's matrices is asked for.

use std::ops::Range;

use crate::config::ModelConfig;

/// A part of a model: whole heads, and ranges of columns and rows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Part {
    /// KV heads.
    pub kv_heads: Range<usize>,
    /// Query heads: those of the KV heads, or some of those of a single one.
    pub query_heads: Range<usize>,
    /// `D`.
    pub head_dim: usize,
    /// Feed-forward columns.
    pub ffn: Range<usize>,
    /// Rows of the embedding and of the output projection.
    pub vocabulary: Range<usize>,
}

impl Part {
    /// The whole model.
    pub fn whole(config: &ModelConfig) -> Self {
        Self {
            kv_heads: 0..config.kv_heads,
            query_heads: 0..config.heads,
            head_dim: config.head_dim,
            ffn: 0..config.ffn,
            vocabulary: 0..config.vocabulary,
        }
    }

    /// Number of query heads.
    pub fn heads(&self) -> usize {
        self.query_heads.len()
    }

    /// Rows of the query projection, of all heads' rows in order; also columns of the output
    /// projection.
    pub fn query_rows(&self) -> Range<usize> {
        self.query_heads.start * self.head_dim..self.query_heads.end * self.head_dim
    }

    /// Rows of the key projection, and of the value projection.
    pub fn key_rows(&self) -> Range<usize> {
        self.kv_heads.start * self.head_dim..self.kv_heads.end * self.head_dim
    }
}
