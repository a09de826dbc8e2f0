//! Latent memory: what remains of evicted entries. Its state is the backend's
//! ([`palimpsest_kernels::latent`]); here is which one a contract asks for, how large it is, and
//! whose it is.

pub mod associative;

pub use associative::DeviceAssociative;
use palimpsest_kernels::{LatentHead, LatentId, LatentKind};

use crate::error::{Error, Result};

/// No memory.
pub const NONE: &str = "none";
/// Name of [`LatentKind::Associative`] on the wire.
pub const ASSOCIATIVE: &str = "associative";
/// Name of [`LatentKind::Centroids`] on the wire.
pub const CENTROID: &str = "centroid";

/// Latent memory of one sequence on one rank. State is per KV head, so it shards as the cache does
/// and needs no collective. Causal by construction: it holds only what was evicted before the row
/// that reads it.
#[derive(Debug)]
pub struct Memory {
    /// Where its state is, beside the pages.
    pub id: LatentId,
    /// What it holds of each KV head.
    pub kind: LatentKind,
    /// Bytes of its state.
    pub bytes: usize,
}

impl Memory {
    /// What attention of `head` (`layer * kv_heads + kv_head`) reads inside its softmax.
    pub fn centroids(&self, head: usize) -> Option<LatentHead> {
        matches!(self.kind, LatentKind::Centroids { .. })
            .then_some(LatentHead { id: self.id, head })
    }

    /// What is added to attention of `head`.
    pub fn readout(&self, head: usize) -> Option<LatentHead> {
        matches!(self.kind, LatentKind::Associative { .. })
            .then_some(LatentHead { id: self.id, head })
    }
}

/// Memories that a contract may name: those that need no training, and what was trained.
pub fn names(associative: bool) -> Vec<&'static str> {
    if associative {
        vec![NONE, ASSOCIATIVE, CENTROID]
    } else {
        vec![NONE, CENTROID]
    }
}

/// The memory called `name`, as large as `entries` cache entries of `entry_bytes` each per KV head.
/// `features`: those that were trained, `F`.
///
/// # Errors
/// [`Error::Contract`] for an unknown name, a memory that was not trained, and entries that do not
/// pay for the least of it.
pub fn kind(
    name: &str,
    entries: u32,
    (entry_bytes, head_dim): (usize, usize),
    features: Option<usize>,
) -> Result<Option<LatentKind>> {
    let paid = |one: LatentKind, what: &str| match entries as usize * entry_bytes
        / (4 * one.head_values(head_dim))
    {
        0 => Err(Error::Contract(format!(
            "memory_slots {entries} does not pay for one {what}"
        ))),
        units => Ok(units),
    };
    match (name, features) {
        (NONE, _) => Ok(None),
        (CENTROID, _) => {
            let most = paid(LatentKind::Centroids { most: 1 }, "centroid")?;
            Ok(Some(LatentKind::Centroids { most }))
        }
        (ASSOCIATIVE, Some(trained)) => {
            let paid = paid(LatentKind::Associative { features: 1 }, "feature")?;
            Ok(Some(LatentKind::Associative {
                features: paid.min(trained),
            }))
        }
        (other, features) => {
            let names = names(features.is_some()).join(", ");
            Err(Error::Contract(format!(
                "memory `{other}` is not one of {names}"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_is_as_large_as_its_entries_pay_for() {
        let kind = |name, entries, features| kind(name, entries, (256, 64), features);
        // A feature is 65 values, a centroid 129; an entry pays for 64.
        let features = |features| Some(LatentKind::Associative { features });
        assert_eq!(
            kind(ASSOCIATIVE, 33, Some(100)).expect("a memory"),
            features(32)
        );
        assert_eq!(
            kind(ASSOCIATIVE, 33, Some(8)).expect("a memory"),
            features(8)
        );
        assert_eq!(
            kind(CENTROID, 33, None).expect("a memory"),
            Some(LatentKind::Centroids { most: 16 })
        );
        assert_eq!(kind(NONE, 0, None).expect("no memory"), None);
        let refused = |name, entries, features| match kind(name, entries, features) {
            Err(Error::Contract(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(refused(CENTROID, 2, None).contains("one centroid"));
        assert!(refused(ASSOCIATIVE, 1, Some(8)).contains("one feature"));
        assert_eq!(
            refused(ASSOCIATIVE, 33, None),
            "memory `associative` is not one of none, centroid"
        );
    }
}
