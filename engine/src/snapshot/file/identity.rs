//! Which state a file holds.

use palimpsest_kernels::PageShape;

use crate::snapshot::error::same;
use crate::snapshot::{Extent, SnapshotError};

/// `format` entry of a snapshot file's metadata.
pub const FORMAT: &str = "palimpsest-snapshot";
/// Version of the files that are written here. A change of what a tensor means is another one.
pub const VERSION: u64 = 1;

/// Which state a file holds, and of what model: what its reader must know to believe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The state's name, which is the coordinator's. Equal names, equal states.
    pub name: Vec<u8>,
    /// Digest of all of a model that its states depend on: weights, scorers and the
    /// device's arithmetic.
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

impl Identity {
    /// Checks that heads are of the model.
    pub(super) fn check(&self, extent: &Extent, shape: PageShape) -> Result<(), SnapshotError> {
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
