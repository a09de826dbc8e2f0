//! Latent memory: what remains of evicted entries, and how later queries read it.

pub mod associative;
pub mod centroid;

pub use associative::Associative;
pub use centroid::Centroids;

use crate::error::{Error, Result};
use associative::AssociativeWeights;
use palimpsest_kernels::{AssociativeLayer, CentroidView};
use std::ops::Range;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// No memory.
pub const NONE: &str = "none";
/// Name of [`Associative`] on the wire.
pub const ASSOCIATIVE: &str = "associative";
/// Name of [`Centroids`] on the wire.
pub const CENTROID: &str = "centroid";

/// Latent memory of one sequence on one rank. State is per KV head, so it shards as the cache does and needs no
/// collective. Causal by construction: it holds only what was evicted before the row that reads it.
pub trait Memory: Send {
    /// Takes in evicted entries of `head` (`layer * kv_heads + kv_head`) in position order; `keys` (post-RoPE) and
    /// `values`: `[n, D]`.
    fn absorb(&mut self, head: usize, keys: &[f32], values: &[f32]);
    /// What attention of `head` reads inside its softmax; `None` while nothing was evicted.
    fn centroids(&self, head: usize) -> Option<CentroidView<'_>>;
    /// What is added to attention of `head`; `None` while nothing was evicted.
    fn readout(&self, head: usize) -> Option<Readout<'_>>;
    /// Bytes held.
    fn bytes(&self) -> usize;
    /// Feeds the state to a digest.
    fn digest(&self, hash: &mut Xxh3);
}

/// What [`palimpsest_kernels::Backend::readout`] reads of one KV head.
#[derive(Debug, Clone, Copy)]
pub struct Readout<'a> {
    /// The layer's weights.
    pub weights: AssociativeLayer<'a>,
    /// `A`, `[f, D]`.
    pub sums: &'a [f32],
    /// `b`, `[f]`.
    pub norms: &'a [f32],
}

/// What of a rank decides the size of a memory.
#[derive(Debug, Clone)]
pub struct MemoryShape {
    /// Decoder layers.
    pub layers: usize,
    /// KV heads of this rank.
    pub kv_heads: Range<usize>,
    /// `D`.
    pub head_dim: usize,
    /// Bytes of one cache entry of one KV head.
    pub entry_bytes: usize,
}

/// Memories that a contract may name: those that need no training, and what was trained.
pub fn names(associative: bool) -> Vec<&'static str> {
    if associative { vec![NONE, ASSOCIATIVE, CENTROID] } else { vec![NONE, CENTROID] }
}

/// An empty memory called `name`, as large as `entries` cache entries per KV head.
///
/// # Errors
/// [`Error::Contract`] for an unknown name, a memory that was not trained, and entries that do not pay for the least of it.
pub fn create(
    name: &str,
    entries: u32,
    shape: &MemoryShape,
    associative: Option<&Arc<AssociativeWeights>>,
) -> Result<Option<Box<dyn Memory>>> {
    let MemoryShape { layers, kv_heads, head_dim, entry_bytes } = shape;
    let paid = |units: usize, what: &str| {
        let refused = || Error::Contract(format!("memory_slots {entries} does not pay for one {what}"));
        if units == 0 { Err(refused()) } else { Ok(units) }
    };
    match (name, associative) {
        (NONE, _) => Ok(None),
        (CENTROID, _) => {
            let slots = paid(Centroids::slots_for(entries as usize, *entry_bytes, *head_dim), "centroid")?;
            Ok(Some(Box::new(Centroids::new(layers * kv_heads.len(), slots, *head_dim))))
        }
        (ASSOCIATIVE, Some(weights)) => {
            let features = paid(Associative::features_for(entries as usize, *entry_bytes, *head_dim), "feature")?;
            let kv_heads = (kv_heads.len(), kv_heads.start);
            Ok(Some(Box::new(Associative::new(weights.clone(), features, kv_heads))))
        }
        (other, weights) => {
            let names = names(weights.is_some()).join(", ");
            Err(Error::Contract(format!("memory `{other}` is not one of {names}")))
        }
    }
}
