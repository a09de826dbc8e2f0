//! Latent memory: what remains of evicted entries, and how later queries read it.

pub mod centroid;

pub use centroid::Centroids;
use palimpsest_kernels::CentroidView;
use xxhash_rust::xxh3::Xxh3;

/// Memories a contract may name.
pub const NAMES: [&str; 2] = ["none", "centroid"];

/// Latent memory of one sequence on one rank. State is per KV head, so it shards as the cache does and needs no
/// collective. Causal by construction: it holds only what was evicted before the row that reads it.
pub trait Memory: Send {
    /// Takes in evicted entries of `head` (`layer * kv_heads + kv_head`) in position order; `keys` (post-RoPE) and
    /// `values`: `[n, D]`.
    fn absorb(&mut self, head: usize, keys: &[f32], values: &[f32]);
    /// What attention of `head` reads inside its softmax; `None` while nothing was evicted.
    fn centroids(&self, head: usize) -> Option<CentroidView<'_>>;
    /// Bytes held.
    fn bytes(&self) -> usize;
    /// Feeds the state to a digest.
    fn digest(&self, hash: &mut Xxh3);
}
