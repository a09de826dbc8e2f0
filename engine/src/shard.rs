//! What part of a model a rank holds.
//!
//! Attention is split by KV head with its query heads. With more ranks than KV heads several ranks
//! share one, two in general: its query heads are dealt to them, its keys and values are held by
//! each, so their cache is not divided further. Feed-forward columns are dealt so that every rank
//! holds the same number of weights in all, whatever its share of attention; embedding and output
//! rows are split evenly. Experts are all dealt by column, like one network
//! (`decoder::feed_forward` says why).
//!
//! Products that ranks sum (attention output, feed-forward output) are summed unit by unit
//! ([`palimpsest_kernels::fixed`]). Units depend on the model alone and no rank holds a part of
//! one, so the sum has the same bits for any number of ranks. Of feed-forward columns:
//!
//! ```text
//! units     |    |  |   |    |   | |   |    |  |    |     wherever one of DEGREES cuts
//! 2 ranks   |            0           |       1      |
//! 3 ranks   |      0         |    1     |     2     |
//! ```
//! A unit of attention is what a rank has of a KV head's query heads where as many as may share it
//! do. Few and long units are what a product wants, which adds up each of them apart.

use std::collections::BTreeSet;
use std::ops::Range;

use palimpsest_collective::{Place, even};
use palimpsest_models::config::ModelConfig;
use palimpsest_models::part::Part;

/// Columns in one block of any quantised type whose blocks are short, and of 8-bit activations:
/// splits of input columns fall on multiples of it where a model's width is one.
const BLOCK: usize = 32;

/// Numbers of ranks whose shares of the feed-forward layer are as even as blocks allow. Others deal
/// the units of these.
const DEGREES: [usize; 6] = [2, 3, 4, 6, 8, 16];

/// Ranks that a model with few KV heads can be dealt to, if it has as many query heads.
const SHARED_PARTS: usize = 8;

/// Why a model cannot be split so.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ShardError {
    /// The rank is not one of the group.
    #[error(
        "rank {rank} is out of range: a group of {world_size} has ranks 0 to {}",
        world_size.saturating_sub(1)
    )]
    Rank {
        /// The rank.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
    },
    /// Something of the model is too narrow for this many ranks.
    #[error(
        "{what} of the model has {units} parts to deal, too few for {world_size} ranks: use a \
         smaller --tp"
    )]
    TooNarrow {
        /// What is too narrow.
        what: &'static str,
        /// Parts that can be dealt.
        units: usize,
        /// Number of ranks.
        world_size: usize,
    },
}

/// A rank's part of a model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shard {
    /// The rank.
    pub place: Place,
    /// What it holds: KV heads with their cache, and the query heads whose attention it computes,
    /// which are those of its KV heads, or some of those of a shared one.
    pub part: Part,
    /// Whether it speaks for its KV heads: the first of the ranks that share one does.
    pub leads: bool,
    /// Where the units among its feed-forward columns end, from the first column here.
    pub ffn_units: Vec<usize>,
    /// Where the units among the columns of the output projection end, from the first column here.
    pub query_units: Vec<usize>,
}

/// What a rank holds of a model's attention heads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HeadLayout {
    /// Decoder layers.
    pub layers: usize,
    /// KV heads of each layer that are on this rank, among those of the model.
    pub kv_heads: Range<usize>,
    /// KV heads of the model.
    pub total_kv_heads: usize,
    /// Query heads of each KV head whose attention this rank computes.
    pub query_heads: usize,
    /// The first of them, among those of its KV head.
    pub first_query_head: usize,
    /// Who else computes attention of this rank's KV head, where there are more ranks than KV
    /// heads.
    pub sharing: Option<Sharing>,
    /// Whether this rank speaks for its KV heads. Ranks that share one hold the same of it, and
    /// the first of them counts.
    pub leads: bool,
}

impl HeadLayout {
    /// All heads of a model with one query head for each KV head, on one rank.
    pub const fn alone(layers: usize, kv_heads: usize) -> Self {
        Self {
            layers,
            kv_heads: 0..kv_heads,
            total_kv_heads: kv_heads,
            query_heads: 1,
            first_query_head: 0,
            sharing: None,
            leads: true,
        }
    }

    /// `G`: query heads of each KV head, on all ranks.
    pub fn group(&self) -> usize {
        match &self.sharing {
            Some(sharing) => sharing.query_heads.iter().sum(),
            None => self.query_heads,
        }
    }

    /// KV heads of this rank over all layers.
    pub fn heads(&self) -> usize {
        self.layers * self.kv_heads.len()
    }

    /// The layer of a head that is counted layer by layer.
    pub fn layer_of(&self, head: usize) -> usize {
        head / self.kv_heads.len()
    }

    /// The KV head, over all ranks, of a head that is counted layer by layer.
    pub fn kv_head_of(&self, head: usize) -> usize {
        self.kv_heads.start + head % self.kv_heads.len()
    }

    /// Where a layer's heads are among those that are counted layer by layer.
    pub fn of_layer(&self, layer: usize) -> Range<usize> {
        layer * self.kv_heads.len()..(layer + 1) * self.kv_heads.len()
    }
}

/// The ranks that share this rank's KV head. Only where there are more ranks than KV heads: each
/// has one KV head then, or a part.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sharing {
    /// The first of them.
    pub first_rank: usize,
    /// Query heads that each of them has, in rank order; those of a KV head follow each other.
    pub query_heads: Vec<usize>,
}

impl Shard {
    /// The whole model.
    pub fn whole(config: &ModelConfig) -> Self {
        Self {
            place: Place::ALONE,
            part: Part::whole(config),
            leads: true,
            ffn_units: feed_forward_units(config),
            query_units: attention_units(config),
        }
    }

    /// The part of `place`. All ranks of a group compute all parts alike.
    ///
    /// # Errors
    /// See [`ShardError`].
    pub fn new(config: &ModelConfig, place: Place) -> Result<Self, ShardError> {
        let Place { rank, world_size } = place;
        if rank >= world_size {
            return Err(ShardError::Rank { rank, world_size });
        }
        if world_size == 1 {
            return Ok(Self::whole(config));
        }
        let too_narrow = |what, units| {
            Err(ShardError::TooNarrow {
                what,
                units,
                world_size,
            })
        };
        if world_size > most_ranks(config) {
            return too_narrow("attention", most_ranks(config));
        }
        let Attention {
            kv_heads,
            query_heads,
            leads,
        } = attention(config, place);
        let units = feed_forward_units(config);
        if units.len() < world_size {
            return too_narrow("the feed-forward layer", units.len());
        }
        if config.vocabulary < world_size {
            return too_narrow("the vocabulary", config.vocabulary);
        }
        let cuts = cuts_at_units(config, world_size, &units);
        let ffn = cuts[rank]..cuts[rank + 1];
        let queries = query_heads.start * config.head_dim..query_heads.end * config.head_dim;
        Ok(Self {
            place,
            leads,
            ffn_units: within(&units, &ffn),
            query_units: within(&attention_units(config), &queries),
            part: Part {
                kv_heads,
                query_heads,
                head_dim: config.head_dim,
                ffn,
                vocabulary: even(config.vocabulary, rank, world_size),
            },
        })
    }

    /// What this rank holds of the attention heads of `config`.
    pub fn head_layout(&self, config: &ModelConfig) -> HeadLayout {
        HeadLayout {
            layers: config.layers,
            kv_heads: self.part.kv_heads.clone(),
            total_kv_heads: config.kv_heads,
            query_heads: self.part.heads() / self.part.kv_heads.len(),
            first_query_head: self.part.query_heads.start
                - self.part.kv_heads.start * (config.heads / config.kv_heads),
            sharing: self.sharing(config),
            leads: self.leads,
        }
    }

    /// The ranks that share this rank's KV head, where there are more ranks than KV heads.
    pub fn sharing(&self, config: &ModelConfig) -> Option<Sharing> {
        let Place { rank, world_size } = self.place;
        if world_size <= config.kv_heads {
            return None;
        }
        let ranks = sharers(config, world_size, self.part.kv_heads.start);
        let query_heads = |rank| {
            attention(config, Place { rank, world_size })
                .query_heads
                .len()
        };
        debug_assert!(ranks.contains(&rank), "it shares its own KV head");
        Some(Sharing {
            first_rank: ranks.start,
            query_heads: ranks.map(query_heads).collect(),
        })
    }

    /// Whether this is the whole model.
    pub fn is_whole(&self) -> bool {
        self.place.world_size == 1
    }
}

/// A rank's part of attention.
struct Attention {
    kv_heads: Range<usize>,
    query_heads: Range<usize>,
    leads: bool,
}

fn attention(config: &ModelConfig, place: Place) -> Attention {
    let Place { rank, world_size } = place;
    let group = config.heads / config.kv_heads;
    if world_size <= config.kv_heads {
        let kv_heads = even(config.kv_heads, rank, world_size);
        let query_heads = kv_heads.start * group..kv_heads.end * group;
        return Attention {
            kv_heads,
            query_heads,
            leads: true,
        };
    }
    let is_sharer = |head: &usize| sharers(config, world_size, *head).contains(&rank);
    let head = (0..config.kv_heads).find(is_sharer).unwrap_or(0);
    let ranks = sharers(config, world_size, head);
    let parts = even(most_sharers(config), rank - ranks.start, ranks.len());
    let own = part(config, parts.start).start..part(config, parts.end - 1).end;
    let first = head * group;
    Attention {
        kv_heads: head..head + 1,
        query_heads: first + own.start..first + own.end,
        leads: rank == ranks.start,
    }
}

/// Ranks that may share a KV head, each with a part of its query heads: more of them where there
/// are few KV heads.
fn most_sharers(config: &ModelConfig) -> usize {
    let group = config.heads / config.kv_heads;
    (SHARED_PARTS / config.kv_heads).max(2).min(group)
}

/// Ranks among which attention can be dealt.
fn most_ranks(config: &ModelConfig) -> usize {
    config.kv_heads * most_sharers(config)
}

/// Query heads, counted from the first of their KV head, that are dealt together.
fn part(config: &ModelConfig, index: usize) -> Range<usize> {
    even(config.heads / config.kv_heads, index, most_sharers(config))
}

/// Ends of the units of the output projection, in columns.
fn attention_units(config: &ModelConfig) -> Vec<usize> {
    let group = config.heads / config.kv_heads;
    let parts = |kv_head: usize| {
        (0..most_sharers(config)).map(move |i| kv_head * group + part(config, i).end)
    };
    (0..config.kv_heads)
        .flat_map(parts)
        .map(|head| head * config.head_dim)
        .collect()
}

/// Picks the `ends` that lie in `columns`, and counts them from its first one.
fn within(ends: &[usize], columns: &Range<usize>) -> Vec<usize> {
    ends.iter()
        .filter(|&&end| columns.start < end && end <= columns.end)
        .map(|end| end - columns.start)
        .collect()
}

/// Ranks that share a KV head, where there are more of them than KV heads.
fn sharers(config: &ModelConfig, world_size: usize, kv_head: usize) -> Range<usize> {
    even(world_size, kv_head, config.kv_heads)
}

/// Columns of a block of the feed-forward layer: the least that can be dealt.
fn block(config: &ModelConfig) -> usize {
    if config.ffn.is_multiple_of(BLOCK) {
        BLOCK
    } else {
        1
    }
}

/// Ends of the units of the feed-forward layer.
fn feed_forward_units(config: &ModelConfig) -> Vec<usize> {
    let blocks = config.ffn / block(config);
    let degrees = DEGREES
        .into_iter()
        .filter(|&degree| degree <= blocks.min(most_ranks(config)));
    let ends: BTreeSet<usize> = degrees
        .flat_map(|degree| even_cuts(config, degree))
        .chain([config.ffn])
        .collect();
    ends.into_iter().collect()
}

/// Feed-forward columns at which the ranks' parts end, but for the last one, such that attention
/// and feed-forward weights together come out as even as whole blocks allow. Every rank has a
/// block.
fn even_cuts(config: &ModelConfig, world_size: usize) -> Vec<usize> {
    let block = block(config);
    let blocks = config.ffn / block;
    let experts = config.differences.experts.map_or(1, |it| it.count);
    let block_weights = (3 * block * config.hidden * experts) as f64;
    let attention_weights = |rank: usize| {
        let own = attention(config, Place { rank, world_size });
        (2 * config.hidden * config.head_dim * (own.query_heads.len() + own.kv_heads.len())) as f64
    };
    let attention: Vec<f64> = (0..world_size).map(attention_weights).collect();
    let mean = (attention.iter().sum::<f64>() + blocks as f64 * block_weights) / world_size as f64;
    let (mut wanted, mut last) = (0.0, 0);
    let cut = |rank: usize| {
        wanted += (mean - attention[rank]) / block_weights;
        last = (wanted.round().max(0.0) as usize).clamp(last + 1, blocks - (world_size - 1 - rank));
        last * block
    };
    (0..world_size - 1).map(cut).collect()
}

/// Where the parts of all ranks begin and end: at the units' ends next to [`even_cuts`], each rank
/// with one unit at least. There are as many units as ranks, or more.
fn cuts_at_units(config: &ModelConfig, world_size: usize, units: &[usize]) -> Vec<usize> {
    let mut cuts = vec![0];
    let mut next = 0;
    for (rank, wanted) in even_cuts(config, world_size).into_iter().enumerate() {
        let most = units.len() - (world_size - 1 - rank);
        let nearest = (next..most)
            .min_by_key(|&unit| units[unit].abs_diff(wanted))
            .unwrap_or(next);
        cuts.push(units[nearest]);
        next = nearest + 1;
    }
    cuts.push(config.ffn);
    cuts
}

#[cfg(test)]
mod tests;
