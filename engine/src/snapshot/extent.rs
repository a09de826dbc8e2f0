//! Which heads of a model a part of a sequence's state is of.

use std::fmt;
use std::ops::Range;

use crate::shard::HeadLayout;

/// Heads of a model whose state is in one place: those of a rank, or of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Decoder layers, all of the model's.
    pub layers: usize,
    /// KV heads of each layer, among those of the model.
    pub kv_heads: Range<usize>,
    /// KV heads of the model.
    pub total_kv_heads: usize,
    /// `G`: query heads of each KV head.
    pub group: usize,
    /// Which of these `G` are here: all of them, except where ranks share a KV head. They count
    /// where a policy keeps numbers of each query head.
    pub queries: Range<usize>,
}

impl Extent {
    /// What a rank holds.
    pub fn of(layout: &HeadLayout) -> Self {
        let first = layout.first_query_head;
        Self {
            layers: layout.layers,
            kv_heads: layout.kv_heads.clone(),
            total_kv_heads: layout.total_kv_heads,
            group: layout.group(),
            queries: first..first + layout.query_heads,
        }
    }

    /// KV heads here, over all layers.
    pub fn heads(&self) -> usize {
        self.layers * self.kv_heads.len()
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            layers,
            kv_heads,
            total_kv_heads,
            group,
            queries,
        } = self;
        write!(
            f,
            "KV heads {} to {} of {total_kv_heads} in {layers} layers",
            kv_heads.start, kv_heads.end
        )?;
        if queries.len() < *group {
            let (first, end) = (queries.start, queries.end);
            write!(f, ", query heads {first} to {end} of {group}")?;
        }
        Ok(())
    }
}
