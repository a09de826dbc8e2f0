//! A snapshot as a file: safetensors, of the heads of one rank or of several.
//!
//! What the file says of itself stands in its metadata ([`Header`]): its version, whose state it
//! is, and a SHA-256 over all of that and every tensor. Nothing in it depends on the number of
//! ranks or on the device: [`Snapshot::join`] makes any rank's part out of files that cover it.
//!
//! Every KV head has tensors of its own, named `{layer}.{kv_head}.{part}`:
//!
//! | part | type | shape | |
//! |---|---|---|---|
//! | `keys`, `values` | F32, F16 or I8 | `[L, D]` | as they are stored |
//! | `key_scales`, `value_scales` | F16 | `[L]` | of 8-bit elements |
//! | `positions`, `rotary`, `notes` | U32 | `[L]` | the latter two where there are any |
//! | `terms` | F32 | `[L, t]` | what the policy's hook stores with slots |
//! | `mass` | F32 | `[n, L]` | for each query head, or one line |
//! | `sums` | F64 | `[n, m]` | for each query head, or one line |
//! | `memory_keys`, `memory_values`, `memory_counts` | F32 | `[r, D]`, `[r]` | centroids |
//! | `memory_sums`, `memory_norms` | F32 | `[f, D]`, `[f]` | associative memory |

mod checksum;
mod decode;
mod describe;
mod encode;
mod header;
mod tensors;

use palimpsest_kernels::PageShape;

pub use self::describe::{Description, describe, is_snapshot, seal};
pub use self::header::Header;
use super::error::same;
use super::{Extent, Snapshot, SnapshotError};

/// `format` entry of a snapshot file's metadata.
pub const FORMAT: &str = "palimpsest-snapshot";
/// Version of the files that are written here. A change of what a tensor means is another one.
pub const VERSION: u64 = 1;

/// Which state a file holds, and of what model: what its reader must know to believe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The state's name, which is the coordinator's. Equal names, equal states.
    pub name: Vec<u8>,
    /// Digest of all of a model that its states depend on: weights and scorers.
    pub model: Vec<u8>,
    /// Tokens between two boundaries.
    pub stride: u64,
    /// Head size and type of elements.
    pub shape: PageShape,
    /// Decoder layers.
    pub layers: usize,
    /// KV heads of the model.
    pub total_kv_heads: usize,
    /// Query heads of each KV head.
    pub group: usize,
}

impl Snapshot {
    /// Bytes of a file of this state.
    ///
    /// # Errors
    /// [`SnapshotError::Foreign`] where `identity` is of another cache or model.
    pub fn encode(&self, identity: &Identity) -> Result<Vec<u8>, SnapshotError> {
        encode::encode(self, identity)
    }

    /// The state in a file.
    ///
    /// # Errors
    /// [`SnapshotError`] says what is wrong with the file, or that it holds another state than the
    /// `expected` one.
    pub fn decode(bytes: &[u8], expected: &Identity) -> Result<Self, SnapshotError> {
        decode::decode(bytes, expected)
    }
}

impl Identity {
    /// Checks that heads are of the model.
    fn check(&self, extent: &Extent, shape: PageShape) -> Result<(), SnapshotError> {
        same("element type", &shape.dtype, &self.shape.dtype, |dtype| {
            dtype.name().to_owned()
        })?;
        let (kv_heads, total) = (extent.total_kv_heads, self.total_kv_heads);
        let numbers = [
            ("head size", shape.head_dim, self.shape.head_dim),
            ("number of layers", extent.layers, self.layers),
            ("number of KV heads", kv_heads, total),
            ("number of query heads", extent.group, self.group),
        ];
        numbers
            .iter()
            .try_for_each(|(what, found, expected)| same(what, found, expected, usize::to_string))
    }
}

#[cfg(test)]
mod tests;
