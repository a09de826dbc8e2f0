//! Slots of a head as bytes of the host: what [`Cache::save_slots`](crate::Cache::save_slots)
//! writes and [`Cache::load_slots`](crate::Cache::load_slots) reads, the same on every device.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::shapes::{HeadPages, PageShape};

/// Where the parts of `L` slots of one KV head lie in their bytes. Elements and scales are as they
/// are stored, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredParts {
    /// Keys, rotated `[L, D]`.
    pub keys: Range<usize>,
    /// Values `[L, D]`.
    pub values: Range<usize>,
    /// Scales of keys as f16 `[L]`; empty where the type has none.
    pub key_scales: Range<usize>,
    /// Scales of values as f16 `[L]`; empty where the type has none.
    pub value_scales: Range<usize>,
}

// Elements are copied as the machine has them.
const _: () = assert!(cfg!(target_endian = "little"));

impl StoredParts {
    /// The parts of `len` slots of pages of this shape, one after the other from byte 0 on.
    pub const fn of(shape: PageShape, len: usize) -> Self {
        let row = shape.head_dim * shape.dtype.bytes();
        let scale = shape.dtype.scale_bytes();
        let (keys, values) = (len * row, 2 * len * row);
        Self {
            keys: 0..keys,
            values: keys..values,
            key_scales: values..values + len * scale,
            value_scales: values + len * scale..values + 2 * len * scale,
        }
    }

    /// Bytes of all parts.
    pub const fn bytes(&self) -> usize {
        self.value_scales.end
    }

    /// The ranges of all parts, in their order.
    pub fn all(&self) -> [Range<usize>; 4] {
        [
            self.keys.clone(),
            self.values.clone(),
            self.key_scales.clone(),
            self.value_scales.clone(),
        ]
    }
}

/// Checks that `bytes` are those of all slots of `heads`.
pub(crate) fn check_bytes(
    op: &'static str,
    shape: PageShape,
    heads: &[HeadPages<'_>],
    bytes: usize,
) -> Result<()> {
    let want = heads
        .iter()
        .map(|head| StoredParts::of(shape, head.len).bytes())
        .sum();
    if bytes == want {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        what: "bytes of slots",
        got: bytes,
        want,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::KvType;

    #[test]
    fn parts_fill_the_bytes_that_slots_cost() {
        for dtype in [KvType::Q8, KvType::F16, KvType::F32] {
            let shape = PageShape {
                head_dim: 24,
                dtype,
            };
            for len in [0, 1, 33] {
                let parts = StoredParts::of(shape, len);
                assert_eq!(parts.bytes(), len * dtype.slot_bytes(24));
                let mut end = 0;
                for part in parts.all() {
                    assert_eq!(part.start, end);
                    end = part.end;
                }
                assert_eq!(end, parts.bytes());
            }
        }
    }
}
