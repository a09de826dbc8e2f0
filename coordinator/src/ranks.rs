//! The ranks of the group that serves, as people are shown them.

use std::sync::{Arc, PoisonError, RwLock};

use palimpsest_proto::internal::v1::RankInfo;

/// A rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankShown {
    /// Its number.
    pub rank: u32,
    /// What it computes on, in words.
    pub device: String,
    /// Bytes of its pages.
    pub page_bytes: u64,
    /// Bytes that latent memories may take beside them.
    pub latent_bytes: u64,
    /// Bytes of host memory for kept states.
    pub snapshot_bytes: u64,
}

/// The ranks of a group, which may be replaced by those of another.
#[derive(Debug, Clone, Default)]
pub struct Ranks(Arc<RwLock<Vec<RankShown>>>);

impl Ranks {
    /// Takes the place of the former ranks.
    pub fn set(&self, ranks: &[RankInfo]) {
        let shown = |info: &RankInfo| RankShown {
            rank: info.rank,
            device: info.device.clone(),
            page_bytes: info.kv_arena_bytes,
            latent_bytes: info.kv_latent_bytes,
            snapshot_bytes: info.snapshot_bytes,
        };
        let ranks = ranks.iter().map(shown).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = ranks;
    }

    /// Those that there are, in rank order.
    pub fn shown(&self) -> Vec<RankShown> {
        let ranks = self.0.read().unwrap_or_else(PoisonError::into_inner);
        ranks.clone()
    }
}
