//! Latent memory: what remains of evicted entries. Its state is the backend's
//! ([`palimpsest_kernels::latent`]); here is which one a contract asks for, how large it is, and
//! whose it is.

pub mod associative;

use std::ops::Range;

use associative::{AssociativeWeights, DeviceAssociative};
use palimpsest_kernels::{
    AssociativeLayer, Backend, Features, LatentHead, LatentId, LatentKind, QkvShape,
};

use crate::error::{Error, Result};
use crate::indexer::{Reader, Trained};

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
    /// Makes room for the state of `heads` KV heads with `D = head_dim`.
    ///
    /// # Errors
    /// Those of the kernels when the device has no room.
    pub fn open<B: Backend>(
        backend: &B,
        pages: &mut B::Pages,
        kind: LatentKind,
        heads: usize,
        head_dim: usize,
    ) -> Result<Self> {
        Ok(Self {
            id: backend.alloc_latent(pages, kind, heads)?,
            kind,
            bytes: 4 * heads * kind.head_values(head_dim),
        })
    }

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

/// What was trained for memories, on a rank's device.
pub struct Memories<B: Backend> {
    associative: Option<DeviceAssociative<B>>,
}

impl<B: Backend> Memories<B> {
    /// Nothing was trained.
    pub const fn untrained() -> Self {
        Self { associative: None }
    }

    /// Uploads what a file has for memories of a model with `D = head_dim`, of this rank's
    /// `kv_heads`.
    ///
    /// # Errors
    /// [`Error::Indexer`] when it is for a model with other heads; those of the kernels.
    pub fn load(
        backend: &B,
        reader: &mut Reader<'_>,
        head_dim: usize,
        kv_heads: Range<usize>,
    ) -> Result<Self> {
        let Some(weights) = AssociativeWeights::read(reader)? else {
            return Ok(Self::untrained());
        };
        if weights.head_dim != head_dim {
            return Err(Error::Indexer(format!(
                "made for a model with heads of {}; this one has heads of {head_dim}",
                weights.head_dim
            )));
        }
        let associative = DeviceAssociative::load(backend, &weights, kv_heads)?;
        Ok(Self {
            associative: Some(associative),
        })
    }

    /// Trained features of [`ASSOCIATIVE`], `F`.
    pub fn features(&self) -> Option<usize> {
        self.associative.as_ref().map(DeviceAssociative::count)
    }

    /// What memories are written with.
    pub fn writer(&self) -> Option<Features<'_, B::Buffer>> {
        self.associative.as_ref().map(DeviceAssociative::features)
    }

    /// What a readout of a layer with these heads reads.
    pub fn readout(&self, layer: usize, shape: QkvShape) -> Option<AssociativeLayer<'_, B>> {
        let associative = self.associative.as_ref()?;
        Some(associative.layer(layer, shape))
    }
}

/// What a contract pays for a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payment {
    /// Cache entries per KV head.
    pub entries: u32,
    /// Bytes of one of them.
    pub entry_bytes: usize,
    /// `D`.
    pub head_dim: usize,
}

/// The memory called `name`, as large as it is paid for. `features`: those that were trained, `F`.
///
/// # Errors
/// [`Error::Contract`] for an unknown name, a memory that was not trained, and entries that do not
/// pay for the least of it.
pub fn kind(name: &str, payment: Payment, features: Option<usize>) -> Result<Option<LatentKind>> {
    let Payment {
        entries,
        entry_bytes,
        head_dim,
    } = payment;
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
        let kind = |name, entries, features| {
            let payment = Payment {
                entries,
                entry_bytes: 256,
                head_dim: 64,
            };
            kind(name, payment, features)
        };
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
