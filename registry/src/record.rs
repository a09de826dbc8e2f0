//! What is stored of ranks and groups.

use serde::{Deserialize, Serialize};

/// What a rank says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankRecord {
    /// Its number, from 0.
    pub rank: u32,
    /// Ranks of its group.
    pub world_size: u32,
    /// `host:port` at which coordinator and other ranks reach it.
    pub address: String,
    /// Drawn by the process when it starts: tells it from one that was there before.
    pub session: String,
}

impl RankRecord {
    /// A record of this process.
    pub fn new(rank: u32, world_size: u32, address: String) -> Self {
        Self {
            rank,
            world_size,
            address,
            session: format!("{:016x}", rand::random::<u64>()),
        }
    }
}

/// The last incarnation of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Its number.
    pub epoch: u64,
    /// Ranks.
    pub world_size: u32,
    /// The model that is served.
    pub model: String,
    /// Digest of what is the same on all ranks: weights, indexer, options, arithmetic and build.
    pub digest: String,
    /// Policies that requests may name.
    pub policies: Vec<String>,
}
